"""A version made again: is it the same, does it read as well, and if not, what was different?"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from components.params import Params
from components.registry.ledger import REPRODUCED, open_ledger
from components.registry.store import opened

if TYPE_CHECKING:
    from components.registry.versions import Version

SUBJECT = "adapter"
FOLDER = "reproductions"  # of the run's artifacts
TAG = "reproduced"
NOTHING = "nothing"  # where one side has no such input

Outcome = Literal["identical", "equivalent", "different"]
Kind = Literal["command", "params", "file", "result", "library", "hardware"]


@dataclass(frozen=True, slots=True)
class Figure:
    """One metric of the exam as it was recorded, and as it was found this time.

    `inside` says whether `found` lies in the recorded interval, or where there is none, equals the recorded value.
    """

    exam: str
    subject: str
    metric: str
    recorded: float | None
    interval: tuple[float, float] | None
    found: float | None
    inside: bool


@dataclass(frozen=True, slots=True)
class Difference:
    """Something that was not as it was when the version was made.

    `kind`: command, params and file are inputs of a stage; result is what a stage made of the same inputs; library and
    hardware are where it ran. `recorded` and `found` are hashes, values or names.
    """

    kind: Kind
    stage: str | None
    name: str
    recorded: str
    found: str

    def __str__(self) -> str:
        where = f"stage {self.stage}, " if self.stage else ""
        return f"{where}{self.name}: {_short(self.recorded)} then, {_short(self.found)} now"


@dataclass(frozen=True, slots=True)
class Reproduction:
    """What came of making a version again.

    `stages` names those that ran, `restored` those whose results were pulled by their recorded hashes; `mended` the
    inputs that the version's commit did not hold yet, and where they were found.
    """

    version: int
    revision: str
    outcome: Outcome
    sentence: str
    adapter_recorded: str
    adapter_found: str
    figures: tuple[Figure, ...]
    differences: tuple[Difference, ...]
    mended: tuple[str, ...]
    stages: tuple[str, ...]
    restored: tuple[str, ...]
    seconds: float
    by: str
    at: str  # ISO 8601, UTC


def compare_metrics(recorded: Mapping[str, Any], found: Mapping[str, Any]) -> tuple[Figure, ...]:
    """Every metric that `recorded` (a metrics.json) has a number for; labels and groups are left out.

    Intervals are of patients drawn anew, so they are wide beside what a GPU's rounding changes.
    """
    return tuple(_figures(recorded, found))


def _figures(recorded: Mapping[str, Any], found: Mapping[str, Any]) -> Iterator[Figure]:
    for exam, subjects in recorded.items():
        for subject, metrics in subjects.items():
            for metric, entry in metrics.items():
                if not isinstance(entry, Mapping) or "value" not in entry:
                    continue
                now = found.get(exam, {}).get(subject, {}).get(metric, {}).get("value")
                value, interval = _number(entry["value"]), entry.get("interval")
                bounds = (float(interval[0]), float(interval[1])) if interval else None
                yield Figure(exam, subject, metric, value, bounds, _number(now), _inside(value, bounds, _number(now)))


def _number(value: Any) -> float | None:
    usable = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if usable else None


def _inside(recorded: float | None, interval: tuple[float, float] | None, found: float | None) -> bool:
    if recorded is None or found is None:
        return recorded is found
    low, high = interval or (recorded, recorded)
    return low <= found <= high or recorded == found


def compare_locks(
    recorded: Mapping[str, Any], found: Mapping[str, Any], stages: Sequence[str]
) -> tuple[Difference, ...]:
    """Which inputs of `stages` were not as they were, and which made another result of the same inputs.

    A file that an earlier one of `stages` made differently is told once, there.

    Args:
        recorded: dvc.lock of the version, parsed.
        found: dvc.lock after `stages` ran again.
        stages: in the order in which they ran.
    """
    differences: list[Difference] = []
    made_otherwise: set[str] = set()
    for name in stages:
        then, now = recorded["stages"][name], found["stages"][name]
        inputs = [*_of_command(name, then, now), *_of_params(name, then, now)]
        before, after = _hashes(then, "deps"), _hashes(now, "deps")
        derived = False
        for path in sorted(before.keys() | after.keys()):
            if before.get(path) == after.get(path):
                continue
            if any(_covers(out, path) for out in made_otherwise):
                derived = True
                continue
            inputs.append(Difference("file", name, path, before.get(path, NOTHING), after.get(path, NOTHING)))
        differences += inputs
        outs_before, outs_after = _hashes(then, "outs"), _hashes(now, "outs")
        for path in sorted(outs_before):
            if outs_before[path] == outs_after.get(path):
                continue
            made_otherwise.add(path)
            if not inputs and not derived:
                differences.append(Difference("result", name, path, outs_before[path], outs_after.get(path, NOTHING)))
    return tuple(differences)


def compare_origins(recorded: Mapping[str, Any], found: Mapping[str, Any]) -> tuple[Difference, ...]:
    """Libraries and hardware, as two adapters' manifests name them."""
    differences = []
    kinds: Mapping[str, Kind] = {"libraries": "library", "hardware": "hardware"}
    for key, kind in kinds.items():
        then, now = recorded.get(key, {}), found.get(key, {})
        for name in sorted(then.keys() | now.keys() if then else ()):  # older manifests do not name their hardware
            pair = str(then.get(name, NOTHING)), str(now.get(name, NOTHING))
            if pair[0] != pair[1]:
                differences.append(Difference(kind, None, name, *pair))
    return tuple(differences)


def judge_rebuild(
    same_adapter: bool, figures: Sequence[Figure], differences: Sequence[Difference]
) -> tuple[Outcome, str]:
    """Same bytes and the same scores: identical. Other bytes, and each score of the adapter in the recorded interval:
    equivalent. Else different. With a sentence that says so, and why it may be."""
    own = [figure for figure in figures if figure.subject == SUBJECT]
    outside = [figure for figure in own if not figure.inside]
    why = _why(differences)
    if not own:
        return "different", "The version's record holds no score of its adapter to compare with."
    if outside:
        worst = outside[0]
        told = "–" if worst.found is None else f"{worst.found:.4f}"
        what = f"{worst.exam} {worst.metric} is {told}, recorded {_bounds(worst)}"
        more = f" and {len(outside) - 1} more" if len(outside) > 1 else ""
        same = "the same bytes" if same_adapter else "other bytes"
        return "different", f"The adapter has {same}, and its scores left the recorded intervals: {what}{more}. {why}"
    if same_adapter:
        exact = all(figure.recorded == figure.found for figure in own)
        scores = f"all {len(own)} of its scores" if exact else f"its {len(own)} scores within the recorded intervals"
        return "identical", f"The adapter has the same bytes, and {scores}{' are the same' if exact else ''}."
    return "equivalent", f"The adapter has other bytes; all {len(own)} scores lie in the recorded intervals. {why}"


def _why(differences: Sequence[Difference]) -> str:
    causes = [one for one in differences if one.kind != "result"]
    if causes:
        more = f"; and {len(causes) - 3} more" if len(causes) > 3 else ""
        return f"Not as it was: {'; '.join(map(str, causes[:3]))}{more}."
    stages = list(dict.fromkeys(one.stage for one in differences if one.stage))
    if stages:
        return f"No input, library or hardware differs: {', '.join(stages)} does not give the same result twice here."
    return "No input, library, hardware or result of a stage differs."


def record_reproduction(params: Params, version: Version, made: Reproduction) -> str:
    """Keep `made` with the version: artifact, tag `reproduced`, and a line in the ledger; returns the artifact's name.

    Raises:
        UserError: the store cannot be opened, or the ledger does not hold.
    """
    name = f"{FOLDER}/{made.at[:19].replace(':', '-')}.json"  # to the second
    with opened(params.registry) as client:
        client.log_text(version.run_id, json.dumps(dataclasses.asdict(made), indent=1), name)
        open_ledger(client, params.registry).record(
            REPRODUCED,
            version.number,
            who=made.by,
            why=made.sentence,
            key=f"reproduced:{version.number}:{made.at}",
            details={
                "outcome": made.outcome,
                "revision": made.revision,
                "adapter_recorded": made.adapter_recorded,
                "adapter_found": made.adapter_found,
                "artifact": name,
            },
        )
        told = f"{made.outcome}, {made.at[:16].replace('T', ' ')} UTC, {made.by}"
        client.set_model_version_tag(version.model, str(version.number), TAG, told)
    return name


def _of_command(stage: str, then: Mapping[str, Any], now: Mapping[str, Any]) -> list[Difference]:
    pair = str(then.get("cmd")), str(now.get("cmd"))
    return [] if pair[0] == pair[1] else [Difference("command", stage, "cmd", *pair)]


def _of_params(stage: str, then: Mapping[str, Any], now: Mapping[str, Any]) -> list[Difference]:
    before, after = dict(_flat(then.get("params", {}))), dict(_flat(now.get("params", {})))
    keys = sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))
    return [
        Difference("params", stage, key, str(before.get(key, NOTHING)), str(after.get(key, NOTHING))) for key in keys
    ]


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _hashes(stage: Mapping[str, Any], kind: str) -> dict[str, str]:
    return {entry["path"]: str(entry.get("md5", NOTHING)) for entry in stage.get(kind, [])}


def _covers(out: str, path: str) -> bool:
    return path == out or path.startswith(f"{out}/") or out.startswith(f"{path}/")


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}…"


def _bounds(figure: Figure) -> str:
    value = "–" if figure.recorded is None else f"{figure.recorded:.4f}"
    return value if figure.interval is None else f"{value} [{figure.interval[0]:.4f}, {figure.interval[1]:.4f}]"
