"""Register what `dvc repro` made: a run that tells how it was made, and a version that can be served."""

from __future__ import annotations

import getpass
import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.exams.frozen import exams_sha256
from components.models.adapters import WEIGHTS, verify_adapter
from components.params import Params, UserError, to_dict
from components.registry.champion import LEDGER_KEEPER, Desk, at_desk, own
from components.registry.describe import describe
from components.registry.files import ADAPTER, folder_sha256, read_artifact_json, refuse_pickles
from components.registry.ledger import REGISTERED, WITHDRAWN
from components.registry.signing import SIGNED_BY, sign_served, signing_key
from components.registry.state import Standing
from components.registry.versions import find_model, read_versions
from components.storage import sha256

if TYPE_CHECKING:
    import pandas as pd
    from mlflow import MlflowClient

# What a version must be able to show, relative to the project: the artifact's folder in the run by file.
EVIDENCE: Mapping[str, str] = {
    "reports/metrics.json": "",
    "reports/predictions.parquet": "",
    "reports/card": "card",
    "params.yaml": "",
    "dvc.lock": "",
}
PARAMS_IN_A_REQUEST, METRICS_IN_A_REQUEST = 100, 1000  # what MLflow takes
SERVED = "model"  # the run's artifact folder that is served
REQUIREMENTS = (
    *("mlflow", "torch", "transformers", "peft", "safetensors"),
    *("numpy", "pandas", "pillow", "opencv-python-headless", "numba", "pyyaml"),
)
TO_CHECK_SIGNATURES = ("model-signing", "pyopenssl")  # the first imports the second and does not say so


@dataclass(frozen=True, slots=True)
class Registered:
    """A registered version. `created` is False where the same `dvc.lock` had been registered before."""

    model: str
    version: int
    run_id: str
    created: bool


def register(params: Params, root: Path, *, git_rev: str, dvc_lock_md5: str, data_md5: str) -> Registered:
    """Log a run and register a version of `params.registry.model` from the outputs below `root`.

    The version appears last and whole, with all its tags; what is interrupted before leaves only a failed
    run.

    Args:
        params: the recipe in force.
        root: the project's folder, with `models/`, `reports/`, `data/exams/`, `params.yaml`, `dvc.lock`.
        git_rev: commit of the code.
        dvc_lock_md5: MD5 of `dvc.lock`; one that is registered already is not registered again.
        data_md5: MD5 of the record store as DVC names it.

    Raises:
        UserError: an output is missing, the adapter is not what its manifest says, there is a pickle, or the
            store cannot be opened.
    """

    def work(desk: Desk) -> Registered:
        known = _find(desk, dvc_lock_md5)
        if known is not None:
            return known
        client = desk.client
        for name in EVIDENCE:
            if not (root / name).exists():
                raise UserError(f"{root / name}: is missing; expected it from the pipeline; run: dvc repro")
        manifest = verify_adapter(root / "models/adapter")
        metrics = _read_json(root / "reports/metrics.json")
        lineage = {
            "recipe": params.recipe,
            "git_rev": git_rev,
            "dvc_lock_md5": dvc_lock_md5,
            "data_md5": data_md5,
            "base": str(manifest["base"]),
            "base_revision": str(manifest["revision"] or manifest["weights_sha256"]),
            "adapter_sha256": str(manifest["files"][WEIGHTS]),
            "training_inputs": str(manifest.get("inputs_sha256", "")),
            "exam_sha256": _exam_sha256(root / "data/exams/manifest.json", params.gate.primary_exam),
            "trained_by": trainer(),
        }
        run_id = _start_run(client, params, lineage)
        try:
            _log_numbers(client, run_id, params, metrics)
            for name, folder in EVIDENCE.items():
                _log(client, run_id, root / name, folder)
            served = _log_served(client, run_id, params, root / "models/adapter")
            client.set_terminated(run_id, "FINISHED")
        except BaseException:
            client.set_terminated(run_id, "FAILED")
            raise
        evidence = {Path(name).name: sha256(root / name) for name in EVIDENCE if (root / name).is_file()}
        return _create_version(desk, run_id, {**lineage, **served}, evidence)

    return at_desk(params, work)


def trainer() -> str:
    """Who registers: the account at the MLflow server, else the login on this machine."""
    return os.environ.get("MLFLOW_TRACKING_USERNAME") or getpass.getuser()


def _start_run(client: MlflowClient, params: Params, lineage: dict[str, str]) -> str:
    experiment = client.get_experiment_by_name(params.registry.experiment)
    assert experiment is not None  # `opened` has made it
    tags = {**lineage, "mlflow.source.git.commit": lineage["git_rev"], "mlflow.source.name": "ecg retrain"}
    name = f"{params.recipe} {lineage['git_rev'][:8]}"
    run = client.create_run(experiment.experiment_id, tags=tags, run_name=name)
    return str(run.info.run_id)


def _log_numbers(client: MlflowClient, run_id: str, params: Params, metrics: dict[str, Any]) -> None:
    import time

    from mlflow.entities import Metric, Param

    now = int(time.time() * 1000)
    told = [Param(key, text) for key, text in _flat_params(to_dict(params))]
    measured = [Metric(key, value, now, 0) for key, value in flat_metrics(metrics)]
    for start in range(0, len(told), PARAMS_IN_A_REQUEST):
        client.log_batch(run_id, params=told[start : start + PARAMS_IN_A_REQUEST])
    for start in range(0, len(measured), METRICS_IN_A_REQUEST):
        client.log_batch(run_id, metrics=measured[start : start + METRICS_IN_A_REQUEST])


def flat_metrics(metrics: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """`exam.subject.metric` with its value, and `….low`, `….high` with its interval; no undefined ones.

    Labels stay in `metrics.json`: thousands of numbers would bury the ones that decide.
    """
    for exam, subjects in metrics.items():
        for subject, named in subjects.items():
            for metric, entry in named.items():
                if not isinstance(entry, Mapping) or "value" not in entry:
                    continue
                low, high = entry.get("interval") or (None, None)
                for suffix, value in (("", entry["value"]), (".low", low), (".high", high)):
                    if isinstance(value, int | float) and math.isfinite(value):
                        yield f"{exam}.{subject}.{metric}{suffix}", float(value)


def _flat_params(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat_params(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value)


def _log(client: MlflowClient, run_id: str, path: Path, folder: str) -> None:
    if path.is_dir():
        client.log_artifacts(run_id, str(path), folder)
    else:
        client.log_artifact(run_id, str(path), folder or None)


def _log_served(client: MlflowClient, run_id: str, params: Params, adapter: Path) -> dict[str, str]:
    """Save the pyfunc, look for pickles and sign it before anything leaves this machine, log it; returns its tags."""
    with tempfile.TemporaryDirectory(prefix="ecg-register-") as temporary:
        folder = Path(temporary) / SERVED
        save_pyfunc(params, adapter, folder)
        refuse_pickles(folder)
        verify_adapter(folder / ADAPTER)
        signed_by = sign_served(params, folder)
        client.log_artifacts(run_id, str(folder), SERVED)
        return {"files_sha256": folder_sha256(folder), **({SIGNED_BY: signed_by} if signed_by else {})}


def save_pyfunc(params: Params, adapter: Path, folder: Path) -> None:
    """Write the folder that MLflow serves: this package with the shipped bases, the adapter, an example."""
    from importlib.metadata import version

    import mlflow

    import components
    from components.reading import pyfunc

    needed = REQUIREMENTS if signing_key(params) is None else (*REQUIREMENTS, *TO_CHECK_SIGNATURES)
    mlflow.pyfunc.save_model(
        folder,
        python_model=pyfunc.__file__,
        code_paths=[str(Path(components.__file__).parent)],
        artifacts={"adapter": str(adapter)},
        model_config=pyfunc.model_config(params),
        signature=pyfunc.signature(),
        input_example=_example(params),
        pip_requirements=[f"{name}=={version(name).split('+')[0]}" for name in needed],
    )


def _example(params: Params) -> pd.DataFrame:
    """A simulated page, never a patient's: the example is shown to whoever may see the version."""
    import base64

    import pandas as pd

    from components.pages.codec import encode_png
    from components.pages.draw import draw
    from components.pages.spec import canonical_spec
    from components.records.simulator import HOSPITALS, simulate

    record = simulate(HOSPITALS["base"], patient=0, seed=0)
    spec = canonical_spec(params.pages.width_px, params.pages.height_px)
    page = encode_png(draw(record.signal_uv, record.sampling_rate_hz, spec))
    return pd.DataFrame({"page": [base64.b64encode(page).decode()], "question": ["Is this a normal ECG?"]})


def _find(desk: Desk, dvc_lock_md5: str) -> Registered | None:
    """The version that the ledger has for this `dvc.lock`; made in MLflow now where a kill came in between. One whose
    files were removed counts no more: the same is registered anew."""
    standing = [one for one in desk.state().versions.values() if one.removed is None]
    made = [one for one in standing if one.lineage.get("dvc_lock_md5") == dvc_lock_md5]
    if not made:
        return None
    versions = {version.number: version for version in read_versions(desk.client, desk.model)}
    for one in made:
        if one.number in versions and own(desk.state(), versions[one.number]) is not None:
            return Registered(desk.model, one.number, one.run_id, created=False)
    return _create(desk, made[-1])


def _create_version(desk: Desk, run_id: str, tags: dict[str, str], evidence: dict[str, str]) -> Registered:
    model = desk.model
    if find_model(desk.client, model) is None:
        desk.client.create_registered_model(model, description=f"Adapters of the recipe {desk.params.recipe}.")
    source = f"{desk.client.get_run(run_id).info.artifact_uri}/{SERVED}"
    _withdraw_unfinished(desk)
    _enter(desk, _next_number(desk), run_id, source, tags, evidence)
    return _create(desk, desk.state().versions[max(desk.state().versions)])


def _withdraw_unfinished(desk: Desk) -> None:
    """Take back what a killed run entered and never made: its number is the next one's. It is registered anew when
    its project is."""
    last = max((version.number for version in read_versions(desk.client, desk.model)), default=0)
    for number, one in desk.state().versions.items():
        if number > last and one.gate is None:
            why = "its registration was interrupted, and another was made first"
            desk.book.record(WITHDRAWN, number, who=LEDGER_KEEPER, why=why, key=f"withdrawn:{number}:{one.run_id}")


def _next_number(desk: Desk) -> int:
    """The number that MLflow will give: one more than the highest."""
    taken = {version.number for version in read_versions(desk.client, desk.model)}
    return max(taken | desk.state().versions.keys(), default=0) + 1


def _enter(
    desk: Desk, number: int, run_id: str, source: str, tags: Mapping[str, str], evidence: Mapping[str, str]
) -> None:
    desk.book.record(
        REGISTERED,
        number,
        who=tags["trained_by"],
        why=f"recipe {tags['recipe']} at {tags['git_rev'][:8]}",
        key=f"registered:{number}:{run_id}",
        details={"run_id": run_id, "source": source, "tags": dict(tags), "evidence": dict(evidence)},
    )


def _create(desk: Desk, entered: Standing) -> Registered:
    """Make in MLflow the version that the ledger has already."""
    metrics = read_artifact_json(desk.client, entered.run_id, "metrics.json")
    created = desk.client.create_model_version(
        desk.model,
        source=entered.source,
        run_id=entered.run_id,
        tags=entered.lineage,
        description=describe(desk.params.gate, metrics, entered.lineage, verdict=None),
    )
    number = int(created.version)
    if number != entered.number:  # somebody else's version took the number, or it was one deleted before
        _enter(desk, number, entered.run_id, entered.source, entered.lineage, entered.evidence)
    return Registered(desk.model, number, entered.run_id, created=True)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        tree: dict[str, Any] = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path}: is no JSON ({error}); make it again: dvc repro --force evaluate") from error
    return tree


def _exam_sha256(manifest: Path, exam: str) -> str:
    """The hash of all frozen exams, of which the primary one must be there."""
    if not manifest.is_file():
        raise UserError(f"{manifest}: is missing; expected the frozen exams; run: dvc repro exams")
    tree = _read_json(manifest)
    exams = tree.get("exams", {})
    if exam not in exams:
        raise UserError(f"gate.primary_exam: found '{exam}', expected one of {manifest}: {', '.join(exams) or 'none'}")
    return exams_sha256(tree)
