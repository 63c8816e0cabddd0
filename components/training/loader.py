"""From rows to tensors: each process gets its parts of every step, drawn by loader processes ahead of need."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from components.models.families import Family
from components.models.packing import Block, BlockEncoder, pack
from components.params import TrainParams, UserError
from components.training.batches import Row, TrainingData, turns_of

Each = TypeVar("Each")


@dataclass(frozen=True, slots=True)
class Share:
    """Which rows of a step a process works through, and in how many parts."""

    rank: int
    processes: int
    parts: int

    def rows_of(self, part: int, rows: Sequence[Each]) -> Sequence[Each]:
        size = len(rows) // (self.processes * self.parts)
        first = (part * self.processes + self.rank) * size
        return rows[first : first + size]


class Parts:
    """A map-style data set of packed parts: index = step · parts + part.

    Each part says by how much its summed loss is divided, so that the mean over parts and processes is the weighted
    mean over the whole step, however it was split.
    """

    def __init__(
        self, data: TrainingData, family: Family, encoder: BlockEncoder, pad: int, train: TrainParams, share: Share
    ) -> None:
        if train.batch_size % (share.processes * share.parts):
            raise UserError(
                f"train.batch_size: found {train.batch_size}, expected a multiple of {share.processes * share.parts} "
                f"({share.processes} processes × {share.parts} parts of train.gradient_accumulation)"
            )
        self._data, self._family, self._encoder, self._pad = data, family, encoder, pad
        self._train, self._share = train, share

    def __len__(self) -> int:
        return self._train.steps * self._share.parts

    def __getitem__(self, index: int) -> dict[str, Any]:
        step, part = divmod(index, self._share.parts)
        rows = self._data.rows(step)
        blocks = [self._blocks(row) for row in rows]  # of all: the divisor is the whole step's
        answers = [turn.answer for row in blocks for block in row for turn in block.turns]
        mine = self._share.rows_of(part, rows)
        packed = pack(self._family, [row.draw() for row in mine], self._share.rows_of(part, blocks), self._pad)
        tokens = packed.inputs["input_ids"].shape[1]
        if tokens > self._train.max_tokens:
            raise UserError(
                f"train.max_tokens: a sequence of step {step} has {tokens} tokens, expected at most "
                f"{self._train.max_tokens}; ask fewer questions a page (train.questions_per_page) or raise it"
            )
        return {
            "index": index,
            "packed": {"inputs": packed.inputs, "labels": packed.labels, "weights": packed.weights},
            "divisor": sum(len(answer) ** 0.5 for answer in answers) / (self._share.processes * self._share.parts),
            "pages": sum(len(row.record_ids) for row in mine),
            "tokens": int((packed.inputs["input_ids"] != self._pad).sum()),
        }

    def record_ids(self, step: int) -> list[str]:
        """Whom the step's rows, of all processes, are about."""
        return [record_id for row in self._data.rows(step) for record_id in row.record_ids]

    def _blocks(self, row: Row) -> list[Block]:
        return [
            self._encoder.turns([(turn.question, turn.answer) for turn in turns_of(asked)]) for asked in row.questions
        ]


class FromStep:
    """Indices from wherever `first_step` says the run stands, in order, to the end."""

    def __init__(self, parts: Parts, parts_in_step: int, first_step: Callable[[], int]) -> None:
        self._count, self._per_step, self._first_step = len(parts), parts_in_step, first_step

    def __iter__(self) -> Iterator[int]:
        return iter(range(self._first_step() * self._per_step, self._count))

    def __len__(self) -> int:
        return self._count
