"""params.yaml read once into frozen dataclasses, one per section.

A stage calls `load_params()` and passes whole sections down. Every key must be present, every
key must be known and every value must have the declared type: a misspelt key must never fall back
to a default in silence.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

PARAMS_FILE = Path("params.yaml")


class UserError(ValueError):
    """An error a user can cause and mend: its text names what was found, expected, and to do."""


@dataclass(frozen=True, slots=True)
class RecordsParams:
    source: str  # simulator | ptbxl
    source_dir: str  # folder of the source: cohort.yaml, or PhysioNet's layout
    sampling_rate_hz: int  # rate to read (ptbxl: 100 or 500) or to simulate at
    seconds: float  # shortest usable record
    max_bad_fraction: float  # more records set aside than this stops the stage
    limit: int | None  # at most so many records of each fold; null = all
    shard_records: int  # records in one Parquet shard


@dataclass(frozen=True, slots=True)
class PagesParams:
    width_px: int
    height_px: int
    train_style: str  # name in components.pages.spec.STYLES
    canonical_fraction: float  # share of training pages drawn in the exam's own style


@dataclass(frozen=True, slots=True)
class InstructParams:
    seed: int
    items_per_record: int


@dataclass(frozen=True, slots=True)
class ViewParams:
    style: str  # name in components.pages.spec.STYLES
    layout: str  # name in components.pages.layout.LAYOUTS

    @property
    def name(self) -> str:
        return f"{self.style} {self.layout}"


@dataclass(frozen=True, slots=True)
class ExamsParams:
    seed: int
    width_px: int
    height_px: int
    style: str  # page style of the exam, name in STYLES
    min_positives: int  # statements: a label needs so many positives in the test split
    views: tuple[ViewParams, ...]  # exam 'layouts': test records drawn anew in each
    view_records: int | None  # so many test records of it; null = all
    report_records: int | None  # exam 'reports': so many test records; null = all
    shard_pages: int


@dataclass(frozen=True, slots=True)
class ModelParams:
    base: str  # a shipped base's name, a local folder, or a hub id
    revision: str | None  # commit of a hub base; null for a shipped base or a folder


@dataclass(frozen=True, slots=True)
class LoraParams:
    rank: int
    alpha: int
    dropout: float
    rslora: bool  # scale by alpha / sqrt(rank) instead of alpha / rank (arXiv 2312.03732)
    dora: bool  # a trained magnitude beside the low-rank direction (arXiv 2402.09353)
    targets: tuple[str, ...]  # kinds: linear, convolution
    exclude: tuple[str, ...]  # parts of module names left out


@dataclass(frozen=True, slots=True)
class QuantizationParams:
    kind: str  # nf4 | fp4 (arXiv 2305.14314)
    double: bool  # the quantisation constants are quantised too


@dataclass(frozen=True, slots=True)
class PartialParams:
    blocks: int  # the last so many blocks of the language model


@dataclass(frozen=True, slots=True)
class LaunchParams:
    kind: str  # single | ddp | fsdp2 | zero2 | zero3
    processes: int  # on each machine
    machines: int
    rendezvous: str | None  # host:port of the first machine; null on one machine


@dataclass(frozen=True, slots=True)
class PriceRow:
    device: str  # as torch names it; 'cpu' for a run without an accelerator
    usd_per_hour: float  # of one device


@dataclass(frozen=True, slots=True)
class TrainParams:
    seed: int
    method: str  # lora | qlora | partial | full
    steps: int
    batch_size: int  # pages or reports in an optimizer step, all processes together
    gradient_accumulation: int  # parts a step's batch is worked through in, on each process
    gradient_checkpointing: bool
    questions_per_page: int
    max_tokens: int  # of one sequence: longer ones are an error, text is packed up to it
    learning_rate: float
    warmup_fraction: float
    weight_decay: float
    max_grad_norm: float
    optimizer: str  # auto | adamw | paged_adamw_32bit | paged_adamw_8bit
    precision: str  # auto | bf16 | fp32
    threads: int
    workers: int  # processes that draw pages; 0 = the trainer's own
    eval_every: int  # steps between looks at the validation split
    save_every: int  # steps between checkpoints
    keep_checkpoints: int
    samples: int  # sample answers logged at each look
    diverged_at: float  # a mean loss so many times the lowest one stops the run
    lora: LoraParams
    quantization: QuantizationParams
    partial: PartialParams
    modules_in_full: tuple[str, ...]  # parts of names: trained whole beside LoRA (a projector)
    frozen: tuple[str, ...]  # parts of names: never trained by partial and full
    launch: LaunchParams
    prices: tuple[PriceRow, ...]

    @property
    def pages_in_a_look(self) -> int:
        """Pages of the validation split scored at a time: without gradients, four parts fit where one trains."""
        part = self.batch_size // (self.gradient_accumulation * self.launch.processes * self.launch.machines)
        return max(1, min(32, 4 * part))


@dataclass(frozen=True, slots=True)
class BaselineParams:
    seed: int
    steps: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    precision: str
    threads: int
    eval_every: int


@dataclass(frozen=True, slots=True)
class EvaluateParams:
    seed: int
    resamples: int  # bootstrap resamples, by patient
    confidence: float
    batch_size: int
    precision: str
    threads: int


@dataclass(frozen=True, slots=True)
class RegistryParams:
    model: str  # registered model's name in MLflow
    tracking_uri: str
    experiment: str
    ledger: str  # folder or s3://BUCKET/PREFIX


Rival = Literal["base", "champion"]


@dataclass(frozen=True, slots=True)
class ThresholdRule:
    """The worse bound of the adapter's interval: the low one at least `min`, the high one at most `max`."""

    kind: Literal["threshold"]
    exam: str
    metric: str
    min: float | None = None
    max: float | None = None


@dataclass(frozen=True, slots=True)
class SuperiorRule:
    """On the primary metric, the low bound of the paired gain over the rival is above `by`."""

    kind: Literal["superior"]
    to: Rival
    by: float


@dataclass(frozen=True, slots=True)
class NonInferiorRule:
    """On any metric, the low bound of the paired gain over the rival is above -`margin`."""

    kind: Literal["non_inferior"]
    to: Rival
    exam: str
    metric: str
    margin: float


@dataclass(frozen=True, slots=True)
class GroupsRule:
    """In every group of the records, as a threshold; and no group is worse than all others by more than `gap`."""

    kind: Literal["groups"]
    exam: str
    of: Literal["sex", "age_group", "source", "quality", "layout"]
    metric: str
    min_records: int  # a group needs so many
    small: Literal["fail", "leave_out"]  # what a group with fewer does
    min: float | None = None
    max: float | None = None
    gap: float | None = None


@dataclass(frozen=True, slots=True)
class LimitRule:
    """What the adapter costs: a fact, or the high bound of what was measured."""

    kind: Literal["limit"]
    of: Literal["adapter_bytes", "seconds_per_page", "training_usd"]
    max: float


Rule = ThresholdRule | SuperiorRule | NonInferiorRule | GroupsRule | LimitRule


@dataclass(frozen=True, slots=True)
class GateParams:
    min_records: int  # fewer exam records than this fails: too uncertain
    primary_exam: str
    primary_metric: str
    detect: float  # the true gain whose chance of being seen is told with the verdict
    simulations: int  # made-up pairs of models behind the gate's error rates
    rules: Mapping[str, Rule | None]  # by name; null: not applied

    @property
    def applied(self) -> dict[str, Rule]:
        """The rules by name, without those set to null."""
        return {name: rule for name, rule in self.rules.items() if rule is not None}


@dataclass(frozen=True, slots=True)
class ApprovalParams:
    approvers: tuple[str, ...]  # who may approve; empty = anyone
    needed: int  # approvals by so many different people
    trainer_may_approve: bool
    signature_required: bool


@dataclass(frozen=True, slots=True)
class SigningParams:
    key: str | None  # private key that signs what is registered; $ECG_SIGNING_KEY goes before it
    trusted: tuple[str, ...]  # public keys whose signatures hold; $ECG_TRUSTED_KEYS goes before it


@dataclass(frozen=True, slots=True)
class AlertsParams:
    blocks: tuple[str, ...]  # Prefect's notification blocks, TYPE/NAME; the addresses are in the blocks
    approval_days: float  # an approval that waits longer is told
    budget_usd_per_month: float | None  # of training, by UTC's calendar month; null: not watched
    mlflow_url: str | None  # of MLflow's pages; null: registry.tracking_uri where that is http
    prefect_url: str | None  # of Prefect's pages; null: PREFECT_UI_URL


@dataclass(frozen=True, slots=True)
class ComputeParams:
    """Where records and pages are worked on. No stage's output depends on it, so no stage lists it in dvc.yaml."""

    executor: str  # local | tcp://HOST:PORT | tls://HOST:PORT of a Dask scheduler; $ECG_EXECUTOR goes before it
    workers: int | None  # processes of the local executor; null: one a core, where it pays


@dataclass(frozen=True, slots=True)
class DriftEffects:
    share: float  # Cohen's h of a label, a flag, a sex
    value: float  # Kolmogorov's D of an interval, an age, a noise
    pages: float  # share of the mean distance between embeddings


@dataclass(frozen=True, slots=True)
class DriftParams:
    level: float  # chance of a false alarm of a whole comparison
    min_records: int  # of different patients, on either side; with fewer it cannot tell
    min_positives: int  # a label or flag is tested when so many patients of both sides have it
    min_effect: DriftEffects  # smaller shifts raise no alarm, however sure
    encoder: str | None  # a base with a tower, or a page CNN's folder; null: pages are not compared
    max_pages: int  # drawn and embedded, of either side
    seed: int
    retrain: bool  # drift starts the deployment retrain/retrain


@dataclass(frozen=True, slots=True)
class RetentionParams:
    keep_versions: int  # so many of the newest that failed, were rejected or passed over stay whole
    keep_days: int  # and all of them that the ledger spoke of within so many days
    runs_days: int  # MLflow runs that led to no version
    checkpoints_days: int  # since the last one was written
    experiments_days: int | None  # of `ecg ablate` and `dvc exp run`; null: they stay
    logs_days: int


@dataclass(frozen=True, slots=True)
class Params:
    recipe: str
    records: RecordsParams
    pages: PagesParams
    instruct: InstructParams
    exams: ExamsParams
    model: ModelParams
    train: TrainParams
    baseline: BaselineParams
    evaluate: EvaluateParams
    registry: RegistryParams
    gate: GateParams
    approval: ApprovalParams
    signing: SigningParams
    alerts: AlertsParams
    compute: ComputeParams
    drift: DriftParams
    retention: RetentionParams


Section = TypeVar("Section")


def load_params(path: Path = PARAMS_FILE) -> Params:
    """Read and check `path`.

    Raises:
        UserError: the file is missing or no YAML, or a key is unknown, missing or of a wrong type.
    """
    return parse_params(load_yaml(path), str(path))


def parse_params(tree: Mapping[str, Any], origin: str = "params.yaml") -> Params:
    """Turn a mapping (parsed YAML) into `Params`; `origin` names it in errors."""
    return _parse(Params, tree, "", origin)


def load_yaml(path: Path) -> dict[str, Any]:
    """Parse a YAML file whose top level is a mapping.

    Raises:
        UserError: missing file, broken YAML, or no mapping at the top.
    """
    try:
        text = path.read_text()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); expected a YAML file there") from error
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{path}: is not valid YAML: {error}") from error
    if not isinstance(tree, dict):
        raise UserError(f"{path}: found {type(tree).__name__} at the top, expected a mapping of sections")
    return tree


def to_dict(section: Any) -> dict[str, Any]:
    """The plain mapping of a section (tuples become lists), as written into manifests."""
    return {key: _plain(value) for key, value in dataclasses.asdict(section).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    return value


def _parse(section: type[Section], tree: Any, prefix: str, origin: str) -> Section:
    if not isinstance(tree, Mapping):
        raise UserError(f"{origin}: {prefix or 'the top level'} holds {tree!r}, expected a mapping of keys")
    hints = typing.get_type_hints(section)
    fields = {field.name: field for field in dataclasses.fields(section)}  # type: ignore[arg-type]
    for key in tree:
        if key not in fields:
            raise UserError(f"{origin}: unknown key '{_dotted(prefix, key)}'{nearest(str(key), fields, prefix)}")
    values: dict[str, Any] = {}
    for name, field in fields.items():
        if name in tree:
            values[name] = _convert(hints[name], tree[name], _dotted(prefix, name), origin)
        elif field.default is dataclasses.MISSING:
            raise UserError(f"{origin}: key '{_dotted(prefix, name)}' is missing; expected {_describe(hints[name])}")
    return section(**values)


def _convert(hint: Any, value: Any, key: str, origin: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return _parse(hint, value, key, origin)  # type: ignore[arg-type]
    args = typing.get_args(hint)
    if typing.get_origin(hint) is types.UnionType:
        if value is None and type(None) in args:
            return None
        kinds = [arg for arg in args if arg is not type(None)]
        return _convert(kinds[0] if len(kinds) == 1 else _of_kind(kinds, value, key, origin), value, key, origin)
    if typing.get_origin(hint) is Mapping:
        if isinstance(value, Mapping):
            return {str(name): _convert(args[1], item, _dotted(key, name), origin) for name, item in value.items()}
    elif typing.get_origin(hint) is tuple:
        if isinstance(value, (list, tuple)):
            return tuple(_convert(args[0], item, f"{key}[{i}]", origin) for i, item in enumerate(value))
    elif typing.get_origin(hint) is Literal:
        if isinstance(value, str) and value in args:
            return value
    elif hint is float:
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
    elif hint is int:
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    elif isinstance(value, hint):
        return value
    hint_text = ""
    if isinstance(value, str) and hint is float and _is_number(value):
        hint_text = f"; YAML reads {value} as text: write it with a dot, as {float(value):.1e}"
    raise UserError(
        f"{origin}: key '{key}' holds {value!r} ({type(value).__name__}), expected {_describe(hint)}{hint_text}"
    )


def _of_kind(sections: typing.Sequence[Any], value: Any, key: str, origin: str) -> Any:
    """The section, of several that a key may hold, that its own key `kind` names."""
    kinds = {typing.get_args(typing.get_type_hints(section)["kind"])[0]: section for section in sections}
    found = value.get("kind") if isinstance(value, Mapping) else value
    if not isinstance(found, str) or found not in kinds:
        raise UserError(f"{origin}: key '{_dotted(key, 'kind')}' holds {found!r}{nearest(str(found), kinds)}")
    return kinds[found]


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _describe(hint: Any) -> str:
    args = typing.get_args(hint)
    if typing.get_origin(hint) is tuple:
        return f"a list of {_describe(args[0])}"
    if typing.get_origin(hint) is Mapping:
        return f"a mapping of names, each with {_describe(args[1])}"
    if typing.get_origin(hint) is Literal:
        return f"one of {', '.join(args)}"
    if typing.get_origin(hint) is types.UnionType:
        return " or ".join("null" if arg is type(None) else _describe(arg) for arg in args)
    if dataclasses.is_dataclass(hint):
        return "a mapping of keys"
    return {float: "a number", int: "a whole number", str: "text", bool: "true or false"}.get(hint, str(hint))


def _dotted(prefix: str, key: Any) -> str:
    return f"{prefix}.{key}" if prefix else str(key)


def nearest(word: str, known: typing.Iterable[str], prefix: str = "") -> str:
    """'; did you mean …?' with the nearest of `known`, or the whole list when nothing is near."""
    options = list(known)
    close = difflib.get_close_matches(word, options, n=1, cutoff=0.5)
    if close:
        return f"; did you mean '{_dotted(prefix, close[0])}'?"
    return f"; known here: {', '.join(sorted(options))}"
