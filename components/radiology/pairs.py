"""Findings → impression as questions and answers, in ECGInstruct's schema with lineage.

RadiologyLlama (arXiv 2408.11848) words its instruction in about twenty ways; the wordings here are ours. An item about
a report is text alone: its conversation does not open with `<image>`.
"""

from __future__ import annotations

import hashlib

import numpy as np

from components.instruct.schema import Item
from components.params import UserError
from components.radiology.openi import Report

SOURCE = "openi"
PROVENANCE = "radiologist"

# The first is the exam's.
INSTRUCTIONS: tuple[str, ...] = (
    "Write the impression for these chest X-ray findings.",
    "Summarize the findings of this chest radiograph in an impression.",
    "Read the findings and give the radiologist's impression.",
    "What is the impression, given these findings?",
    "Give a short impression of this chest X-ray report.",
    "State the conclusion that follows from these findings.",
    "Complete the report: write its impression.",
    "Name what matters in these findings, as an impression.",
    "Turn the findings below into the impression of the report.",
    "Which impression would a radiologist write under these findings?",
    "Conclude this chest radiograph report with an impression.",
    "From the findings section, derive the impression section.",
)


def question(findings: str, wording: int = 0) -> str:
    """The prompt about `findings`, in one of the `INSTRUCTIONS`."""
    return f"{INSTRUCTIONS[wording]}\n\nFindings: {findings}"


def items_about(report: Report, seed: int, count: int) -> list[Item]:
    """The items of a report for training: `count` different wordings, chosen by `seed` and the report alone.

    A report of the validation split gets one, worded as the exam words it.

    Raises:
        UserError: `count` is not 1 to the number of wordings.
        ValueError: the report is of the test split; what an exam asks must not be read in training.
    """
    if not 1 <= count <= len(INSTRUCTIONS):
        raise UserError(
            f"instruct.items_per_record: found {count}, expected 1 to {len(INSTRUCTIONS)}, the number of wordings"
        )
    if report.split == "test":
        raise ValueError(f"report {report.uid} is of the test split; expected train or validation")
    rng = np.random.default_rng([seed, *hashlib.sha256(report.uid.encode()).digest()[:8]])
    wordings = [0] if report.split == "validation" else [int(i) for i in rng.permutation(len(INSTRUCTIONS))[:count]]
    return [_item(report, number, wording) for number, wording in enumerate(wordings)]


def _item(report: Report, number: int, wording: int) -> Item:
    return Item(
        id=f"{report.uid}-{number:03d}",
        record_id=report.uid,
        patient_id=report.uid,  # the file names no patients: a report stands for one
        split=report.split,
        conversations=(
            {"from": "human", "value": question(report.findings, wording)},
            {"from": "gpt", "value": report.impression},
        ),
        metadata={
            "subtask": "report",
            "type": "open-ended",
            "language": "en",
            "template": f"impression-{wording:02d}",
            "label_provenance": PROVENANCE,
        },
        source=SOURCE,
    )
