"""The page CNN's training: the adapter's pages, only the training split, the same bytes each time."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from tiny_cohort import patients, tiny_params

from components.models.page_cnn import PageCnn
from components.params import UserError
from components.records.statements import SUPERCLASSES, superclasses_of
from components.records.store import RecordStore, write_store
from components.training import baseline


def test_targets_follow_the_labels_and_superclasses_count_only_where_known(records):
    store = RecordStore(records)
    labels, targets, known = baseline._targets(store)
    seen = {code for r in patients() if r.split == "train" for code in r.labels}
    assert labels[:5] == SUPERCLASSES
    assert set(labels) == seen | set(SUPERCLASSES)
    assert len(labels) == len(set(labels))
    for row, record in enumerate(patients()):
        held = {label for label, value in zip(labels, targets[row], strict=True) if value}
        assert held == (superclasses_of(record.labels) | set(record.labels)) & set(labels)
        assert known[row, :5].tolist() == [float(bool(superclasses_of(record.labels)))] * 5
        assert known[row, 5:].all()


def test_unknown_labels_do_not_move_the_loss():
    logits = torch.tensor([[3.0, 0.0], [9.0, 0.0]])
    targets = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    known = torch.tensor([[1.0, 1.0], [0.0, 1.0]])
    loss = baseline._loss(logits, targets, known)
    logits[1, 0] = -9.0
    assert baseline._loss(logits, targets, known) == loss


def test_only_training_records_are_drawn(records):
    store = RecordStore(records)
    batches = baseline._batches(tiny_params(), store)
    train = {r.record_id for r in patients() if r.split == "train"}
    assert set(batches.record_ids) == train
    assert set(batches.batch(7).record_ids) <= train


def test_trains_to_the_same_bytes_and_keeps_the_best_step(records, exams, tmp_path):
    manifests = [baseline.train_baseline(tiny_params(), records, exams, tmp_path / name) for name in "ab"]
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in "ab"]
    assert weights[0] == weights[1]
    assert manifests[0] == manifests[1]
    curve = manifests[0]["curve"]
    assert [point["step"] for point in curve] == [2, 4]
    best = max(curve, key=lambda point: point["validation_auc"])
    assert manifests[0]["best_step"] == best["step"]
    assert np.isfinite([point["loss"] for point in curve]).all()
    assert PageCnn.load(tmp_path / "a").config.labels[:5] == SUPERCLASSES


def test_no_training_record_is_an_error_and_leaves_nothing(exams, tmp_path):
    write_store([dataclasses.replace(r) for r in patients() if r.split != "train"], tmp_path / "records")
    with pytest.raises(UserError, match="no training record"):
        baseline.train_baseline(tiny_params(), tmp_path / "records", exams, tmp_path / "out")
    assert not (tmp_path / "out").exists()
