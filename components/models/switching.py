"""Several adapters on one base in memory: loaded by name, one of them in use at a time.

Low-rank adapters stand side by side in the base's layers. Of `partial` and `full` only the trained tensors are kept,
and they change places with the base's own when they come into use.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from components.models.adapters import LOW_RANK, WEIGHTS, check_base, verify_adapter
from components.models.bases import Base
from components.params import UserError, nearest


class Adapters:
    """A base with adapters over it. `model` answers as the one in use, or as the base when none is."""

    def __init__(self, base: Base) -> None:
        self.base, self.model, self.in_use = base, base.model, None
        # The base's parameters by their own names: wrapped by peft they get others, but stay the same objects.
        self._parameters: dict[str, Any] = dict(base.model.named_parameters())
        self._low_rank: set[str] = set()
        self._tensors: dict[str, dict[str, Any]] = {}
        self._own: dict[str, Any] = {}  # what of the base stands aside for the adapter in use

    in_use: str | None

    @property
    def names(self) -> list[str]:
        return sorted({*self._low_rank, *self._tensors})

    def load(self, name: str, folder: Path) -> None:
        """Load the adapter of `folder` as `name`; the one in use stays in use.

        Raises:
            UserError: a damaged folder, an adapter of another base, or a name that is taken.
        """
        if name in self.names:
            raise UserError(f"adapter '{name}' is loaded already; give {folder} another name")
        manifest = verify_adapter(folder)
        check_base(self.base, manifest, folder)
        if manifest["method"] in LOW_RANK:
            self._load_low_rank(name, folder)
        else:
            self._tensors[name] = self._load_tensors(folder)
        self._set(self.in_use)

    def unload(self, name: str) -> None:
        """Forget adapter `name`; where it was in use, the base alone answers.

        Raises:
            UserError: no adapter of that name is loaded.
        """
        self._check(name)
        in_use = None if self.in_use == name else self.in_use
        self._set(None)
        self._tensors.pop(name, None)
        if name in self._low_rank:
            self._low_rank.remove(name)
            if self._low_rank:  # peft warns where it has to choose which one follows
                self.model.set_adapter(min(self._low_rank))
            self.model.delete_adapter(name)
            if not self._low_rank:  # the next one wraps the base anew
                self.model = self.model.unload()
        self._set(in_use)

    def use(self, name: str | None) -> Any:
        """Let `model` answer as adapter `name`, or as the base alone for None; returns the model.

        Raises:
            UserError: no adapter of that name is loaded.
        """
        if name is not None:
            self._check(name)
        self._set(name)
        return self.model

    def _check(self, name: str) -> None:
        if name not in self.names:
            raise UserError(f"adapter '{name}' is not loaded{nearest(name, self.names)}")

    def _set(self, name: str | None) -> None:
        for parameter, tensor in self._own.items():
            self._parameters[parameter].data = tensor
        self._own = {}
        if self._low_rank:
            if name in self._low_rank:
                self.model.base_model.enable_adapter_layers()
                self.model.set_adapter(name)
            else:
                self.model.base_model.disable_adapter_layers()
        for parameter, tensor in self._tensors.get(name or "", {}).items():
            self._own[parameter] = self._parameters[parameter].data
            self._parameters[parameter].data = tensor
        for parameter in self.model.parameters():
            parameter.requires_grad_(False)
        self.in_use = name
        self.model.eval()

    def _load_low_rank(self, name: str, folder: Path) -> None:
        from peft import PeftModel

        self._set(None)
        if self._low_rank:
            self.model.load_adapter(folder, adapter_name=name)
        else:
            self.model = PeftModel.from_pretrained(self.base.model, folder, adapter_name=name)
        self._low_rank.add(name)

    def _load_tensors(self, folder: Path) -> dict[str, Any]:
        from safetensors.torch import load_file

        tensors = load_file(folder / WEIGHTS)
        for name, tensor in tensors.items():
            own = self._parameters.get(name)
            if own is None or own.shape != tensor.shape:
                raise UserError(f"{folder / WEIGHTS}: holds '{name}', which this base does not have so; load its base")
            tensors[name] = tensor.to(own.device, own.dtype)
        return tensors
