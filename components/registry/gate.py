"""The gate: may this version be put before a person? It gathers what is known of a version, has `rules` judge it, and
writes the verdict on it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.evaluation.power import Power
from components.exams.frozen import exams_sha256
from components.models.adapters import verify_adapter
from components.params import GateParams, Params, UserError
from components.registry.champion import Desk, at_desk, record_verdict, show
from components.registry.costs import read_costs
from components.registry.describe import describe
from components.registry.files import (
    ADAPTER,
    read_artifact_json,
    read_artifact_table,
    read_artifact_text,
    refuse_removed,
    verified,
    verify_version,
)
from components.registry.review import page_links, publish_review
from components.registry.rules import (
    VERDICT_FILE,
    Champion,
    Evidence,
    RuleVerdict,
    Verdict,
    apply_rules,
    rules_sha256,
)
from components.registry.signing import signature_policy
from components.registry.versions import (
    CHAMPION,
    FAILED,
    NO_VERSION,
    PASSED,
    Version,
    read_aliases,
    read_version,
)

if TYPE_CHECKING:
    import pandas as pd
    from mlflow import MlflowClient

__all__ = ["VERDICT_FILE", "Champion", "Verdict", "gate_version", "is_gated", "judge", "standing_verdict"]

RULES_TAG = "gate_rules_sha256"  # of a version's run: the rules its verdict was reached by


def gate_version(params: Params, number: int, root: Path = Path()) -> Verdict:
    """Run the gate on a registered version and write the verdict on it.

    Passed: `approval = pending`, alias `challenger`, stage Staging. Failed: neither. A version that was
    judged by today's rules, against the champion of today, keeps its verdict.

    Args:
        params: the recipe in force; `gate` and `evaluate` are used.
        number: the version.
        root: the project's folder, whose `data/exams` a champion sits that has not sat this exam yet.

    Raises:
        UserError: no such version, its metrics or predictions are gone, the champion must sit its exam first and
            cannot, or the store cannot be opened. There is no verdict then.
    """

    def work(desk: Desk) -> Verdict:
        show(desk, number)  # what an interrupted gate has entered already
        version = read_version(desk.client, desk.model, number)
        refuse_removed(version)
        return judge(desk.client, params, version, root)

    return at_desk(params, work)


def judge(client: MlflowClient, params: Params, version: Version, root: Path) -> Verdict:
    """The verdict on `version` against the champion of this moment: the standing one, or a new one."""
    number = read_aliases(client, version.model).get(CHAMPION)
    standing = standing_verdict(client, version)
    compared = version.promoted_at is not None or version.gate_champion == str(number or NO_VERSION)
    if standing is not None and compared and is_current(standing, version, params.gate):
        return standing
    verify_version(version, signature_policy(params))
    metrics = read_artifact_json(client, version.run_id, "metrics.json")
    predictions = read_artifact_table(client, version.run_id, "predictions.parquet")
    champion = None if number is None else _champion(client, params, version, number, root)
    evidence = Evidence(metrics, predictions, read_costs(client, version), champion)
    verdict = apply_rules(params.gate, params.evaluate, evidence)
    publish_review(client, params, version, verdict, metrics, predictions, champion, root)
    _write_verdict(client, params, version, metrics, verdict)
    return verdict


def standing_verdict(client: MlflowClient, version: Version) -> Verdict | None:
    """The verdict written when the gate last ran on `version` to its end; None if it did not.

    The tag alone is no verdict: anyone who may edit tags could have typed it. `gate_sha256`, which the ledger gives and
    keeps, names the text that counts.
    """
    try:
        text = read_artifact_text(client, version.run_id, VERDICT_FILE)
    except UserError:
        return None
    if hashlib.sha256(text.encode()).hexdigest() != version.tags.get("gate_sha256"):
        return None
    tree = json.loads(text)
    if version.gate != (PASSED if tree["passed"] else FAILED):
        return None
    try:
        rules = tuple(RuleVerdict(**{**rule, "interval": _pair(rule["interval"])}) for rule in tree["rules"])
        power = None
        if tree["power"] is not None:
            pairs = {name: _pair(tree["power"][name]) for name in ("false_pass_interval", "power_interval")}
            power = Power(**{**tree["power"], **pairs})
        return Verdict(**{**tree, "rules": rules, "power": power})
    except (KeyError, TypeError):
        return None  # in another form than today's: judged by other code


def _pair(bounds: Any) -> tuple[float, float] | None:
    return None if bounds is None else (float(bounds[0]), float(bounds[1]))


def is_current(verdict: Verdict, version: Version, rules: GateParams) -> bool:
    """Whether `verdict` was reached by these rules; what has been promoted is not judged again."""
    return version.promoted_at is not None or verdict.rules_sha256 == rules_sha256(rules)


def is_gated(client: MlflowClient, version: Version, rules: GateParams) -> bool:
    """Whether `version` has a verdict by these rules, as far as tags tell: enough to know that nothing is to be done.

    Reads no artifact; what is decided on a verdict is decided on `standing_verdict`.
    """
    if version.gate not in (PASSED, FAILED) or "gate_sha256" not in version.tags:
        return False
    tags = client.get_run(version.run_id).data.tags
    return version.promoted_at is not None or tags.get(RULES_TAG) == rules_sha256(rules)


def _champion(client: MlflowClient, params: Params, version: Version, number: int, root: Path) -> Champion:
    champion = read_version(client, version.model, number)
    if champion.exam_sha256 == version.exam_sha256:
        return Champion(number, read_artifact_table(client, champion.run_id, "predictions.parquet"))
    try:
        return Champion(number, _sit(client, champion, str(version.exam_sha256), params, root))
    except UserError as error:
        raise UserError(f"{champion} has not sat the exam of {version}, and cannot: {error}") from error


def _sit(client: MlflowClient, champion: Version, exam_sha256: str, params: Params, root: Path) -> pd.DataFrame:
    """The champion's answers to another exam than its own, kept with its run: it sits each exam once."""
    name = f"{exam_sha256}.parquet"
    if any(Path(file.path).name == name for file in client.list_artifacts(champion.run_id, "sittings")):
        return read_artifact_table(client, champion.run_id, f"sittings/{name}")
    exams = root / "data/exams"
    found = _exams_here(exams)
    if found != exam_sha256:
        raise UserError(f"{exams}: holds exams {found}, expected {exam_sha256}; run: dvc checkout data/exams")
    policy = signature_policy(params)
    with verified(champion, policy) as folder, tempfile.TemporaryDirectory(prefix="ecg-sitting-") as temporary:
        # With the code, base and params it was registered with: as it serves, whatever has changed here since.
        code, work = folder / "code", Path(temporary)
        (work / "params.yaml").write_text(read_artifact_text(client, champion.run_id, "params.yaml"))
        manifest = verify_adapter(folder / ADAPTER)
        command = [sys.executable, "-m", "components.evaluation.sit", "--base", str(manifest["base"])]
        command += ["--adapter", str(folder / ADAPTER), "--exams", str(exams.resolve()), "--out", str(work / name)]
        command += ["--revision", str(manifest["revision"])] if manifest["revision"] else []
        # Its sources, which were just checked, and no compiled file beside them.
        compiled = {"PYTHONPYCACHEPREFIX": str(work / "compiled"), "NUMBA_CACHE_DIR": str(work / "compiled")}
        environment = {**os.environ, **compiled, "PYTHONPATH": str(code)}
        done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise UserError(f"sitting the exam ended with {done.returncode}: {done.stderr.strip()[-500:]}")
        client.log_artifact(champion.run_id, str(work / name), "sittings")
    return read_artifact_table(client, champion.run_id, f"sittings/{name}")


def _exams_here(exams: Path) -> str:
    """The hash of the frozen exams in the folder `exams`."""
    try:
        return exams_sha256(json.loads((exams / "manifest.json").read_text()))
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{exams / 'manifest.json'}: cannot be read ({error}); run: dvc checkout data/exams") from error


def _write_verdict(
    client: MlflowClient,
    params: Params,
    version: Version,
    metrics: Mapping[str, Any],
    verdict: Verdict,
) -> None:
    """Log the verdict and tell it on the version's page; in the ledger, and by it in the tags, it stands last."""
    model, number = version.model, str(version.number)
    text = json.dumps(dataclasses.asdict(verdict), indent=1)
    client.log_text(version.run_id, text, VERDICT_FILE)
    client.set_tag(version.run_id, RULES_TAG, verdict.rules_sha256)
    page = describe(params.gate, metrics, version.tags, verdict, page_links(client, version.run_id))
    client.update_model_version(model, number, page)
    record_verdict(client, params, version, text.encode(), verdict.passed, verdict.reason, verdict.champion)
