"""A shorter pretraining: the same code as the shipped base, a handful of steps."""

from __future__ import annotations

import json

import numpy as np
import pytest

from components.models.bases import load_base, verify_folder
from components.records.simulator import HOSPITALS, simulate
from components.training import pretraining
from components.training.pretraining import LABELS, PretrainParams, label_vector, pretrain, simulated_batch
from components.training.scores import macro_auc

SHORT = PretrainParams(
    tower_steps=4, joint_steps=4, batch_size=4, questions_per_page=6, eval_every=4, simulated_validation=12
)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setattr(pretraining, "CORPUS_RECORDS", 300)
    out = tmp_path_factory.mktemp("pretraining") / "base"
    pretrain(SHORT, out, None, "test")
    patch.undo()
    return out


def test_it_writes_a_base_that_loads_and_answers(base):
    manifest = verify_folder(base)
    assert manifest["params"]["joint_steps"] == 4
    assert manifest["chosen_by"] == "the last step"
    assert manifest["chosen_step"] == 8
    assert [row["phase"] for row in manifest["history"]] == ["tower", "joint"]
    loaded = load_base(str(base))
    assert loaded.identity["weights_sha256"]
    assert not [path for path in base.iterdir() if path.suffix in (".bin", ".pt", ".pkl")]


def test_the_loss_falls(base):
    losses = [row["loss"] for row in json.loads((base / "manifest.json").read_text())["history"]]
    assert all(np.isfinite(losses))


def test_steps_see_new_patients_that_validation_never_shares():
    first, labels = simulated_batch(SHORT, 0)
    second, _ = simulated_batch(SHORT, 1)
    again, _ = simulated_batch(SHORT, 0)
    held_out = {record.record_id for record in pretraining.simulated_validation(SHORT)}
    assert not set(first.record_ids) & set(second.record_ids)
    assert not (set(first.record_ids) | set(second.record_ids)) & held_out
    np.testing.assert_array_equal(np.stack(first.pages), np.stack(again.pages))
    assert labels.shape == (4, len(LABELS))


def test_label_vector_says_what_the_record_says():
    record = simulate(HOSPITALS["base"], 3, 0)
    vector = dict(zip(LABELS, label_vector(record), strict=True))
    assert all(vector[code] == 1 for code in record.labels)
    assert sum(vector.values()) >= len(record.labels)


def test_macro_auc_leaves_out_columns_of_one_class():
    truth = np.array([[1, 1], [0, 1], [1, 1]], bool)
    assert macro_auc(np.array([[0.9, 0.1], [0.1, 0.2], [0.8, 0.3]]), truth) == 1.0
    assert np.isnan(macro_auc(np.zeros((2, 1)), np.ones((2, 1))))
