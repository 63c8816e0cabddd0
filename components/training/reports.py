"""Reports as training data: findings → impression items, of like length together and several in one sequence.

Text is short beside a page, so rows are packed up to `train.max_tokens`: the words before the first question are read
once for all reports of a row, and next to nothing is padding.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.instruct.schema import Question
from components.instruct.stored import read_items
from components.models.chat import BlockEncoder, tokenizer_of
from components.models.families import Page
from components.models.packing import IGNORED, Packed, answer_loss, pack
from components.params import Params, UserError
from components.radiology.build import OUT as REPORTS
from components.radiology.build import check_files
from components.storage import sha256
from components.training.batches import Row
from components.training.validation import Sample

POOL_BATCHES = 32  # batches whose reports are sorted by length together: long enough to match, short enough to mix
VALIDATION_REPORTS = 100  # a look costs as much as a few steps; the first so many by record id

Size = Callable[[Question], int]


def open_reports(
    params: Params, base: Any, folder: Path = REPORTS
) -> tuple[ReportBatches, ReportValidation, dict[str, str]]:
    """What `data/radiology` holds for training `base`, and the hashes that name it.

    Raises:
        UserError: the stage has not run or its files were changed; a base that reads pages only; a report longer than
            `train.max_tokens`; fewer reports than one batch.
    """
    check_files(folder, ("items-00000.parquet",))
    encoder = BlockEncoder(base.processor)
    prefix = len(base.family.prefix_ids(0))

    def size(question: Question) -> int:
        return len(encoder(question.question, question.answer))

    train = params.train
    room = train.max_tokens - prefix
    items = {split: read_items(folder, split) for split in ("train", "validation")}
    for split, reports in items.items():
        _check_lengths(reports, size, room, split, train.max_tokens, prefix)
    parts = train.launch.processes * train.launch.machines * train.gradient_accumulation
    batches = ReportBatches(items["train"], size, room, train.batch_size, parts, train.seed)
    validation = ReportValidation(items["validation"], size, room)
    return batches, validation, {"reports": sha256(folder / "manifest.json")}


class ReportBatches:
    """Batches over reports: each at most once an epoch, every epoch in another of its wordings.

    An epoch's reports are shuffled, sorted by length within pools of `POOL_BATCHES` batches, cut into batches, and the
    batches shuffled; what does not fill a batch waits for another epoch's shuffle. All of it is a function of seed and
    epoch.
    """

    def __init__(
        self, items: Mapping[str, Sequence[Question]], size: Size, room: int, batch_size: int, parts: int, seed: int
    ) -> None:
        """`size` is an item's tokens, `room` a row's tokens behind the prefix; a step's rows are a multiple of `parts`.

        Raises:
            UserError: fewer reports than one batch.
        """
        if len(items) < batch_size:
            raise UserError(
                f"train.batch_size: found {batch_size}, but there are {len(items)} training reports; lower it"
            )
        self._ids = sorted(items)
        self._items, self._size, self._room = items, size, room
        self._batch_size, self._parts, self._seed = batch_size, parts, seed
        self._longest = np.array([max(size(item) for item in items[uid]) for uid in self._ids])
        self._epoch: tuple[int, NDArray[np.intp]] | None = None

    @property
    def steps_per_epoch(self) -> int:
        return len(self._ids) // self._batch_size

    def rows(self, step: int) -> list[Row]:
        """The rows of optimizer step `step`, counted from 0: its reports, packed."""
        epoch, number = divmod(step, self.steps_per_epoch)
        chosen = []
        for index in self._batches(epoch)[number]:
            wordings = self._items[self._ids[index]]
            rng = np.random.default_rng([self._seed, epoch, int(index)])
            chosen.append((self._ids[index], wordings[int(rng.integers(len(wordings)))]))
        sizes = [self._size(item) for _, item in chosen]
        return [_row([chosen[i] for i in members]) for members in pack_rows(sizes, self._room, self._parts)]

    def _batches(self, epoch: int) -> NDArray[np.intp]:
        """Indices of reports [steps, batch_size] of an epoch; the last one asked for is kept."""
        if self._epoch is None or self._epoch[0] != epoch:
            rng = np.random.default_rng([self._seed, epoch])
            order = rng.permutation(len(self._ids))[: self.steps_per_epoch * self._batch_size]
            pool = POOL_BATCHES * self._batch_size
            pools = [order[start : start + pool] for start in range(0, len(order), pool)]
            like = [part[np.argsort(self._longest[part], kind="stable")] for part in pools]
            batches = np.concatenate(like).reshape(self.steps_per_epoch, self._batch_size)
            self._epoch = (epoch, batches[rng.permutation(self.steps_per_epoch)])
        return self._epoch[1]


class ReportValidation:
    """Minus the mean cross-entropy of the validation answers' tokens, in nats: larger is better."""

    name = "minus_loss"

    def __init__(self, items: Mapping[str, Sequence[Question]], size: Size, room: int) -> None:
        """Raises:
        UserError: no validation report.
        """
        chosen = [(uid, items[uid][0]) for uid in sorted(items)[:VALIDATION_REPORTS]]
        if not chosen:
            raise UserError("validation split: no report; the best step cannot be chosen")
        self.count = len(chosen)
        self._asked = chosen
        chosen = sorted(chosen, key=lambda one: size(one[1]))
        rows = _in_order([size(item) for _, item in chosen], room)
        self._rows = [[chosen[i][1] for i in members] for members in rows]

    def look(self, model: Any, base: Any, encoder: BlockEncoder, batch_size: int = 4) -> float:
        """The score of `model` as it is; `batch_size` rows at a time."""
        import torch

        pad = tokenizer_of(base.processor).pad_token_id
        total, tokens = 0.0, 0
        for start in range(0, len(self._rows), batch_size):
            rows = self._rows[start : start + batch_size]
            blocks = [[encoder(item.question, item.answer) for item in row] for row in rows]
            packed = _evenly(pack(base.family, [()] * len(rows), blocks, pad))
            with torch.inference_mode():
                total += float(answer_loss(model, packed, 1.0))
            tokens += int(packed.weights[:, 1:].sum())
        return -total / tokens

    def samples(self, count: int) -> list[Sample]:
        """Questions about the first reports, for a person to read the answers of."""
        return [Sample(uid, (), item.question) for uid, item in self._asked[:count]]


def pack_rows(sizes: Sequence[int], room: int, parts: int) -> list[list[int]]:
    """Spread items of `sizes` tokens over rows of at most `room`: the fewest multiple of `parts` that holds them.

    The longest item goes first, each to the row that is emptiest, so rows come out almost equally long. Returns the
    items' places by row. `parts` must divide the number of items, and no item be longer than `room`.
    """
    if len(sizes) % parts or max(sizes) > room:
        raise ValueError(f"{len(sizes)} items of at most {max(sizes)} tokens; expected a multiple of {parts}, ≤ {room}")
    longest_first = sorted(range(len(sizes)), key=lambda i: (-sizes[i], i))
    for count in range(parts, len(sizes) + 1, parts):
        rows: list[list[int]] = [[] for _ in range(count)]
        filled = [0] * count
        for i in longest_first:
            emptiest = filled.index(min(filled))
            rows[emptiest].append(i)
            filled[emptiest] += sizes[i]
        if max(filled) <= room:
            break
    return rows


def _in_order(sizes: Sequence[int], room: int) -> list[list[int]]:
    """Places of items, one after the other into rows of at most `room` tokens."""
    rows: list[list[int]] = [[]]
    filled = 0
    for i, size in enumerate(sizes):
        if rows[-1] and filled + size > room:
            rows.append([])
            filled = 0
        rows[-1].append(i)
        filled += size
    return rows


def _row(chosen: Sequence[tuple[str, Question]]) -> Row:
    return Row(tuple(uid for uid, _ in chosen), tuple(item for _, item in chosen), _no_pages)


def _no_pages() -> tuple[Page, ...]:
    return ()


def _evenly(packed: Packed) -> Packed:
    """Every answer token weighing the same."""
    return dataclasses.replace(packed, weights=(packed.labels != IGNORED).float())


def _check_lengths(
    reports: Mapping[str, Sequence[Question]], size: Size, room: int, split: str, max_tokens: int, prefix: int
) -> None:
    longest = {uid: max(size(item) for item in items) for uid, items in reports.items()}
    too_long = sorted((uid for uid, tokens in longest.items() if tokens > room), key=lambda uid: -longest[uid])
    if too_long:
        raise UserError(
            f"train.max_tokens: found {max_tokens}, but {len(too_long)} {split} reports are longer, report "
            f"{too_long[0]} the longest; expected at least {prefix + longest[too_long[0]]}"
        )
