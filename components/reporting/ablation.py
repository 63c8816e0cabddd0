"""What an ablation found: one table and one plot over methods, ranks and seeds.

Every number comes with its interval (bootstrap over the exam's patients); what an adapter gained is the paired
difference to the base on the same pages. Seeds show how much training itself varies, which no such interval holds.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from components.params import UserError, nearest
from components.reporting.plots import new_figure, save_figure
from components.storage import write_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

METHODS = ("lora", "qlora", "partial", "full")
RANKED = ("lora", "qlora")
TITLES = {"auc_macro": "macro AUC", "f1_macro": "macro F1", "hamming_loss": "Hamming loss (less is better)"}
# Told apart by the colour-blind (Okabe and Ito 2008).
COLOURS = {"lora": "#0072b2", "qlora": "#d55e00", "partial": "#009e73", "full": "#cc79a7", "base": "#6b7078"}
MARKS = {"lora": "o", "qlora": "s"}
DODGE = 1.06  # factor on the rank's axis between neighbours that would hide each other

Estimate = Mapping[str, Any]  # {value, interval, n}


@dataclass(frozen=True, slots=True)
class Trial:
    """One experiment that finished: what was trained and how it did in one metric of one exam."""

    experiment: str
    method: str
    rank: int | None  # of lora and qlora
    seed: int
    commit: str  # of the experiment, in git
    adapter_sha256: str
    parameters: int  # trained
    minutes: float | None  # of training; None where it was restored from DVC's run cache
    value: Estimate
    base: Estimate
    difference: Estimate  # adapter minus base, paired


def read_trial(
    experiment: str,
    commit: str,
    metrics: Mapping[str, Any],
    manifest: Mapping[str, Any],
    minutes: float | None,
    exam: str,
    metric: str,
) -> Trial:
    """A trial from `reports/metrics.json` and the adapter's manifest as the experiment left them.

    Raises:
        UserError: the exam or the metric is none of this experiment's.
    """
    if exam not in metrics:
        raise UserError(f"--exam: experiment {experiment} sat no exam '{exam}'{nearest(exam, metrics)}")
    scores = metrics[exam]
    if metric not in scores["adapter"]:
        known = [name for name in scores["adapter"] if name not in ("per_class", "undefined")]
        raise UserError(f"--metric: exam '{exam}' has no metric '{metric}'{nearest(metric, known)}")
    train = manifest["params"]["train"]
    return Trial(
        experiment,
        manifest["method"],
        train["lora"]["rank"] if manifest["method"] in RANKED else None,
        train["seed"],
        commit,
        manifest["adapter_sha256"],
        manifest["trainable_parameters"],
        minutes,
        scores["adapter"][metric],
        scores["base"][metric],
        scores["adapter_minus_base"][metric],
    )


def in_order(trials: Sequence[Trial]) -> list[Trial]:
    """By method, rank and seed."""
    return sorted(trials, key=lambda trial: (METHODS.index(trial.method), trial.rank or 0, trial.seed))


def as_frame(trials: Sequence[Trial], exam: str, metric: str) -> pd.DataFrame:
    """One row a trial, every number unrounded; the columns of `ablation.csv`."""
    rows = []
    for trial in in_order(trials):
        low, high = trial.value["interval"] or (None, None)
        difference_low, difference_high = trial.difference["interval"] or (None, None)
        rows.append(
            {
                "experiment": trial.experiment,
                "method": trial.method,
                "rank": trial.rank,
                "seed": trial.seed,
                "exam": exam,
                "metric": metric,
                "n": trial.value["n"],
                "value": trial.value["value"],
                "low": low,
                "high": high,
                "base": trial.base["value"],
                "minus_base": trial.difference["value"],
                "minus_base_low": difference_low,
                "minus_base_high": difference_high,
                "parameters": trial.parameters,
                "minutes": trial.minutes,
                "commit": trial.commit,
                "adapter_sha256": trial.adapter_sha256,
            }
        )
    frame = pd.DataFrame(rows)
    return frame.astype({"rank": "Int64"})


def as_markdown(trials: Sequence[Trial], exam: str, metric: str, confidence: float) -> str:
    """The table for people; with several seeds, a second one over them."""
    ordered = in_order(trials)
    first = ordered[0]
    lines = [
        f"# Ablation: {title(metric)}, exam '{exam}'",
        "",
        f"{first.value['n']} test records; base {figure(first.base)}. Intervals: {confidence:.0%}, bootstrap over "
        "patients; adapter − base is the paired difference on the same pages. Minutes are of training; a dash: "
        "restored from DVC's run cache.",
        "",
        "| method | rank | seed | trained parameters | minutes | value | adapter − base | n | experiment |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [f"| {' | '.join(cells(trial))} |" for trial in ordered]
    spread = over_seeds(ordered)
    if spread:
        lines += [
            "",
            "Over seeds: mean, and lowest to highest. It tells how training varies; the intervals above do not.",
            "",
            "| method | rank | seeds | mean | lowest to highest |",
            "|---|---|---|---|---|",
        ]
        lines += [
            f"| {m} | {r or '–'} | {n} | {mean:.3f} | {low:.3f} to {high:.3f} |" for m, r, n, mean, low, high in spread
        ]
    return "\n".join(lines) + "\n\n![Metric by rank](ablation.png)\n\nNot a medical device.\n"


def cells(trial: Trial) -> tuple[str, ...]:
    """A trial as the table's cells: method, rank, seed, parameters, minutes, value, difference, n, experiment."""
    return (
        trial.method,
        "–" if trial.rank is None else str(trial.rank),
        str(trial.seed),
        f"{trial.parameters:,}",
        "–" if trial.minutes is None else f"{trial.minutes:.1f}",
        figure(trial.value),
        figure(trial.difference, sign=True),
        str(trial.value["n"]),
        trial.experiment,
    )


def over_seeds(trials: Sequence[Trial]) -> list[tuple[str, int | None, int, float, float, float]]:
    """(method, rank, seeds, mean, lowest, highest) where a combination has several seeds."""
    found: dict[tuple[str, int | None], list[float]] = {}
    for trial in trials:
        if trial.value["value"] is not None:
            found.setdefault((trial.method, trial.rank), []).append(trial.value["value"])
    return [
        (method, rank, len(values), sum(values) / len(values), min(values), max(values))
        for (method, rank), values in found.items()
        if len(values) > 1
    ]


def plot_ablation(trials: Sequence[Trial], exam: str, metric: str, confidence: float, path: Path) -> None:
    """The metric by rank, with a bar for each trial's interval.

    lora and qlora are lines through the mean of their seeds; partial and full, which have no rank, are lines across
    with their interval as a band; the base is a dashed line.
    """
    ordered = [trial for trial in in_order(trials) if trial.value["value"] is not None]
    figure_, (panel,) = new_figure(7.4, 4.4, 1, 1)
    ranks = sorted({trial.rank for trial in ordered if trial.rank is not None})
    panel.set_xscale("log", base=2)
    edge = 1.45
    left, right = (min(ranks) / edge, max(ranks) * edge) if ranks else (0.7, 1.4)
    panel.set_xlim(left, right)
    panel.set_xticks(ranks, [str(rank) for rank in ranks], minor=False)
    panel.minorticks_off()
    _across(panel, ordered)
    _lines(panel, ordered)
    base = trials[0].base
    panel.axhline(base["value"], color=COLOURS["base"], linewidth=1.3, linestyle=(0, (5, 3)))
    panel.plot([], [], color=COLOURS["base"], linewidth=1.3, linestyle=(0, (5, 3)), label=f"base  {figure(base)}")
    panel.set(xlabel="LoRA rank" if ranks else "", ylabel=title(metric))
    panel.set_title(
        f"Exam '{exam}', {base['n']} test records; bars and bands: {confidence:.0%} intervals over patients",
        fontsize=9,
        loc="left",
        color="#444444",
    )
    panel.grid(axis="y", color="#ececec", linewidth=0.8)
    panel.set_axisbelow(True)
    panel.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8, frameon=False)
    save_figure(figure_, path)


def write_ablation(trials: Sequence[Trial], exam: str, metric: str, confidence: float, out: Path) -> list[Path]:
    """Write `ablation.csv`, `ablation.md` and `ablation.png` into `out`, each whole or not at all; returns them."""
    csv, text, picture = (out / f"ablation.{suffix}" for suffix in ("csv", "md", "png"))
    write_text(csv, as_frame(trials, exam, metric).to_csv(index=False))
    write_text(text, as_markdown(trials, exam, metric, confidence))
    temporary = picture.with_name(f".{os.getpid()}-{picture.name}")
    plot_ablation(trials, exam, metric, confidence, temporary)
    os.replace(temporary, picture)
    return [csv, text, picture]


def title(metric: str) -> str:
    return TITLES.get(metric, metric.replace("_", " "))


def figure(estimate: Estimate, sign: bool = False) -> str:
    """0.831 [0.802, 0.858]; with `sign`, +0.031 […]; a dash where nothing was measured."""
    if estimate.get("value") is None:
        return "–"
    form = "+.3f" if sign else ".3f"
    interval = estimate.get("interval")
    shown = f" [{interval[0]:{form}}, {interval[1]:{form}}]" if interval else ""
    return f"{estimate['value']:{form}}{shown}"


def _lines(panel: Axes, trials: Sequence[Trial]) -> None:
    present = [method for method in RANKED if any(trial.method == method for trial in trials)]
    seeds = sorted({trial.seed for trial in trials})
    places = {(method, seed): i for i, (method, seed) in enumerate((m, s) for m in present for s in seeds)}
    middle = (len(places) - 1) / 2
    for method in present:
        own = [trial for trial in trials if trial.method == method]
        for trial in own:
            assert trial.rank is not None
            x = trial.rank * DODGE ** (places[method, trial.seed] - middle)
            if trial.value["interval"]:
                panel.plot([x, x], trial.value["interval"], color=COLOURS[method], linewidth=1.4, alpha=0.55)
            panel.plot(
                x, trial.value["value"], MARKS[method], color=COLOURS[method], markersize=6, markeredgecolor="white"
            )
        by_rank: dict[int, list[Trial]] = {}
        for trial in own:
            by_rank.setdefault(trial.rank or 0, []).append(trial)
        shift = sum(places[method, seed] for seed in seeds) / len(seeds) - middle
        panel.plot(
            [rank * DODGE**shift for rank in by_rank],
            [sum(trial.value["value"] for trial in group) / len(group) for group in by_rank.values()],
            color=COLOURS[method],
            linewidth=1.6,
            marker=MARKS[method] if len(seeds) == 1 else None,
            markeredgecolor="white",
            label=method + (f" (line: mean of {len(seeds)} seeds)" if len(seeds) > 1 else ""),
        )


def _across(panel: Axes, trials: Sequence[Trial]) -> None:
    for method in METHODS:
        own = [trial for trial in trials if trial.method == method and trial.rank is None]
        for number, trial in enumerate(own):
            if trial.value["interval"]:
                panel.axhspan(*trial.value["interval"], color=COLOURS[method], alpha=0.10, linewidth=0)
            name = f"{method}  {figure(trial.value)}" if len(own) == 1 else f"{method} ({len(own)} seeds)"
            panel.axhline(
                trial.value["value"], color=COLOURS[method], linewidth=1.6, label=name if number == 0 else None
            )
