"""components.reporting.ablation: rows, words and picture from what experiments left."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from components.params import UserError
from components.reporting.ablation import (
    Trial,
    as_frame,
    as_markdown,
    in_order,
    over_seeds,
    read_trial,
    write_ablation,
)


def estimate(value: float | None, half: float = 0.03) -> dict[str, object]:
    return {"value": value, "interval": None if value is None else [value - half, value + half], "n": 198}


def trial(
    method: str, rank: int | None, seed: int = 0, value: float | None = 0.7, minutes: float | None = 2.5
) -> Trial:
    name = f"{method}-r{rank}-s{seed}" if rank else f"{method}-s{seed}"
    difference = None if value is None else value - 0.6
    return Trial(
        name, method, rank, seed, "c" * 40, "a" * 64, 8000 * (rank or 50), minutes,
        estimate(value), estimate(0.6), estimate(difference),
    )  # fmt: skip


def study() -> list[Trial]:
    found = [
        trial(method, rank, seed, 0.66 + 0.012 * i + 0.008 * seed - (0.01 if method == "qlora" else 0))
        for method in ("qlora", "lora")
        for i, rank in enumerate((4, 8, 16, 32, 64, 128))
        for seed in (0, 1, 2)
    ]
    return [*found, trial("full", None, 0, 0.745), trial("partial", None, 0, 0.64)]


def test_a_trial_is_read_from_what_an_experiment_left() -> None:
    scores = {"auc_macro": estimate(0.7), "per_class": {}}
    metrics = {"super": {"adapter": scores, "base": {"auc_macro": estimate(0.6)},
                         "adapter_minus_base": {"auc_macro": estimate(0.1)}}}  # fmt: skip
    train = {"seed": 3, "lora": {"rank": 8}}
    manifest = {"method": "lora", "params": {"train": train}, "adapter_sha256": "a", "trainable_parameters": 9}
    found = read_trial("name", "commit", metrics, manifest, 1.5, "super", "auc_macro")
    assert (found.method, found.rank, found.seed, found.parameters, found.minutes) == ("lora", 8, 3, 9, 1.5)
    assert found.difference["value"] == 0.1
    assert read_trial("n", "c", metrics, manifest | {"method": "full"}, None, "super", "auc_macro").rank is None
    with pytest.raises(UserError, match=r"--exam: experiment name sat no exam 'supr'; did you mean 'super'"):
        read_trial("name", "commit", metrics, manifest, None, "supr", "auc_macro")
    with pytest.raises(UserError, match=r"--metric: exam 'super' has no metric 'auc'; did you mean 'auc_macro'"):
        read_trial("name", "commit", metrics, manifest, None, "super", "auc")


def test_the_order_is_by_method_rank_and_seed() -> None:
    found = [(one.method, one.rank, one.seed) for one in in_order(study())]
    assert found[:4] == [("lora", 4, 0), ("lora", 4, 1), ("lora", 4, 2), ("lora", 8, 0)]
    assert found[-2:] == [("partial", None, 0), ("full", None, 0)]


def test_the_table_holds_every_number_with_its_interval() -> None:
    frame = as_frame([trial("full", None, value=0.75), trial("lora", 4, minutes=None)], "super", "auc_macro")
    assert list(frame["method"]) == ["lora", "full"]
    row = frame.iloc[0]
    assert [row[name] for name in ("rank", "n", "value")] == [4, 198, 0.7]
    assert [row["low"], row["high"]] == pytest.approx([0.67, 0.73])
    assert row["minus_base"] == pytest.approx(0.1)
    assert pd.isna(frame.iloc[1]["rank"])
    assert pd.isna(row["minutes"])
    assert not set(frame.columns) & {"mean"}


def test_the_page_says_what_the_numbers_are() -> None:
    text = as_markdown(study(), "super", "auc_macro", 0.95)
    assert "198 test records; base 0.600 [0.570, 0.630]. Intervals: 95%, bootstrap over patients" in text
    assert "| lora | 4 | 0 | 32,000 | 2.5 | 0.660 [0.630, 0.690] | +0.060 [+0.030, +0.090] | 198 |" in text
    assert "| lora | 4 | 3 | 0.668 | 0.660 to 0.676 |" in text
    one_seed = as_markdown([trial("lora", 4, minutes=None)], "super", "auc_macro", 0.95)
    assert "Over seeds" not in one_seed
    assert "| – | 0.700" in one_seed


def test_seeds_are_summed_up_only_where_there_are_several() -> None:
    assert over_seeds([trial("lora", 4), trial("full", None)]) == []
    ((method, rank, count, mean, low, high),) = over_seeds([trial("lora", 4, s, 0.6 + 0.1 * s) for s in range(3)])
    assert (method, rank, count, low, high) == ("lora", 4, 3, 0.6, 0.8)
    assert mean == pytest.approx(0.7)


@pytest.mark.parametrize(
    "trials",
    [
        study(),
        [trial("lora", 8)],
        [trial("full", None)],
        [trial("lora", 4), trial("lora", 8, value=None)],
    ],
    ids=["all", "one rank", "no rank", "undefined"],
)
def test_the_picture_is_drawn_the_same_twice(trials: list[Trial], tmp_path: Path) -> None:
    first = write_ablation(trials, "super", "auc_macro", 0.95, tmp_path / "a")
    second = write_ablation(trials, "super", "auc_macro", 0.95, tmp_path / "b")
    assert [path.name for path in first] == ["ablation.csv", "ablation.md", "ablation.png"]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    assert len(list((tmp_path / "a").iterdir())) == 3
    with Image.open(first[2]) as picture:
        assert picture.size == (814, 484)
        colours = {colour for _, colour in picture.convert("RGB").getcolors(1 << 24) or []}
    assert {"lora": (0, 114, 178), "full": (204, 121, 167)}[
        trials[-1].method if len(trials) == 1 else "lora"
    ] in colours
