"""Stage `card`: the model card, as Markdown and as one HTML file that carries its pictures.

    python -m components.reporting.card

The sections follow Mitchell et al., "Model Cards for Model Reporting", 2019, doi 10.1145/3287560.3287596.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from components.exams.frozen import Exams, open_exam
from components.instruct.questions import REPORT_QUESTION
from components.instruct.report import name as statement_name
from components.instruct.report import statements_in_order
from components.params import Params, UserError, load_params
from components.records.statements import SUPERCLASS_DESCRIPTIONS, SUPERCLASSES
from components.records.store import RecordStore
from components.reporting.plots import SUBJECTS, plot_class_auc, plot_roc, plot_training
from components.storage import fresh_folder

RECORDS = Path("data/records")
EXAMS = Path("data/exams")
ADAPTER = Path("models/adapter")
BASELINE = Path("models/page_cnn")
REPORTS = Path("reports")
OUT = Path("reports/card")
SAMPLES = 6
METRICS: dict[str, str] = {"auc_macro": "AUC", "f1_macro": "F1", "hamming_loss": "Hamming loss"}
CALIBRATION: dict[str, str] = {"brier": "Brier score", "ece": "ECE"}
GROUPED_BY = {"sex": "sex", "age_group": "age", "source": "source", "quality": "signal quality", "layout": "page"}
EXAM_TITLES = {"super": "The five superclasses", "statements": "Statements"}


def write_card(
    params: Params,
    records: Path = RECORDS,
    exams: Path = EXAMS,
    adapter: Path = ADAPTER,
    baseline: Path = BASELINE,
    reports: Path = REPORTS,
    out: Path = OUT,
) -> Path:
    """Write `card.md`, `card.html`, `plots/` and `pages/` into `out`; returns the path of `card.md`.

    The adapter reads the sample pages anew, to write its report of each.

    Raises:
        UserError: what the card is about is missing or damaged; names the file.
    """
    from components.models.adapters import verify_adapter

    store, exam = RecordStore(records), open_exam(exams)
    about = verify_adapter(adapter)
    cnn = _read_json(baseline / "manifest.json", "baseline")
    metrics = _read_json(reports / "metrics.json", "evaluate")
    predictions = pd.read_parquet(_existing(reports / "predictions.parquet", "evaluate"))
    history = pd.read_csv(_existing(reports / "training.csv", "train"))
    with fresh_folder(out) as folder:
        (folder / "plots").mkdir()
        plot_roc(predictions, folder / "plots" / "roc.png")
        asked = {name: scores for name, scores in metrics.items() if name in EXAM_TITLES}
        for name, scores in asked.items():
            plot_class_auc(scores, folder / "plots" / f"auc_{name}.png")
        plot_training(history, folder / "plots" / "training.png")
        sections = [
            _opening(params, about, metrics),
            _use(store),
            _base_and_recipe(params, about),
            _data(params, store, exam),
            _training(params, about, cnn),
            *(_exam(name, scores, exam) for name, scores in asked.items()),
            _groups(metrics),
            _samples(params, store, exam, predictions, adapter, folder),
            _limits(store, exam, metrics),
            _rebuild(params, about, exam),
        ]
        text = "\n\n".join(sections) + "\n"
        (folder / "card.md").write_text(text)
        (folder / "card.html").write_text(_html(text, folder))
    return out / "card.md"


def _opening(params: Params, about: Mapping[str, Any], metrics: Mapping[str, Any]) -> str:
    scores = metrics["super"]
    gain = scores["adapter_minus_base"]["auc_macro"]
    return f"""# {params.registry.model}: a LoRA adapter that reads ECG pages

**{_shown(scores["adapter"]["auc_macro"])}** macro AUC over the five superclasses on {gain["n"]} test records,
against {_shown(scores["base"]["auc_macro"])} for the base it adapts and
{_shown(scores["page_cnn"]["auc_macro"])} for an image CNN trained on the same pages.
Adapter minus base, paired: {_shown(gain, sign=True)}.

Asked about a picture of a 12-lead ECG, the adapter answers yes or no to single findings and writes a short report.
Adapter `{about["adapter_sha256"][:12]}`, recipe `{params.recipe}`."""


def _use(store: RecordStore) -> str:
    return f"""## Intended use

For developing and comparing ways to retrain ECG readers: to see whether new records make an adapter better, by how
much and for which findings.

**Not a medical device.** It has not been examined with patients of any clinic that would use it, no clinician has
judged its reports, and it must not inform the care of anyone. {_provenance(store)}"""


def _provenance(store: RecordStore) -> str:
    counts = store.manifest["counts"]["provenance"]
    simulated, total = counts.get("simulator", 0), len(store)
    if simulated == total:
        return (
            f"All {total:,} patients' ECGs behind this card are **simulated**: its numbers say how well the machinery "
            "works, and nothing about real patients."
        )
    if simulated:
        return f"{simulated:,} of its {total:,} records are **simulated**."
    return f"All {total:,} records are real ECGs; no patient is simulated."


def _base_and_recipe(params: Params, about: Mapping[str, Any]) -> str:
    lora, train = params.train.lora, params.train
    rows = [
        ("base", f"`{about['base']}`" + (f" at `{about['revision']}`" if about.get("revision") else "")),
        ("base weights", f"`{about['weights_sha256'][:16]}`"),
        ("method", f"LoRA rank {lora.rank}, alpha {lora.alpha}, dropout {lora.dropout:g}, on "
                   f"{' and '.join(lora.targets)} layers ({len(about['modules'])} modules, "
                   f"{about['trainable_parameters']:,} parameters)"),
        ("optimisation", f"AdamW, {train.steps} steps of {train.batch_size} pages with up to "
                         f"{train.questions_per_page} questions each, learning rate {train.learning_rate:g}, "
                         f"cosine, seed {train.seed}"),
        ("pages", f"drawn on the fly at {params.pages.width_px} x {params.pages.height_px}, style "
                  f"`{params.pages.train_style}`, {params.pages.canonical_fraction:.0%} in the exam's style"),
    ]  # fmt: skip
    return "## Base and recipe\n\n" + _table(["", ""], rows)


def _data(params: Params, store: RecordStore, exam: Exams) -> str:
    counts = store.manifest["counts"]
    labels = [
        (f"{label} ({SUPERCLASS_DESCRIPTIONS[label]})", *(counts["superclass"][label][s] for s in counts["split"]))
        for label in SUPERCLASSES
    ]
    rows = [("records", *counts["split"].values()), *labels]
    provenance = ", ".join(f"{kind} {count:,}" for kind, count in counts["provenance"].items())
    notes = "".join(f"\n- {note}" for note in store.manifest["notes"])
    dropped = store.manifest["dropped"]
    reasons = ", ".join(f"{reason} {count}" for reason, count in dropped["by_reason"].items())
    left_out = exam.manifest["exams"]["super"]["n_records_left_out"]
    return f"""## Data

Source `{params.records.source}`: {len(store):,} records of {store.manifest["patients"]:,} patients, split by patient.
Labels were given by: {provenance}. Set aside as unreadable: {dropped["total"]}{f" ({reasons})" if reasons else ""}.
Validation and test records without a diagnostic statement, not asked about superclasses: {left_out}.
{notes}

{_table(["", *counts["split"]], rows)}"""


def _training(params: Params, about: Mapping[str, Any], cnn: Mapping[str, Any]) -> str:
    best = about.get("validation_auc")
    kept = f" with validation macro AUC {best:.3f}" if isinstance(best, float) else ""
    return f"""## Training

The step kept is {about.get("chosen_step", "the last")} of {params.train.steps}{kept}, chosen on the validation split
(fold 9); the test split (fold 10) was not looked at. The page CNN ({cnn["parameters"]:,} parameters, trained from
scratch on pages of the same styles) was kept at step {cnn["best_step"]} of {params.baseline.steps} in the same way.

![Loss, learning rate and validation AUC](plots/training.png)"""


def _exam(name: str, scores: Mapping[str, Any], exam: Exams) -> str:
    described = exam.manifest["exams"][name]
    subjects = [subject for subject in SUBJECTS if subject in scores]
    by_label = {s: scores[s]["per_class"] for s in subjects}
    per_class = [
        (label, by_label["adapter"][label]["positives"], *(_shown(by_label[s][label]["auc"]) for s in subjects),
         _shown(by_label["adapter"][label]["f1"]))
        for label in described["labels"]
    ]  # fmt: skip
    roc = "\n\n![ROC of each superclass](plots/roc.png)" if name == "super" else ""
    return f"""## Exam: {EXAM_TITLES.get(name, name)}

{described["n_records"]["test"]} test records, {len(described["labels"])} labels ({described["rule"]}).
Intervals: bootstrap over patients. First by the probability of "yes", F1 and Hamming loss with thresholds from the
validation split:

{_overall(scores, "")}

Then by the greedy answer, yes or no (the AUC of such an answer is the balanced accuracy):

{_overall(scores, "_hard")}

Are the probabilities what they say? Brier score and expected calibration error (ten bins), lower is better:

{_calibration(scores, subjects)}

Each label, by probability:

{_table(["label", "positive", *(f"AUC {SUBJECTS[s][0]}" for s in subjects), "F1 adapter"], per_class)}

{_better_and_worse(scores)}

![AUC of each label](plots/auc_{name}.png){roc}"""


def _overall(scores: Mapping[str, Any], suffix: str) -> str:
    """Subjects and their paired differences, one row each."""
    titles = {s: title for s, (title, _) in SUBJECTS.items()} | {
        "adapter_minus_base": "adapter minus base",
        "adapter_minus_page_cnn": "adapter minus page CNN",
    }
    rows = [
        (
            title,
            *(_shown(scores[subject][metric + suffix], sign="minus" in subject) for metric in METRICS),
            scores[subject]["auc_macro"]["n"],
        )
        for subject, title in titles.items()
        if subject in scores
    ]
    return _table(["", *METRICS.values(), "n"], rows)


def _calibration(scores: Mapping[str, Any], subjects: Sequence[str]) -> str:
    rows = [(SUBJECTS[s][0], *(_shown(scores[s][metric]) for metric in CALIBRATION)) for s in subjects]
    return _table(["", *CALIBRATION.values()], rows)


def _groups(metrics: Mapping[str, Any]) -> str:
    """The adapter by patient group, on other machines' pages, and in its own words."""
    parts = ["## Patient groups, other pages, written reports"]
    for name, about in (
        ("super", "patient groups"),
        ("layouts", "the same test records, drawn as other machines would"),
    ):
        slices = metrics.get(name, {}).get("adapter", {}).get("slices", {})
        rows = [
            (GROUPED_BY[by], group, found["n"], _shown(found["auc_macro"]),
             _shown(found["gap"]["auc_macro"], sign=True) if "gap" in found else "–")
            for by, groups in slices.items() if name == "super" or by == "layout" for group, found in groups.items()
        ]  # fmt: skip
        if rows:
            head = ["by", "group", "n", "AUC adapter", "behind all others by"]
            parts.append(f"Superclasses, {about}:\n\n{_table(head, rows)}")
    reports = metrics.get("reports", {}).get("adapter")
    if reports:
        parts.append(
            f"Of the statements in {reports['hallucinated']['n']} written reports, {_shown(reports['hallucinated'])} "
            f"are not true of the record; of the true ones, {_shown(reports['omitted'])} are not written. Statements "
            "are found by their names; what a report says in other words is not seen."
        )
    return "\n\n".join(parts)


def _better_and_worse(scores: Mapping[str, Any]) -> str:
    """Which labels the adapter reads better or worse than the base, by the interval of the paired difference."""
    found: dict[str, list[str]] = {"better": [], "worse": [], "not told apart": []}
    for label, row in scores["adapter_minus_base"]["per_class"].items():
        low, high = row["auc"]["interval"] or (0.0, 0.0)
        kind = "better" if low > 0 else "worse" if high < 0 else "not told apart"
        found[kind].append(f"{label} {_shown(row['auc'], sign=True)}")
    lines = [f"- **{kind}**: {', '.join(labels) or 'none'}" for kind, labels in found.items()]
    return "Adapter against base, AUC of each label by the interval of the paired difference:\n\n" + "\n".join(lines)


def _samples(
    params: Params, store: RecordStore, exam: Exams, predictions: pd.DataFrame, adapter: Path, folder: Path
) -> str:
    from components.reading.reader import Reader

    chosen = choose_samples(exam.items("super", "test"), params.exams.seed)
    settings = params.evaluate
    reader = Reader.load(params.model.base, adapter, params.model.revision, settings.threads, settings.precision)
    reports = reader.answer([exam.page(record_id) for record_id in chosen], REPORT_QUESTION)
    answers = predictions[(predictions["subject"] == "adapter") & (predictions["exam"] == "super")]
    (folder / "pages").mkdir()
    parts = [
        f"""## Sample pages

{len(chosen)} test records, one drawn for each superclass by a hash of its id and the rest likewise: not chosen by
how well they were answered. P(yes) is the adapter's probability; its answer is the greedy one."""
    ]
    for record_id, report in zip(chosen, reports, strict=True):
        page, suffix = exam.page_file(record_id)
        (folder / "pages" / f"{record_id}.{suffix}").write_bytes(page)
        record = store.record(store.position(record_id), signal=False)
        stated = ", ".join(statement_name(code) for code in statements_in_order(record.labels))
        rows = [
            (row.label, "yes" if row.truth else "no", f"{row.score:.2f}", row.answer,
             "right" if row.verdict == row.truth else "**wrong**")
            for row in answers[answers["record_id"] == record_id].itertuples()
        ]  # fmt: skip
        parts.append(
            f"""### {record_id}

![Page of {record_id}](pages/{record_id}.{suffix})

- **stated** ({record.label_provenance}): {stated}
- **adapter's report**: {_plain(report)}

{_table(["label", "truth", "P(yes)", "answer", ""], rows)}"""
        )
    return "\n\n".join(parts)


def choose_samples(items: pd.DataFrame, seed: int, count: int = SAMPLES) -> list[str]:
    """Record ids: for each label the positive record that comes first in an order by hash, then more in that order."""

    def place(record_id: str) -> str:
        return hashlib.sha256(f"{seed}:{record_id}".encode()).hexdigest()

    chosen: list[str] = []
    for label in sorted(items["label"].unique()):
        positives = set(items[(items["label"] == label) & items["truth"]]["record_id"]) - set(chosen)
        chosen += sorted(positives, key=place)[:1]
    rest = sorted(set(items["record_id"]) - set(chosen), key=place)
    return (chosen + rest)[:count]


def _limits(store: RecordStore, exam: Exams, metrics: Mapping[str, Any]) -> str:
    limits = [
        _provenance(store),
        "Pages are drawn, in a few styles: photographs of real paper were not tried.",
        "A label counts as absent when it is not stated, which is not the same as being looked for and not found.",
        "Thresholds are chosen on the validation split; another clinic's case mix would want others, and probabilities "
        "calibrated anew.",
        "Rare findings are not examined: the second exam asks only about statements with enough positives.",
        "The report is free text from a small model: it states findings that are not there, as often as is told above.",
    ]
    for name, scores in metrics.items():
        for label, why in scores["adapter"].get("undefined", {}).items():
            limits.append(f"Exam {name}: {label} has no AUC, since {why} in the test split; macro values leave it out.")
    small = exam.manifest["exams"]["super"]["n_records"]["test"]
    limits.insert(1, f"The test split has {small} records, so differences smaller than the intervals say nothing.")
    return "## Limits\n\n" + "\n".join(f"- {limit}" for limit in limits)


def _rebuild(params: Params, about: Mapping[str, Any], exam: Exams) -> str:
    rows = [
        ("records", f"`{exam.manifest['records_sha256']}`"),
        *((f"exam {name}", f"`{described['sha256']}`") for name, described in exam.manifest["exams"].items()),
        ("base weights", f"`{about['weights_sha256']}`"),
        ("adapter", f"`{about['adapter_sha256']}`"),
    ]
    libraries = ", ".join(f"{name} {version}" for name, version in about.get("libraries", {}).items())
    return f"""## How to rebuild

In a clone at this version's revision:

    make install
    dvc repro

rebuilds everything up to this card from `params.yaml` (recipe `{params.recipe}`, source `{params.records.source_dir}`).
On the same kind of machine the adapter has the same bytes. SHA-256:

{_table(["what", "sha256"], rows)}

Libraries: {libraries}."""


def _shown(entry: Mapping[str, Any], sign: bool = False) -> str:
    """`0.841 [0.814, 0.867]`, or a dash where nothing is defined."""
    if entry["value"] is None:
        return "–"
    form = "+.3f" if sign else ".3f"
    value, *bounds = (format(number, form).replace("-", "−") for number in (entry["value"], *(entry["interval"] or ())))
    return f"{value} [{', '.join(bounds)}]" if bounds else value


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [list(map(str, head)), ["---"] * len(head), *(list(map(str, row)) for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _plain(text: str) -> str:
    """A model's text, safe inside Markdown: one line, and nothing that would be read as markup."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", " ".join(text.split())) or "(no text)"


def _html(markdown: str, folder: Path) -> str:
    """The card as one file: pictures inlined, no outside style or script."""
    from markdown_it import MarkdownIt

    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(markdown)
    body = body.replace("<table>", '<div class="table"><table>').replace("</table>", "</table></div>")

    def inlined(match: re.Match[str]) -> str:
        data = base64.b64encode((folder / match[1]).read_bytes()).decode()
        kind = "png" if match[1].endswith("png") else "jpeg"
        return f'src="data:image/{kind};base64,{data}"'

    body = re.sub(r'src="((?:plots|pages)/[^"]+)"', inlined, body)
    title = markdown.splitlines()[0].removeprefix("# ")
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
{CSS}</style>
</head>
<body>
{body}</body>
</html>
"""


CSS = """\
body { max-width: 58rem; margin: 2rem auto 4rem; padding: 0 1.2rem; color: #1f2328; background: #fff;
       font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif; }
h1, h2, h3 { line-height: 1.25; margin: 2.2rem 0 .8rem; }
h1 { font-size: 1.8rem; margin-top: 0; }
h2 { font-size: 1.3rem; padding-bottom: .25rem; border-bottom: 1px solid #d8dee4; }
h3 { font-size: 1.05rem; }
img { max-width: 100%; height: auto; }
.table { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .86rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid #e4e8ec; text-align: left; white-space: nowrap; }
th { border-bottom: 2px solid #c3cad1; font-weight: 600; }
code { font-size: .88em; background: #f3f5f7; padding: .1em .3em; border-radius: 3px; overflow-wrap: anywhere; }
pre { background: #f3f5f7; padding: .8rem 1rem; border-radius: 6px; overflow-x: auto; }
pre code { padding: 0; background: none; }
"""


def _read_json(path: Path, stage: str) -> dict[str, Any]:
    try:
        tree: dict[str, Any] = json.loads(_existing(path, stage).read_text())
    except ValueError as error:
        raise UserError(f"{path}: is no JSON ({error}); make it again: dvc repro --force {stage}") from error
    return tree


def _existing(path: Path, stage: str) -> Path:
    if not path.is_file():
        raise UserError(f"{path}: is missing; expected the output of stage '{stage}': dvc repro {stage}")
    return path


if __name__ == "__main__":
    print(write_card(load_params()))
