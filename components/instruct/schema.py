"""The item: one conversation about one record, in ECGInstruct's form plus its lineage.

Form: Liu et al., "Teach Multimodal LLMs to Comprehend Electrocardiographic Images", arXiv 2410.19008.
`record_id`, `patient_id`, `split`, `template` and `label_provenance` are ours: the published set lost which record
an image came from and whether a cardiologist or a machine had labelled it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Subtask = Literal["feature", "rhythm", "morphology", "report"]
QuestionType = Literal["close-ended", "open-ended", "fill-in-the-blank", "multiple-choice"]

SUBTASKS: tuple[Subtask, ...] = ("feature", "rhythm", "morphology", "report")
QUESTION_TYPES: tuple[QuestionType, ...] = ("close-ended", "open-ended", "fill-in-the-blank", "multiple-choice")

IMAGE = "<image>"


@dataclass(frozen=True, slots=True)
class Question:
    """A question with its answer. `template` names the wording's family, e.g. `superclass` or `rhythm-open`."""

    question: str
    answer: str
    subtask: Subtask
    type: QuestionType
    template: str


@dataclass(frozen=True, slots=True)
class Item:
    """A `Question` about a record. `conversations` alternates `human` and `gpt`; `<image>` opens it for a page."""

    id: str
    record_id: str
    patient_id: str
    split: str
    conversations: tuple[dict[str, str], ...]
    metadata: dict[str, str]
    source: str
