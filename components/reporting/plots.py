"""Plots of the model card, as PNG files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUBJECTS: dict[str, tuple[str, str]] = {  # subject -> name, colour (told apart by the colour-blind; Okabe and Ito 2008)
    "base": ("base", "#8a8f98"),
    "page_cnn": ("page CNN", "#e69f00"),
    "adapter": ("adapter", "#0072b2"),
}
DPI = 110
SMOOTHED_STEPS = 10


def plot_roc(predictions: pd.DataFrame, path: Path, exam: str = "super") -> None:
    """ROC of each label of `exam` on the test split, one panel a label, one line a subject."""
    from sklearn.metrics import roc_auc_score, roc_curve

    test = predictions[(predictions["exam"] == exam) & (predictions["split"] == "test")]
    labels = list(test["label"].unique())
    columns = min(3, len(labels))
    rows = -(-len(labels) // columns)
    figure, panels = new_figure(3.2 * columns, 3.3 * rows, rows, columns)
    for panel, label in zip(panels, labels, strict=False):
        panel.plot([0, 1], [0, 1], color="#c8c8c8", linewidth=0.8, linestyle=(0, (4, 3)))
        for subject, (name, colour) in SUBJECTS.items():
            answers = test[(test["label"] == label) & (test["subject"] == subject)]
            truth, score = answers["truth"].to_numpy(bool), answers["score"].to_numpy(np.float64)
            if truth.any() and not truth.all():
                false_positive, true_positive, _ = roc_curve(truth, score)
                area = roc_auc_score(truth, score)
                panel.plot(false_positive, true_positive, color=colour, linewidth=1.6, label=f"{name}  {area:.3f}")
        positives = int(test[(test["label"] == label) & (test["subject"] == test["subject"].iloc[0])]["truth"].sum())
        panel.set_title(f"{label}  ({positives} positive)", fontsize=10)
        panel.set(
            xlim=(0, 1), ylim=(0, 1.01), aspect="equal", xlabel="false positive rate", ylabel="true positive rate"
        )
        if panel.get_legend_handles_labels()[0]:
            panel.legend(loc="lower right", fontsize=8, frameon=False, title="AUC", title_fontsize=8)
    save_figure(figure, path)


def plot_class_auc(scores: Mapping[str, Any], path: Path) -> None:
    """AUC of each label with its interval, one colour a subject; `scores` is one exam of `metrics.json`.

    Labels are ordered by the adapter's AUC, so that the weakest stand at the bottom.
    """
    order = scores.get("adapter", next(iter(scores.values())))["per_class"]
    labels = sorted(order, key=lambda label: order[label]["auc"]["value"] or 0.0)
    figure, (panel,) = new_figure(7.0, 1.3 + 0.42 * len(labels), 1, 1)
    panel.axvline(0.5, color="#c8c8c8", linewidth=0.8)
    shown = [subject for subject in SUBJECTS if subject in scores]
    for place, subject in enumerate(shown):
        name, colour = SUBJECTS[subject]
        per_class = scores[subject]["per_class"]
        offset = 0.22 * (place - (len(shown) - 1) / 2)
        for row, label in enumerate(labels):
            auc = per_class[label]["auc"]
            if auc["interval"] is not None:
                panel.plot(auc["interval"], [row + offset] * 2, color=colour, linewidth=2.2, solid_capstyle="round")
            if auc["value"] is not None:
                once = name if row == len(labels) - 1 else None
                panel.plot(
                    auc["value"], row + offset, "o", color=colour, markersize=5.5, markeredgecolor="white", label=once
                )
    panel.set_yticks(range(len(labels)), [f"{label}  (n+ = {order[label]['positives']})" for label in labels])
    panel.set(xlabel="AUC and interval", ylim=(-0.6, len(labels) - 0.4))
    panel.set_xlim(right=1.01)
    panel.grid(axis="x", color="#ececec", linewidth=0.8)
    panel.set_axisbelow(True)
    panel.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(shown), fontsize=9, frameon=False)
    save_figure(figure, path)


def plot_training(history: pd.DataFrame, path: Path) -> None:
    """Loss, learning rate and validation AUC by step; `history` has the columns of `reports/training.csv`."""
    figure, (loss, auc) = new_figure(9.0, 3.2, 1, 2)
    loss.plot(history["step"], history["loss"], color="#c9d9e6", linewidth=0.8)
    smooth = history["loss"].rolling(SMOOTHED_STEPS, min_periods=1).mean()
    loss.plot(history["step"], smooth, color="#0072b2", linewidth=1.6)
    loss.set(xlabel="step", ylabel=f"loss (line: mean of {SMOOTHED_STEPS} steps)")
    rate = loss.twinx()
    rate.plot(history["step"], history["learning_rate"], color="#8a8f98", linewidth=1.0, linestyle=(0, (4, 3)))
    rate.set_ylabel("learning rate (dashed)", color="#6b7078")
    rate.tick_params(labelsize=8)
    rate.set_ylim(bottom=0)
    rate.spines["top"].set_visible(False)
    looked = history.dropna(subset=["validation_auc"])
    auc.plot(looked["step"], looked["validation_auc"], "o-", color="#0072b2", linewidth=1.6, markersize=4.5)
    if len(looked):
        best = looked.loc[looked["validation_auc"].idxmax()]
        auc.plot(best["step"], best["validation_auc"], "o", color="#d55e00", markersize=7)
        auc.set_title(f"kept: step {best['step']:.0f}, {best['validation_auc']:.3f}", fontsize=9, color="#d55e00")
    auc.set(xlabel="step", ylabel="validation macro AUC")
    auc.set_xlim(loss.get_xlim())
    save_figure(figure, path)


def new_figure(width: float, height: float, rows: int, columns: int) -> tuple[Figure, list[Axes]]:
    """A figure of `width` x `height` inches with its panels row by row; `save_figure` hides those left empty."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for panel in panels:
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(labelsize=8)
    return figure, panels


def save_figure(figure: Figure, path: Path) -> None:
    """Write a PNG that is the same for the same data."""
    for panel in figure.axes:
        if not panel.has_data():
            panel.set_axis_off()
    figure.savefig(path, metadata={"Software": None})
