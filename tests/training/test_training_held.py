"""What a run holds is read and put back tensor by tensor; between real processes, in test_training_launch."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from components.training.held import held

SHAPES = {"one": (3, 5), "two": (7,)}


def stepped(kind: str = "single") -> Any:
    torch.manual_seed(0)
    parameters = {name: torch.nn.Parameter(torch.randn(shape)) for name, shape in SHAPES.items()}
    optimizer = torch.optim.AdamW(parameters.values(), lr=0.1)
    for parameter in parameters.values():
        parameter.grad = torch.randn_like(parameter)
    return parameters, optimizer, held(kind, parameters, optimizer)


def test_what_is_put_back_gives_the_same_next_step() -> None:
    parameters, optimizer, holding = stepped()
    assert holding.keys() == []
    optimizer.step()
    assert holding.keys() == ["exp_avg", "exp_avg_sq", "step"]
    values = {name: holding.whole(name).clone() for name in holding.names}
    keys = holding.keys()
    state = {f"state.{key}.{name}": holding.whole(name, key).clone() for key in keys for name in holding.names}
    best = holding.pieces()
    optimizer.step()
    assert all(torch.equal(holding.joined(name, best[name]), values[name]) for name in SHAPES), "a copy, not a view"

    others, another, anew = stepped()
    anew.put((name, anew.cut(name, values[name])) for name in anew.names)
    anew.put_state(["exp_avg", "exp_avg_sq", "step"], state)
    another.step()
    assert all(torch.equal(others[name], parameters[name]) for name in SHAPES)


@pytest.mark.parametrize("rank", [0, 1])
def test_under_zero2_a_piece_is_the_run_of_elements_in_the_partition(
    rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes, partitions of 11 of 22 elements: `one` has 15 of them, so it is cut after its eleventh."""
    parameters = {name: torch.arange(float(torch.Size(shape).numel())).view(shape) for name, shape in SHAPES.items()}
    parts = {"one": (0, 11, 0) if rank == 0 else (11, 4, 0), "two": (0, 7, 4) if rank else None}
    flat = torch.zeros(11)
    for name, part in parts.items():
        parameters[name]._hp_mapping = part and _mapping(flat, *part)
    refreshed: list[int] = []
    optimizer = SimpleNamespace(
        single_partition_of_fp32_groups=[flat], update_lp_params=lambda: refreshed.append(1), optimizer=None
    )
    holding = held("zero2", parameters, SimpleNamespace(optimizer=optimizer))
    monkeypatch.setattr("torch.distributed.all_reduce", lambda tensor: None)  # the other's elements stay 0
    holding.put((name, holding.cut(name, parameters[name])) for name in holding.names)
    assert refreshed == [1]
    expected = torch.cat([parameters["one"].flatten(), parameters["two"]])[rank * 11 :][:11]
    assert torch.equal(flat, expected)
    for name, part in parts.items():
        start, count, _ = part or (0, 0, 0)
        whole = torch.zeros(parameters[name].numel())
        whole[start : start + count] = parameters[name].flatten()[start : start + count]
        assert torch.equal(holding.whole(name), whole.view(SHAPES[name]))
        assert torch.equal(holding.joined(name, holding.pieces()[name]), whole.view(SHAPES[name]))


def _mapping(flat: torch.Tensor, start: int, count: int, at: int) -> SimpleNamespace:
    """As deepspeed.utils.tensor_fragment.tensor_fragment, of values alone."""
    return SimpleNamespace(
        lp_fragment_address=SimpleNamespace(start=start, numel=count), get_hp_fragment=lambda key: flat[at : at + count]
    )
