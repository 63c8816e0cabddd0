"""Small projects as `dvc repro` leaves them, with made-up answers, and looks into a real MLflow store."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from safetensors.numpy import save_file

from components.evaluation.scoring import score_predictions
from components.evaluation.thresholds import with_thresholds
from components.models.adapters import CONFIG, WEIGHTS
from components.models.bases import write_manifest
from components.params import GateParams, Params
from components.records.statements import SUPERCLASSES
from components.registry.approve import approve
from components.registry.ledger import GATED, REGISTERED, Entry, open_ledger
from components.registry.register import Registered, register
from components.registry.state import fold
from components.registry.store import connect
from components.registry.versions import Version, read_aliases, read_version, read_versions

REPOSITORY = Path(__file__).resolve().parents[2]
RECORDS = 160
BASE, GOOD, BETTER, BEST = 0.6, 2.0, 3.2, 9.0  # how far a subject's scores follow the truth
NO_BETTER = 0.7

Register = Callable[..., Registered]


@dataclasses.dataclass
class Store:
    """A store and the states it has been kept in. Artifacts are named by absolute paths, so it never moves."""

    params: Params
    folder: Path
    kept: Path

    def keep(self, state: str) -> None:
        self._copy(self.folder / "mlflow.db", self.kept / f"{state}.db")
        for name in ("artifacts", "ledger"):
            if (self.folder / name).exists():
                shutil.copytree(self.folder / name, self.kept / state / name)

    def set_back(self, state: str) -> None:
        self._copy(self.kept / f"{state}.db", self.folder / "mlflow.db")
        for name in ("artifacts", "ledger"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
            if (self.kept / state / name).exists():
                shutil.copytree(self.kept / state / name, self.folder / name, copy_function=os.link)

    def _copy(self, source: Path, target: Path) -> None:
        # SQLite's own backup: MLflow keeps connections open.
        with closing(sqlite3.connect(source)) as old, closing(sqlite3.connect(target)) as new:
            old.backup(new)


def small_gate(gate: GateParams) -> GateParams:
    """The default rules about what made-up answers to the superclasses can show, for a small exam."""
    about = ("auc", "hamming_loss", "brier", "beats_base", "beats_champion", "keeps_hamming_loss", "size")
    rules = {name: gate.rules[name] for name in about}
    return dataclasses.replace(gate, min_records=50, simulations=0, rules=rules)


def answers(skill: float, subject: str, exam_seed: int = 0, seed: int = 0) -> pd.DataFrame:
    """One subject's answers to the exam `exam_seed`; half of the records are the test split."""
    truth = np.random.default_rng(exam_seed).random((RECORDS, len(SUPERCLASSES))) < 0.4
    noise = np.random.default_rng([seed, len(subject)]).normal(size=truth.shape)
    score = 1 / (1 + np.exp(1.0 - skill * truth - noise))
    labels = len(SUPERCLASSES)
    frame = pd.DataFrame(
        {
            "exam": "super",
            "split": np.repeat(np.where(np.arange(RECORDS) < RECORDS // 2, "validation", "test"), labels),
            "subject": subject,
            "item_id": [f"super-{r}-{c}" for r in range(RECORDS) for c in range(labels)],
            "record_id": np.repeat([f"r{i:03}" for i in range(RECORDS)], labels),
            "patient_id": np.repeat([f"p{i:03}" for i in range(RECORDS)], labels),
            "page_sha256": np.repeat([f"{i + 1000 * exam_seed:064x}" for i in range(RECORDS)], labels),
            "label": np.tile(SUPERCLASSES, RECORDS),
            "prompt": "",
            "answer": np.where(score.ravel() > 0.5, "yes", "no"),
            "score": score.ravel().astype(np.float32),
            "verdict": score.ravel() > 0.5,
            "truth": truth.ravel(),
        }
    )
    return with_thresholds(frame)


def write_adapter(folder: Path, seed: int) -> None:
    """An adapter folder in the project's form; its weights are `seed`'s."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = np.random.default_rng(seed).normal(size=(4, 8)).astype(np.float32)
    save_file({"base_model.model.layer.lora_A.weight": weights}, folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps({"peft_type": "LORA", "r": 4}))
    facts = {"base": "ecg-tiny", "revision": None, "weights_sha256": "0" * 64, "method": "lora"}
    write_manifest(folder, facts)


def write_project(root: Path, params: Params, skill: float, seed: int = 0, exam_seed: int = 0, note: str = "") -> Path:
    """What a finished `dvc repro` leaves below `root`; another `note` makes another `dvc.lock`."""
    root.mkdir(parents=True, exist_ok=True)
    shutil.copy(REPOSITORY / "params.yaml", root / "params.yaml")
    (root / "dvc.lock").write_text(f"schema: '2.0'\n# {skill} {seed} {exam_seed} {note}\n")
    write_adapter(root / "models/adapter", seed)
    (root / "reports/card/plots").mkdir(parents=True, exist_ok=True)
    (root / "reports/card/card.md").write_text("# Card\n")
    predictions = pd.concat(
        [answers(skill, "adapter", exam_seed, seed), answers(BASE, "base", exam_seed)], ignore_index=True
    )
    predictions.to_parquet(root / "reports/predictions.parquet", index=False)
    (root / "reports/metrics.json").write_text(json.dumps(score_predictions(predictions, params.evaluate)))
    (root / "data/exams").mkdir(parents=True, exist_ok=True)
    manifest = {"exams": {"super": {"sha256": hashlib.sha256(str(exam_seed).encode()).hexdigest()}}}
    (root / "data/exams/manifest.json").write_text(json.dumps(manifest))
    return root


def lock_md5(root: Path) -> str:
    return hashlib.md5((root / "dvc.lock").read_bytes()).hexdigest()


def register_project(params: Params, root: Path) -> Registered:
    return register(params, root, git_rev="a" * 40, dvc_lock_md5=lock_md5(root), data_md5="d" * 32)


def tag(params: Params, number: int, **tags: str) -> None:
    """Set tags as a person does in the MLflow UI."""
    client = connect(params.registry)
    for name, value in tags.items():
        client.set_model_version_tag(params.registry.model, str(number), name, value)


def version_of(params: Params, number: int) -> Version:
    return read_version(connect(params.registry), params.registry.model, number)


def aliases_of(params: Params) -> dict[str, int]:
    return read_aliases(connect(params.registry), params.registry.model)


def stages_of(params: Params) -> dict[int, str]:
    return {version.number: version.stage for version in read_versions(connect(params.registry), params.registry.model)}


def served_folder(params: Params, number: int) -> Path:
    """Where the files of a version lie; adapter and code may be written to (what is kept is linked)."""
    folder = Path(version_of(params, number).source.removeprefix("file://"))
    for path in [*(folder / "artifacts/adapter").iterdir(), folder / "code/components/__init__.py"]:
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(content)
    return folder


def twin(params: Params, number: int, approved: bool = True) -> int:
    """Another version with the files, run and verdict of version `number`, approved by Ada: quick to make."""
    client = connect(params.registry)
    book = open_ledger(client, params.registry)
    state = fold(book.entries())
    old, new = state.versions[number], max(state.versions) + 1
    lineage = {**old.lineage, "dvc_lock_md5": f"{new:032}"}
    details: dict[str, Any] = {"run_id": old.run_id, "source": old.source, "tags": lineage, "evidence": old.evidence}
    book.record(REGISTERED, new, who="trainer", why="a twin", key=f"registered:{new}", details=details)
    client.create_model_version(params.registry.model, source=old.source, run_id=old.run_id, tags=lineage)
    # As a gate whose verdict is the twin's: its text is the one that lies with the run.
    details = {"passed": True, "champion": state.champion, "verdict_sha256": old.gate_sha256}
    book.record(GATED, new, who="gate", why=str(old.gate_reason), key=f"gated:{new}:1", details=details)
    if approved:
        approve(params, new, by="Ada")
        for name, value in fold(book.entries()).versions[new].tags().items():
            if value is not None:
                client.set_model_version_tag(params.registry.model, str(new), name, value)
    return new


def events_of(params: Params, number: int | None = None) -> list[str]:
    """The events of the ledger, oldest first; of one version if `number` is given."""
    entries = open_ledger(connect(params.registry), params.registry).entries()
    return [entry.event for entry in entries if number is None or entry.version == number]


def entries_of(params: Params) -> list[Entry]:
    return list(open_ledger(connect(params.registry), params.registry).entries())
