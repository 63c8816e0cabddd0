"""What a run holds of every trained parameter, value and optimizer's state, whole or sharded: read and put back.

Everything goes tensor by tensor: one at a time is whole, and a large model's state never lies whole in one process.
Under ZeRO-2 and ZeRO-3 DeepSpeed trains a flat fp32 copy, of which each process has a run of every parameter's
elements; the weights that the model computes with are made from it (deepspeed.utils.tensor_fragment,
deepspeed.runtime.zero.stage3). Every method that gathers has to be called by every process, in the same order.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

ZERO = ("zero2", "zero3")
STATE_OF = "state."


class Held(Protocol):
    """The trained parameters of a run under way, by name; a *piece* is what this process has of one."""

    names: Sequence[str]

    def keys(self) -> list[str]:
        """What the optimizer keeps of a parameter (`exp_avg`, `step`, ...); nothing before its first step."""

    def whole(self, name: str, key: str | None = None) -> Any:
        """The value, or `key` of the optimizer's state, in the parameter's shape, on the CPU. Gathers."""

    def pieces(self) -> dict[str, Any]:
        """A copy of the values as they lie: sharded ones stay sharded, or every GPU would hold all of them."""

    def joined(self, name: str, piece: Any) -> Any:
        """A piece of `pieces` made whole, on the CPU. Gathers."""

    def cut(self, name: str, whole: Any) -> Any:
        """This process's piece of a whole tensor."""

    def put(self, pieces: Iterable[tuple[str, Any]]) -> None:
        """Make these the values: what the next step starts from, and the model computes with. Gathers."""

    def put_state(self, keys: Sequence[str], whole: Mapping[str, Any]) -> None:
        """Make the optimizer's state that of `whole`, named `state.KEY.NAME`, before its first step."""


def held(kind: str, parameters: dict[str, Any], optimizer: Any) -> Held:
    """What a run of launch `kind` holds of these parameters.

    Args:
        parameters: the trained ones, as the launch left them.
        optimizer: the one accelerate prepared.
    """
    if kind not in ZERO:
        return _ByTorch(parameters, optimizer)
    return (_ByZero2 if kind == "zero2" else _ByZero3)(parameters, optimizer.optimizer)


class _ByTorch:
    """One process, DDP, FSDP2: the optimizer's state is by parameter, sharded as the parameter is."""

    def __init__(self, parameters: dict[str, Any], optimizer: Any) -> None:
        self.names: Sequence[str] = list(parameters)
        self._parameters, self._optimizer = parameters, optimizer

    def keys(self) -> list[str]:
        return sorted({key for parameter in self._parameters.values() for key in self._optimizer.state[parameter]})

    def whole(self, name: str, key: str | None = None) -> Any:
        import torch

        parameter = self._parameters[name]
        return _whole(parameter if key is None else torch.as_tensor(self._optimizer.state[parameter][key]))

    def pieces(self) -> dict[str, Any]:
        return {name: parameter.detach().clone() for name, parameter in self._parameters.items()}

    def joined(self, name: str, piece: Any) -> Any:
        return _whole(piece)

    def cut(self, name: str, whole: Any) -> Any:
        return _placed(whole, self._parameters[name])

    def put(self, pieces: Iterable[tuple[str, Any]]) -> None:
        import torch

        with torch.no_grad():
            for name, piece in pieces:
                self._parameters[name].copy_(piece)

    def put_state(self, keys: Sequence[str], whole: Mapping[str, Any]) -> None:
        for name, parameter in self._parameters.items():
            self._optimizer.state[parameter] = {
                key: _placed(whole[f"{STATE_OF}{key}.{name}"], parameter) for key in keys
            }


class _ByZero(ABC):
    """DeepSpeed: flat fp32 partitions; numbers that are one for all elements (`step`) are by partition."""

    def __init__(self, parameters: dict[str, Any], optimizer: Any) -> None:
        self.names: Sequence[str] = list(parameters)
        self._parameters, self._optimizer = parameters, optimizer

    def keys(self) -> list[str]:
        return sorted(self._inner_state(self._flats()[0]))

    def whole(self, name: str, key: str | None = None) -> Any:
        import torch

        if key is not None:
            value = torch.as_tensor(self._inner_state(self._flats()[0])[key])
            if value.dim() == 0:
                return value.detach().cpu().clone()
        return self.joined(name, self._piece(name, key))

    def pieces(self) -> dict[str, Any]:
        return {name: self._piece(name).clone() for name in self.names}

    def joined(self, name: str, piece: Any) -> Any:
        import torch

        shape, start = self._shape(name), self._start(name)
        count = torch.distributed.get_world_size() * piece.numel() if self._is_padded else shape.numel()
        flat = torch.zeros(count, dtype=piece.dtype, device=self._parameters[name].device)
        flat[start : start + piece.numel()] = piece
        torch.distributed.all_reduce(flat.view(torch.int32))  # as bits: a sum of numbers makes 0 of -0
        return flat[: shape.numel()].view(shape).cpu()

    def cut(self, name: str, whole: Any) -> Any:
        import torch

        piece = self._piece(name)
        flat = whole.flatten()[self._start(name) :][: piece.numel()].to(piece)
        return torch.nn.functional.pad(flat, (0, piece.numel() - flat.numel()))

    def put(self, pieces: Iterable[tuple[str, Any]]) -> None:
        import torch

        with torch.no_grad():
            for name, piece in pieces:
                self._set(name, piece)
            self._refresh()

    def put_state(self, keys: Sequence[str], whole: Mapping[str, Any]) -> None:
        import torch

        by_element = []
        for key in keys:
            example = whole[f"{STATE_OF}{key}.{self.names[0]}"]
            for flat in self._flats():
                state = self._inner_state(flat)
                if example.dim():
                    state[key] = torch.zeros_like(flat.data)
                else:  # torch's optimizers count in a tensor, bitsandbytes in an int
                    state[key] = example.clone() if example.is_floating_point() else int(example)
            by_element += [key] if example.dim() else []
        self._link()
        for key in by_element:
            for name in self.names:
                self._set(name, self.cut(name, whole[f"{STATE_OF}{key}.{name}"]), key)

    def _inner_state(self, flat: Any) -> dict[str, Any]:
        found: dict[str, Any] = self._optimizer.optimizer.state[flat]
        return found

    _is_padded = False

    @abstractmethod
    def _flats(self) -> list[Any]:
        """The fp32 partitions that this process trains."""

    @abstractmethod
    def _shape(self, name: str) -> Any:
        """Of the whole parameter."""

    @abstractmethod
    def _start(self, name: str) -> int:
        """Where this process's piece begins in the flattened parameter."""

    @abstractmethod
    def _piece(self, name: str, key: str | None = None) -> Any:
        """What this process has of a parameter, or of its state `key`."""

    @abstractmethod
    def _set(self, name: str, piece: Any, key: str | None = None) -> None:
        """Put such a piece."""

    def _link(self) -> None:  # noqa: B027
        """Let DeepSpeed find a state that it did not make."""

    @abstractmethod
    def _refresh(self) -> None:
        """Make the weights that the model computes with from the fp32 copy, on every process."""


class _ByZero2(_ByZero):
    """A process's partition is a run of all parameters in a row: it has some whole, two in part, most not at all."""

    def _flats(self) -> list[Any]:
        return list(self._optimizer.single_partition_of_fp32_groups)

    def _shape(self, name: str) -> Any:
        return self._parameters[name].shape

    def _start(self, name: str) -> int:
        mapping = self._parameters[name]._hp_mapping
        return 0 if mapping is None else int(mapping.lp_fragment_address.start)

    def _piece(self, name: str, key: str | None = None) -> Any:
        mapping = self._parameters[name]._hp_mapping
        return self._flats()[0].detach()[:0] if mapping is None else mapping.get_hp_fragment(key).detach()

    def _set(self, name: str, piece: Any, key: str | None = None) -> None:
        self._piece(name, key).copy_(piece)

    def _link(self) -> None:
        self._optimizer._lazy_init_hp_params_optimizer_state()

    def _refresh(self) -> None:
        self._optimizer.update_lp_params()


class _ByZero3(_ByZero):
    """A process has an equal run of every parameter, the last one padded."""

    _is_padded = True

    def _flats(self) -> list[Any]:
        return list(self._optimizer.fp32_partitioned_groups_flat)

    def _shape(self, name: str) -> Any:
        return self._parameters[name].ds_shape

    def _start(self, name: str) -> int:
        import torch

        return torch.distributed.get_rank() * int(self._parameters[name].partition_numel())

    def _piece(self, name: str, key: str | None = None) -> Any:
        from deepspeed.utils import safe_get_local_fp32_param, safe_get_local_optimizer_state

        parameter = self._parameters[name]
        if key is None:
            return safe_get_local_fp32_param(parameter).detach()
        return safe_get_local_optimizer_state(parameter, key).detach()

    def _set(self, name: str, piece: Any, key: str | None = None) -> None:
        from deepspeed.utils import safe_set_local_fp32_param, safe_set_local_optimizer_state

        if key is None:
            safe_set_local_fp32_param(self._parameters[name], piece)
        else:
            safe_set_local_optimizer_state(self._parameters[name], piece, key)

    def _refresh(self) -> None:
        optimizer = self._optimizer
        optimizer.checkpoint_event_prologue()  # small parameters that stay whole are let go,
        for group in range(len(optimizer.fp16_groups)):
            optimizer._reassign_or_swap_out_partitioned_parameters(group)
        optimizer.checkpoint_event_epilogue()  # and gathered again


def _whole(tensor: Any) -> Any:
    tensor = tensor.detach()
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).cpu().contiguous()


def _placed(tensor: Any, like: Any) -> Any:
    """`tensor` where and as `like` is: its device, its memory order, its shards."""
    if tensor.dim() == 0:
        return tensor.clone()
    if hasattr(like, "device_mesh"):
        from torch.distributed.tensor import distribute_tensor

        return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements)
    import torch

    return tensor.to(like.device, copy=True, memory_format=torch.preserve_format)
