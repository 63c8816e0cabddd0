"""A champion that never sat the challenger's exam sits it: with its own code and base, in a process of its own."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from registry_project import REPOSITORY, aliases_of, lock_md5, version_of
from tiny_cohort import tiny_params

from components.evaluation.scoring import score_predictions
from components.evaluation.sit import sit_exam, write_predictions
from components.exams.freeze import freeze_exams
from components.exams.frozen import open_exam
from components.models.adapters import attach, save_adapter
from components.models.bases import load_base
from components.params import Params, SuperiorRule
from components.reading.reader import Reader
from components.records.simulator import simulate
from components.records.store import write_store
from components.registry.approve import approve
from components.registry.gate import gate_version
from components.registry.promote import decide
from components.registry.register import register
from components.registry.store import connect

pytestmark = pytest.mark.slow
PATIENTS = 60
OPEN = {
    "beats_base": SuperiorRule("superior", "base", -1.0),
    "beats_champion": SuperiorRule("superior", "champion", -1.0),
}


def make_project(root: Path, params: Params, seed: int) -> Path:
    """A real adapter (random weights), and a real exam of patients of its own."""
    import torch

    freeze(root, params, seed)
    base = load_base(params.model.base)
    model = attach(base.model, dataclasses.replace(params.train, seed=seed))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.002, generator=torch.Generator().manual_seed(seed + len(name)))
    (root / "models/adapter").mkdir(parents=True)
    save_adapter(model, base, root / "models/adapter", {})
    shutil.copy(REPOSITORY / "params.yaml", root / "params.yaml")
    (root / "dvc.lock").write_text(f"# {seed}\n")
    (root / "reports/card").mkdir(parents=True)
    (root / "reports/card/card.md").write_text("# Card\n")
    exams = open_exam(root / "data/exams")
    readers = {"base": None, "adapter": root / "models/adapter"}
    predictions = pd.concat(
        [
            sit_exam(Reader.load("ecg-tiny", folder), exams, ["super"], params.evaluate, subject)
            for subject, folder in readers.items()
        ],
        ignore_index=True,
    )
    write_predictions(predictions, root / "reports/predictions.parquet")
    (root / "reports/metrics.json").write_text(json.dumps(score_predictions(predictions, params.evaluate)))
    return root


def freeze(root: Path, params: Params, seed: int) -> None:
    write_store((simulate("riverside", patient, seed=seed) for patient in range(PATIENTS)), root / "data/records")
    freeze_exams(params.exams, root / "data/records", root / "data/exams")


def test_the_champion_sits_the_new_exam_once(params: Params, tmp_path: Path) -> None:
    # No threshold: the adapters are untrained, and the way to the comparison is what is tested.
    gate = dataclasses.replace(params.gate, min_records=1, rules=OPEN, simulations=0)
    tiny = tiny_params()
    params = dataclasses.replace(params, gate=gate, exams=tiny.exams, evaluate=tiny.evaluate)
    for number in (1, 2):
        root = make_project(tmp_path / f"project-{number}", params, seed=number)
        register(params, root, git_rev="a" * 40, dvc_lock_md5=lock_md5(root), data_md5="d" * 32)
        if number == 1:
            assert gate_version(params, 1, root).passed
            approve(params, 1, by="Ada")
            decide(params, root)
    assert version_of(params, 1).exam_sha256 != version_of(params, 2).exam_sha256

    verdict = gate_version(params, 2, tmp_path / "project-2")
    assert verdict.passed
    assert verdict.champion == 1
    assert verdict.rules[-1].name == "beats_champion"
    client, run_id = connect(params.registry), version_of(params, 1).run_id
    assert [Path(file.path).stem for file in client.list_artifacts(run_id, "sittings")] == [
        version_of(params, 2).exam_sha256
    ]
    shutil.rmtree(tmp_path / "project-2/data")
    approve(params, 2, by="Ada")
    assert decide(params)[0].action == "promoted"
    assert aliases_of(params) == {"champion": 2, "previous-champion": 1}
