"""The gate: may this version be put before a person? Closed by default.

A rule looks at the bound of an interval, not at the point, so that luck on a small exam does not pass. A
number that is missing, NaN or from too few records fails. The comparisons are paired: both subjects' answers
to the same items, resampled together.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

from components.models.adapters import verify_adapter
from components.params import EvaluateParams, GateParams, Params, ThresholdRule, UserError, to_dict
from components.registry.champion import Desk, at_desk, record_verdict, show
from components.registry.describe import describe
from components.registry.files import (
    ADAPTER,
    read_artifact_json,
    read_artifact_table,
    read_artifact_text,
    verified,
    verify_version,
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

VERDICT_FILE = "gate.json"
SUBJECT = "adapter"
LOWER_IS_BETTER = ("hamming_loss", "hamming_loss_hard")


@dataclass(frozen=True, slots=True)
class RuleVerdict:
    """What one rule found. `value` and `interval` are None where nothing usable was measured."""

    name: str
    value: float | None
    interval: tuple[float, float] | None
    n: int | None  # exam records
    needed: str
    passed: bool
    sentence: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """All rules together. `champion` is the version compared with, None where there was none; `rules_sha256` names
    the `gate` section it was judged by."""

    passed: bool
    reason: str
    rules: tuple[RuleVerdict, ...]
    champion: int | None
    rules_sha256: str


@dataclass(frozen=True, slots=True)
class Champion:
    """The champion as the gate sees it: its answers to the challenger's exam."""

    version: int
    predictions: pd.DataFrame


def gate_version(params: Params, number: int, root: Path = Path()) -> Verdict:
    """Run the gate on a registered version and write the verdict on it.

    Passed: `approval = pending`, alias `challenger`, stage Staging. Failed: neither. A version that was
    judged by today's rules, against the champion of today, keeps its verdict.

    Args:
        params: the recipe in force; `gate` and `evaluate` are used.
        number: the version.
        root: the project's folder, whose `data/exams` a champion sits that has not sat this exam yet.

    Raises:
        UserError: no such version, its metrics or predictions are gone, the champion must sit its exam first
        and
            cannot, or the store cannot be opened. There is no verdict then.
    """

    def work(desk: Desk) -> Verdict:
        show(desk, number)  # what an interrupted gate has entered already
        return judge(desk.client, params, read_version(desk.client, desk.model, number), root)

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
    verdict = gate(params.gate, params.evaluate, metrics, predictions, champion)
    _write_verdict(client, params, version, metrics, verdict)
    return verdict


def gate(
    rules: GateParams,
    evaluate: EvaluateParams,
    metrics: Mapping[str, Any],
    predictions: pd.DataFrame,
    champion: Champion | None,
) -> Verdict:
    """Apply every rule.

    Args:
        rules: `gate` of params.yaml.
        evaluate: resamples, seed and confidence of the comparison with the champion.
        metrics: `reports/metrics.json`.
        predictions: `reports/predictions.parquet`.
        champion: None when no version has been promoted yet; thresholds and base decide alone then.
    """
    found = [_threshold(rules, rule, metrics) for rule in rules.thresholds]
    found.append(_beats_base(rules, metrics))
    if champion is not None:
        found.append(_beats_champion(rules, evaluate, predictions, champion))
    failed = [rule.sentence for rule in found if not rule.passed]
    against = f"champion {champion.version}" if champion else "no champion yet: thresholds and base alone"
    reason = " ".join(failed) if failed else f"All {len(found)} rules hold ({against})."
    number = champion.version if champion else None
    return Verdict(not failed, reason, tuple(found), number, _rules_sha256(rules))


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
    rules = tuple(
        RuleVerdict(**{**rule, "interval": tuple(rule["interval"]) if rule["interval"] else None})
        for rule in tree["rules"]
    )
    return Verdict(tree["passed"], tree["reason"], rules, tree["champion"], tree.get("rules_sha256", ""))


def is_current(verdict: Verdict, version: Version, rules: GateParams) -> bool:
    """Whether `verdict` was reached by these rules; what has been promoted is not judged again."""
    return version.promoted_at is not None or verdict.rules_sha256 == _rules_sha256(rules)


def _rules_sha256(rules: GateParams) -> str:
    """Hash of what decides a verdict."""
    tree = to_dict(rules)
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()


def _threshold(rules: GateParams, rule: ThresholdRule, metrics: Mapping[str, Any]) -> RuleVerdict:
    name = f"{rule.exam} {rule.metric}"
    limits = [f"≥ {rule.min:g}"] if rule.min is not None else []
    limits += [f"≤ {rule.max:g}"] if rule.max is not None else []
    needed = f"{rule.bound} bound {' and '.join(limits)}"
    entry = _find(metrics, rule.exam, SUBJECT, rule.metric)
    measured = _measured(entry, rules.min_records)
    if isinstance(measured, str):
        return _failed(name, needed, entry, measured)
    if not limits or rule.bound not in ("low", "high"):
        return _failed(name, needed, entry, "the rule itself needs bound low or high, and min or max")
    value, interval, n = measured
    bound = interval[0] if rule.bound == "low" else interval[1]
    passed = (rule.min is None or bound >= rule.min) and (rule.max is None or bound <= rule.max)
    sentence = f"{name} is {_show(value, interval)} on {n} records: {needed} {_holds(passed)}."
    return RuleVerdict(name, value, interval, n, needed, passed, sentence)


def _beats_base(rules: GateParams, metrics: Mapping[str, Any]) -> RuleVerdict:
    entry = _find(metrics, rules.primary_exam, f"{SUBJECT}_minus_base", rules.primary_metric)
    return _beats("beats the base", "the base", entry, rules, rules.beat_base_by)


def _beats_champion(
    rules: GateParams, evaluate: EvaluateParams, predictions: pd.DataFrame, champion: Champion
) -> RuleVerdict:
    from components.evaluation.scoring import paired_difference

    name, whom = "beats the champion", f"champion {champion.version}"
    needed = f"improvement above {rules.beat_champion_by:g}"
    try:
        entry = paired_difference(
            predictions[predictions["subject"] == SUBJECT],
            champion.predictions[champion.predictions["subject"] == SUBJECT],
            rules.primary_exam,
            rules.primary_metric,
            evaluate,
        )
    except (ValueError, KeyError) as error:
        return _failed(name, needed, None, f"the two cannot be compared ({error})")
    return _beats(name, whom, entry, rules, rules.beat_champion_by)


def _beats(name: str, whom: str, entry: Any, rules: GateParams, by: float) -> RuleVerdict:
    needed = f"improvement above {by:g}"
    measured = _measured(entry, rules.min_records)
    if isinstance(measured, str):
        return _failed(name, needed, entry, measured)
    value, (low, high), n = measured
    if rules.primary_metric in LOWER_IS_BETTER:
        value, low, high = -value, -high, -low
    passed = low > by
    what = f"{rules.primary_exam} {rules.primary_metric}"
    sentence = (
        f"{what} is better than {whom}'s by {_show(value, (low, high))} on the same {n} records: "
        f"low bound above {by:g} {_holds(passed)}."
    )
    return RuleVerdict(name, value, (low, high), n, needed, passed, sentence)


def _measured(entry: Any, min_records: int) -> tuple[float, tuple[float, float], int] | str:
    """Value, interval and n; or, in words, why they cannot be used."""
    if not isinstance(entry, Mapping):
        return "it was not measured"
    value, interval, n = entry.get("value"), entry.get("interval"), entry.get("n")
    if not _is_number(value):
        return f"its value is {value}"
    if not isinstance(interval, list | tuple) or len(interval) != 2 or not all(map(_is_number, interval)):
        return f"its interval is {interval}"
    if not isinstance(n, int) or isinstance(n, bool) or n < min_records:
        return f"it rests on {n} records, fewer than the {min_records} of gate.min_records"
    return float(value), (float(interval[0]), float(interval[1])), n


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _failed(name: str, needed: str, entry: Any, why: str) -> RuleVerdict:
    value = entry.get("value") if isinstance(entry, Mapping) else None
    n = entry.get("n") if isinstance(entry, Mapping) else None
    usable = float(value) if _is_number(value) else None
    return RuleVerdict(name, usable, None, n, needed, False, f"{name} fails: {why}; needed: {needed}.")


def _find(metrics: Mapping[str, Any], *path: str) -> Any:
    found: Any = metrics
    for key in path:
        found = found.get(key) if isinstance(found, Mapping) else None
    return found


def _show(value: float, interval: tuple[float, float]) -> str:
    return f"{value:.3f} [{interval[0]:.3f}, {interval[1]:.3f}]"


def _holds(passed: bool) -> str:
    return "holds" if passed else "does not hold"


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
    found = _find(_manifest(exams), "exams", params.gate.primary_exam, "sha256")
    if found != exam_sha256:
        raise UserError(f"{exams}: holds exam {found}, expected {exam_sha256}; run: dvc checkout data/exams")
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


def _manifest(exams: Path) -> dict[str, Any]:
    try:
        tree: dict[str, Any] = json.loads((exams / "manifest.json").read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{exams / 'manifest.json'}: cannot be read ({error}); run: dvc checkout data/exams") from error
    return tree


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
    client.update_model_version(model, number, describe(params.gate, metrics, version.tags, verdict))
    record_verdict(client, params, version, text.encode(), verdict.passed, verdict.reason, verdict.champion)
