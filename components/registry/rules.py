"""The gate's rules, applied to what an exam measured: pure, no store is looked at. Closed by default.

Every rule comes down to checks of one form: a value with its interval and n, of which the worse bound must keep a
limit. A bound and not the point, so that luck on a small exam does not pass. A number that is missing, NaN or from too
few records fails. Comparisons are paired: both subjects' answers to the same items, resampled together.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeGuard

from components.evaluation.metrics import LOWER_IS_BETTER
from components.evaluation.power import Power, error_rates
from components.evaluation.scoring import paired_difference
from components.params import (
    EvaluateParams,
    GateParams,
    GroupsRule,
    NonInferiorRule,
    Rule,
    SuperiorRule,
    ThresholdRule,
    to_dict,
)

if TYPE_CHECKING:
    import pandas as pd

VERDICT_FILE = "gate.json"  # among the artifacts of a version's run
MOST_REASON = 2000  # characters, of the 5,000 that a version's page has
SUBJECT, BASE = "adapter", "base"


@dataclass(frozen=True, slots=True)
class RuleVerdict:
    """What one rule found. `value` and `interval` are None where nothing usable was measured; of a rule with several
    checks they are those of the check that came closest to failing, or failed first."""

    name: str
    kind: str
    value: float | None
    interval: tuple[float, float] | None
    n: int | None  # exam records, pages timed, or None
    needed: str
    passed: bool
    sentence: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """All rules together. `champion` is the version compared with, None where there was none; `rules_sha256` names
    the `gate` section it was judged by; `levels` says how sure the intervals are, `power` what the exam can see."""

    passed: bool
    reason: str
    rules: tuple[RuleVerdict, ...]
    champion: int | None
    rules_sha256: str
    levels: str
    power: Power | None


@dataclass(frozen=True, slots=True)
class Champion:
    """The champion as the gate sees it: its answers to the challenger's exam."""

    version: int
    predictions: pd.DataFrame


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known of a version: `reports/metrics.json`, `reports/predictions.parquet`, what it costs by the names of
    `LimitRule.of` as {value, interval, n}, and the champion, None when no version has been promoted yet."""

    metrics: Mapping[str, Any]
    predictions: pd.DataFrame
    costs: Mapping[str, Any]
    champion: Champion | None


@dataclass(frozen=True, slots=True)
class _Check:
    """One number and what is asked of it. `above` is the same as `at_least` without equality."""

    what: str
    entry: Any  # {value, interval, n}, or the words for why there is none
    least_n: int
    unit: str = "records"
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None

    @property
    def needed(self) -> str:
        limits = [("low bound ≥", self.at_least), ("low bound >", self.above), ("high bound ≤", self.at_most)]
        return " and ".join(f"{words} {limit:,.10g}" for words, limit in limits if limit is not None)


@dataclass(frozen=True, slots=True)
class _Found:
    """A check carried out. `slack` is the distance of the bound from its limit, as a share of the interval's width."""

    check: _Check
    value: float | None
    interval: tuple[float, float] | None
    n: int | None
    passed: bool
    slack: float
    words: str


def apply_rules(rules: GateParams, evaluate: EvaluateParams, evidence: Evidence) -> Verdict:
    """The verdict of every applied rule on `evidence`.

    Args:
        rules: `gate` of params.yaml.
        evaluate: resamples, seed and confidence of the comparison with the champion.
        evidence: what was measured. Without a champion the rules about it are left out, and the verdict says so.
    """
    champion = evidence.champion
    asked = {
        name: rule
        for name, rule in rules.applied.items()
        if champion is not None or getattr(rule, "to", "") != "champion"
    }
    found = tuple(_apply(name, rule, rules, evaluate, evidence) for name, rule in asked.items())
    failed = [rule.sentence for rule in found if not rule.passed]
    against = f"champion {champion.version}" if champion else "no champion yet: its rules are left out"
    if not found:
        reason = f"gate.rules holds no rule that applies ({against}): a gate that asks nothing stays closed."
    elif failed:
        reason = _shortened(failed)
    else:
        reason = f"All {len(found)} rules hold ({against})."
    return Verdict(
        passed=bool(found) and not failed,
        reason=reason,
        rules=found,
        champion=champion.version if champion else None,
        rules_sha256=rules_sha256(rules),
        levels=_levels(evaluate, len(found)),
        power=_power(rules, evaluate, evidence),
    )


def _shortened(sentences: Sequence[str]) -> str:
    """As many whole sentences as a tag of MLflow's has room for, and how many more there are."""
    told: list[str] = []
    for sentence in sentences:
        if told and sum(map(len, told)) + len(sentence) > MOST_REASON:
            return " ".join([*told, f"And {len(sentences) - len(told)} more rules fail: see {VERDICT_FILE}."])
        told.append(sentence[:MOST_REASON])
    return " ".join(told)


def rules_sha256(rules: GateParams) -> str:
    """Hash of what decides a verdict."""
    return hashlib.sha256(json.dumps(to_dict(rules), sort_keys=True).encode()).hexdigest()


def _apply(name: str, rule: Rule, rules: GateParams, evaluate: EvaluateParams, evidence: Evidence) -> RuleVerdict:
    note = ""
    if isinstance(rule, ThresholdRule):
        entry = _find(evidence.metrics, rule.exam, SUBJECT, rule.metric)
        what = f"{rule.exam} {rule.metric}"
        checks = [_Check(what, entry, rules.min_records, at_least=rule.min, at_most=rule.max)]
    elif isinstance(rule, SuperiorRule | NonInferiorRule):
        checks = [_comparison(rule, rules, evaluate, evidence)]
    elif isinstance(rule, GroupsRule):
        checks, note = _groups(rule, evidence)
    else:
        entry = evidence.costs.get(rule.of, "it was not measured")
        unit = "pages" if rule.of == "seconds_per_page" else ""
        checks = [_Check(rule.of.replace("_", " "), entry, 1, unit, at_most=rule.max)]
    return _told(name, rule.kind, [_carry_out(check) for check in checks], note)


def _comparison(
    rule: SuperiorRule | NonInferiorRule, rules: GateParams, evaluate: EvaluateParams, evidence: Evidence
) -> _Check:
    exam, metric, limit = rules.primary_exam, rules.primary_metric, 0.0
    if isinstance(rule, SuperiorRule):
        limit = rule.by
    else:
        exam, metric, limit = rule.exam, rule.metric, -rule.margin
    if rule.to == BASE:
        whom, entry = "the base", _find(evidence.metrics, exam, f"{SUBJECT}_minus_{BASE}", metric)
    else:
        assert evidence.champion is not None  # rules about a champion that there is not are left out
        whom = f"champion {evidence.champion.version}"
        entry = _difference(evidence.predictions, evidence.champion.predictions, exam, metric, evaluate)
    what = f"the gain over {whom} in {exam} {metric}"
    return _Check(what, _gain(entry, metric), rules.min_records, "paired records", above=limit)


def _difference(
    mine: pd.DataFrame, theirs: pd.DataFrame, exam: str, metric: str, evaluate: EvaluateParams
) -> dict[str, Any] | str:
    try:
        a, b = mine[mine["subject"] == SUBJECT], theirs[theirs["subject"] == SUBJECT]
        return paired_difference(a, b, exam, metric, evaluate)
    except (ValueError, KeyError) as error:
        return f"the two cannot be compared ({error})"


def _gain(entry: Any, metric: str) -> Any:
    """A difference turned so that more is better."""
    measured = _measured(entry, 0)
    if metric not in LOWER_IS_BETTER or isinstance(measured, str):
        return entry
    value, (low, high), n = measured
    return {"value": -value, "interval": [-high, -low], "n": n}


def _groups(rule: GroupsRule, evidence: Evidence) -> tuple[list[_Check], str]:
    """Two checks a group, floor and gap; and which groups were left out, in words."""
    variable = rule.of.replace("_", " ")
    found = _find(evidence.metrics, rule.exam, SUBJECT, "slices", rule.of)
    groups: Mapping[str, Any] = found if isinstance(found, Mapping) else {}
    small = {
        group: entry.get("n")
        for group, entry in groups.items()
        if isinstance(entry, Mapping) and _is_count(entry.get("n")) and entry["n"] < rule.min_records
    }
    left_out = small if rule.small == "leave_out" else {}
    checks = []
    for group, entry in groups.items():
        if group in left_out:
            continue
        what = f"{rule.exam} {rule.metric} of {variable} '{group}'"
        if rule.min is not None or rule.max is not None:
            measured = _find(entry, rule.metric)
            checks.append(_Check(what, measured, rule.min_records, at_least=rule.min, at_most=rule.max))
        if rule.gap is not None:
            behind = f"how far {variable} '{group}' is behind the others in {rule.exam} {rule.metric}"
            checks.append(_Check(behind, _find(entry, "gap", rule.metric), rule.min_records, at_most=rule.gap))
    if not checks:
        what = f"{rule.exam} {rule.metric} by {variable}"
        asks = rule.min is not None or rule.max is not None or rule.gap is not None
        why = f"no group has the {rule.min_records} records asked for" if asks else "the rule asks nothing"
        checks = [_Check(what, "it was not measured" if not groups else why, rule.min_records, at_most=rule.gap)]
    named = ", ".join(f"'{group}' ({n})" for group, n in left_out.items())
    return checks, f" Left out, with fewer than {rule.min_records} records: {named}." if named else ""


def _carry_out(check: _Check) -> _Found:
    measured = check.entry if isinstance(check.entry, str) else _measured(check.entry, check.least_n)
    if not check.needed:
        measured = "the rule asks nothing: give it a min or a max"
    if isinstance(measured, str):
        value = _find(check.entry, "value")
        n = _find(check.entry, "n")
        known = float(value) if _is_number(value) else None
        words = f"{check.what} fails: {measured}" + (f"; needed: {check.needed}" if check.needed else "")
        return _Found(check, known, None, n if _is_count(n) else None, False, -math.inf, words)
    value, (low, high), n = measured
    distances = [low - check.at_least] if check.at_least is not None else []
    distances += [low - check.above] if check.above is not None else []
    distances += [check.at_most - high] if check.at_most is not None else []
    passed = min(distances) >= 0 and (check.above is None or low > check.above)
    width = high - low
    slack = min(distances) / width if width > 0 else math.copysign(math.inf, min(distances))
    on = f" on {n} {check.unit}" if check.unit else ""
    words = f"{check.what} is {_show(value, (low, high))}{on}: {check.needed} {'holds' if passed else 'does not hold'}"
    return _Found(check, value, (low, high), n, passed, slack, words)


def _told(name: str, kind: str, found: Sequence[_Found], note: str) -> RuleVerdict:
    """One verdict of all checks of a rule: every failure in words, or the check that came closest to one."""
    closest = min(found, key=lambda one: (one.passed, one.slack))
    failed = [one for one in found if not one.passed]
    told = "; ".join(one.words for one in failed or [closest])
    others = f" (the closest of {len(found)} checks)" if len(found) > 1 and not failed else ""
    needed = " and ".join(dict.fromkeys(one.check.needed for one in found if one.check.needed)) or "a limit"
    sentence = f"{name}: {told}{others}.{note}"
    return RuleVerdict(name, kind, closest.value, closest.interval, closest.n, needed, not failed, sentence)


def _measured(entry: Any, least_n: int) -> tuple[float, tuple[float, float], int] | str:
    """Value, interval and n; or, in words, why they cannot be used."""
    if isinstance(entry, str):
        return entry
    if not isinstance(entry, Mapping):
        return "it was not measured"
    value, interval, n = entry.get("value"), entry.get("interval"), entry.get("n")
    if not _is_count(n) or n < least_n:
        return f"it rests on {n} records, fewer than the {least_n} asked for"
    if not _is_number(value):
        return f"its value is {value}"
    if not isinstance(interval, list | tuple) or len(interval) != 2 or not all(map(_is_number, interval)):
        return f"its interval is {interval}"
    low, high = float(interval[0]), float(interval[1])
    if low > high:
        return f"its interval [{low:g}, {high:g}] is upside down"
    return float(value), (low, high), n


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_count(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _find(tree: Any, *path: str) -> Any:
    for key in path:
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree


def _show(value: float, interval: tuple[float, float]) -> str:
    """Three decimals, or the whole number with its thousands where decimals say nothing."""
    numbers = [f"{number:,.0f}" if abs(value) >= 1000 else f"{number:.3f}" for number in (value, *interval)]
    return numbers[0] if interval[0] == interval[1] else f"{numbers[0]} [{numbers[1]}, {numbers[2]}]"


def _levels(evaluate: EvaluateParams, count: int) -> str:
    one_sided = (1 - evaluate.confidence) / 2
    return (
        f"Each interval holds {evaluate.confidence:.0%} of {evaluate.resamples:,} bootstrap draws of whole patients, "
        f"so a rule whose limit is just missed in truth passes by chance about {one_sided:.1%} of the time. All "
        f"{count} rules must hold together, so the gate as a whole lets such a version through no more often: nothing "
        "is corrected for their number. Many rules make a good version fail more often, not a bad one pass."
    )


def _power(rules: GateParams, evaluate: EvaluateParams, evidence: Evidence) -> Power | None:
    """The error rates of `superior` against the champion, or where there is none against the base."""
    if rules.simulations == 0:
        return None
    mine = evidence.predictions[evidence.predictions["subject"] == SUBJECT]
    if evidence.champion is not None:
        theirs = evidence.champion.predictions
        theirs, rival = theirs[theirs["subject"] == SUBJECT], f"champion {evidence.champion.version}"
    else:
        theirs, rival = evidence.predictions[evidence.predictions["subject"] == BASE], "the base"
    limits = [r.by for r in rules.applied.values() if isinstance(r, SuperiorRule) and (r.to == "champion")]
    try:
        return error_rates(
            mine,
            theirs,
            rules.primary_exam,
            rules.primary_metric,
            evaluate,
            gain=rules.detect,
            by=max(limits, default=0.0),
            simulations=rules.simulations,
            rival=rival,
        )
    except (ValueError, KeyError):
        return None  # the rules say what is missing
