"""One training step of a model that is not there: what it would keep in memory, and how much it would compute.

The model stands on the meta device, its tensors say that they are on the CPU, and every operation is run by PyTorch's
meta kernels, for shapes alone. A dispatch mode sees each storage come and go: so the peak is PyTorch's own, operation
by operation, whatever the architecture, the method or the checkpointing; and it counts the multiplications by PyTorch's
own formulas (torch.utils.flop_counter). What kernels and allocators need inside is not seen. PyTorch's FakeTensorMode
would give the same numbers (a test compares them) at about twice the cost.

A deep stack is not walked to its end: blocks are alike, so two depths are traced and the rest is a straight line.
"""

from __future__ import annotations

import copy
import functools
import weakref
from dataclasses import dataclass
from typing import Any

from components.params import TrainParams, UserError

PHASES = ("vision", "forward", "backward")
HEAP_LIMIT = 32 * 1024**2  # bytes: the C library keeps smaller blocks on its heap, larger ones go back when freed
EXACT_BLOCKS = 12  # stacks up to this deep are walked whole
MLLAMA_PERIOD = 5  # every fifth block attends to the page
MLLAMA_TOWER = 7  # vision blocks needed for the five outputs that are tapped: one of them global


@dataclass(frozen=True, slots=True)
class Part:
    """What one device works through at once: a batch, divided by devices and accumulation."""

    rows: int
    images: int  # pages of one row; 0 for text alone
    tokens: int  # of the longest row, the page's included
    answer_tokens: int  # of all rows: where the vocabulary's logits are computed
    height: int  # of a page, in pixels
    width: int


@dataclass(frozen=True, slots=True)
class Traced:
    """Bytes beyond the weights, by phase: `kept` without gradients of trained weights, `peak` with them; and FLOPs."""

    kept: dict[str, float]
    peak: dict[str, float]
    flops: float  # forward, backward and what checkpointing computes again

    def plus(self, other: Traced, times: float) -> Traced:
        def add(a: dict[str, float], b: dict[str, float]) -> dict[str, float]:
            return {phase: a[phase] + times * b[phase] for phase in PHASES}

        return Traced(add(self.kept, other.kept), add(self.peak, other.peak), self.flops + times * other.flops)


def trace_step(
    config: Any, train: TrainParams, part: Part, precision: str, gradients: bool = True, heap: float = 1.0
) -> Traced:
    """Trace forward and backward (`gradients=False`: a look, forward alone) of `part` through the base of `config`.

    Args:
        heap: how much room a block on the C library's heap takes, over its size.
        precision: `fp32`: weights and arithmetic in float32; `amp`: the same weights, arithmetic in bfloat16 by
            autocast; `bf16`: frozen weights in bfloat16 too; `half`: all weights in bfloat16, as DeepSpeed has them.
    """

    def at(text: int, vision: int) -> Traced:
        return _trace(_shrunk(config, text, vision), train, part, precision, gradients, heap)

    text, vision = depths(config)
    few = _few_text(config, train, text)
    few_vision = _few_vision(config, vision)
    first = at(few[0], few_vision[0])
    if not gradients:  # a block leaves nothing behind: the peak is that of any depth
        return first
    result = first
    if few[1] > few[0]:
        a_block = at(few[1], few_vision[0]).plus(first, -1.0)
        result = result.plus(a_block, (text - few[0]) / (few[1] - few[0]))
    if few_vision[1] > few_vision[0]:
        a_block = at(few[0], few_vision[1]).plus(first, -1.0)
        result = result.plus(a_block, (vision - few_vision[0]) / (few_vision[1] - few_vision[0]))
    return result


def depths(config: Any) -> tuple[int, int]:
    """Blocks of the language model and of a transformer tower (0: no tower, or a convolutional one)."""
    vision: Any = getattr(config, "vision_config", None)
    blocks = 0 if vision is None or config.model_type == "fast_vlm" else int(vision.num_hidden_layers)
    if config.model_type == "mllama":
        blocks += int(vision.num_global_layers)  # alike but for a gate
    return int(text_config(config).num_hidden_layers), blocks


def text_config(config: Any) -> Any:
    """The language model's part of a configuration."""
    return getattr(config, "text_config", config)


def image_tokens(config: Any, height: int, width: int) -> int:
    """Tokens that one page of `height` x `width` pixels takes of the sequence.

    Raises:
        UserError: a model type that no family covers.
    """
    import torch

    if config.model_type == "fast_vlm":
        return int(config.image_seq_length)
    if config.model_type == "mllama":
        return 1
    if config.model_type == "llava_next":
        from transformers.models.llava_next.modeling_llava_next import LlavaNextModel

        tower = config.vision_config
        patches = (tower.image_size // tower.patch_size) ** 2
        tiles = [torch.empty(_llava_tiles(config, height, width), patches, 1, device="meta")]
        newline = torch.empty(1, device="meta")
        pack: Any = LlavaNextModel.pack_image_features
        holder: Any = _Config(config)
        features, _ = pack(holder, tiles, [[height, width]], "default", image_newline=newline)
        return int(sum(one.shape[0] for one in features))
    if hasattr(config, "vision_config"):
        raise UserError(f"model.base: model type '{config.model_type}' is not supported by the estimate")
    return 0


def tiles_of(config: Any, height: int, width: int) -> int:
    """Pictures that the tower sees of one page. Mllama's processor pads every page to its largest number of tiles."""
    if config.model_type == "mllama":
        return int(config.vision_config.max_num_tiles)
    if config.model_type == "llava_next":
        return _llava_tiles(config, height, width)
    return 1 if hasattr(config, "vision_config") else 0


def quantized_layers(model: Any) -> dict[str, Any]:
    """The linear layers that QLoRA holds in 4 bits, by name: all of the language model's but its head."""
    from torch import nn

    from components.models.bases import UNQUANTIZED

    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and not any(part in UNQUANTIZED for part in name.split("."))
    }


def quantize_shapes(model: Any) -> None:
    """Replace those layers by ones that hold 4-bit codes, on the meta device."""
    for name, module in quantized_layers(model).items():
        model.set_submodule(name, _four_bit(module))


class _Config:
    def __init__(self, config: Any) -> None:
        self.config = config


def _llava_tiles(config: Any, height: int, width: int) -> int:
    from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

    sizes: Any = [height, width]
    return int(image_size_to_num_patches(sizes, config.image_grid_pinpoints, config.vision_config.image_size))


def _few_text(config: Any, train: TrainParams, blocks: int) -> tuple[int, int]:
    """Two depths of the language model to trace; equal where the stack is walked whole."""
    if blocks <= EXACT_BLOCKS:
        return blocks, blocks
    period = MLLAMA_PERIOD if config.model_type == "mllama" else 1
    least = train.partial.blocks + 1 if train.method == "partial" else 2
    first = -(-least // period) * period
    return (first, first + period) if first + period < blocks else (blocks, blocks)


def _few_vision(config: Any, blocks: int) -> tuple[int, int]:
    if blocks <= EXACT_BLOCKS:
        return blocks, blocks
    first = MLLAMA_TOWER if config.model_type == "mllama" else 3
    return first, first + 1


def _shrunk(config: Any, text: int, vision: int) -> Any:
    """The configuration with so many blocks."""
    small = copy.deepcopy(config)
    inner = text_config(small)
    if inner.num_hidden_layers != text:
        if small.model_type == "mllama":
            inner.cross_attention_layers = [i for i in inner.cross_attention_layers if i < text]
        inner.num_hidden_layers = text
        if getattr(inner, "layer_types", None):
            inner.layer_types = inner.layer_types[:text]
    if vision != depths(config)[1]:
        tower = small.vision_config
        tower.num_hidden_layers = vision
        if small.model_type == "mllama":
            tower.num_hidden_layers, tower.num_global_layers = vision - 1, 1
            tower.intermediate_layers_indices = list(range(len(tower.intermediate_layers_indices)))
    return small


def _trace(config: Any, train: TrainParams, part: Part, precision: str, gradients: bool, heap: float) -> Traced:
    import warnings

    import torch

    from components.models.adapters import attach
    from components.models.precision import hold_batchnorm
    from components.models.shapes import meta_model

    model = meta_model(config)
    if train.method == "qlora":
        quantize_shapes(model)
    if gradients:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # peft asks transformers by a name that is going away
            model = attach(model, train)
    else:
        model.requires_grad_(False)
    model.train(gradients)
    hold_batchnorm(model)
    if train.gradient_checkpointing and gradients:
        checkpoint_blocks(model)
    _cast(model, precision)
    made = _watch_mode()
    known = _to_ghosts(model, made.ghost)
    with made(known, heap) as watch, torch.set_grad_enabled(gradients):
        for parameter in model.parameters():
            if parameter.requires_grad and gradients:
                parameter.register_post_accumulate_grad_hook(watch.is_gradient)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision != "fp32"):
            loss = _loss(model, config, part, watch)
        if gradients:
            watch.phase = "backward"
            watch.touch()
            loss.backward()
        return Traced(dict(watch.kept_peak), dict(watch.peak), float(watch.flops))


def _loss(model: Any, config: Any, part: Part, watch: Any) -> Any:
    """The forward pass as `components.models.packing` makes it: packed rows, a mask over all, logits at answers."""
    import torch
    from torch.nn import functional

    rows, tokens = part.rows, part.tokens
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    inputs = {
        "attention_mask": torch.empty(rows, 1, tokens, tokens),
        "position_ids": torch.empty(rows, tokens, dtype=torch.int64),
        "use_cache": False,
    }
    ids = torch.empty(rows, tokens, dtype=torch.int64)
    watch.phase = "vision"
    if part.images == 0:
        watch.phase = "forward"
        hidden = inner.model(input_ids=ids, **inputs)[0]
    elif config.model_type == "mllama":
        hidden = inner.model(input_ids=ids, **inputs, **_mllama_page(config, part, watch, inner.model))[0]
    else:
        features = _features(inner.model, config, part)
        watch.phase = "forward"
        embedded = inner.model.get_input_embeddings()(ids)
        place = (ids == 0).unsqueeze(-1).expand_as(embedded)
        embedded = embedded.masked_scatter(place, features.to(embedded.dtype))
        hidden = inner.model.language_model(inputs_embeds=embedded, **inputs)[0]
    answers = torch.empty(part.answer_tokens, dtype=torch.int64)
    states = hidden.flatten(0, 1)[answers]
    logits = model.get_output_embeddings()(states).float()
    if not torch.is_grad_enabled():
        return logits
    losses = functional.cross_entropy(logits, answers, reduction="none")
    weights = torch.empty(part.answer_tokens)
    return torch.sum(losses * weights) / torch.sum(weights)


def _features(inner: Any, config: Any, part: Part) -> Any:
    """What the page becomes before it is put among the text's tokens."""
    import torch

    pages = part.rows * part.images
    if config.model_type == "fast_vlm":
        pixels = torch.empty(pages, 3, part.height, part.width)
        return inner.get_image_features(pixels).pooler_output
    side = config.vision_config.image_size
    pixels = torch.empty(pages, tiles_of(config, part.height, part.width), 3, side, side)
    sizes = [[part.height, part.width]] * pages
    packed = inner.get_image_features(
        pixels,
        sizes,
        vision_feature_layer=config.vision_feature_layer,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
    ).pooler_output
    return torch.cat(list(packed), dim=0)


def _mllama_page(config: Any, part: Part, watch: Any, inner: Any) -> dict[str, Any]:
    """The tower's outputs as cross-attention states, and the mask that goes with them."""
    import torch

    vision = config.vision_config
    rows, images, tiles = part.rows, part.images, vision.max_num_tiles
    outputs = inner.vision_model(
        pixel_values=torch.empty(rows, images, tiles, 3, vision.image_size, vision.image_size),
        aspect_ratio_ids=torch.empty(rows, images, dtype=torch.int64),
        aspect_ratio_mask=torch.empty(rows, images, tiles, dtype=torch.int64),
    )
    states = outputs.last_hidden_state
    states = inner.multi_modal_projector(states).reshape(-1, states.shape[-2], inner.hidden_size)
    watch.phase = "forward"
    return {
        "cross_attention_states": states,
        "cross_attention_mask": torch.empty(rows, part.tokens, images, tiles, dtype=torch.int64),
    }


def checkpoint_blocks(model: Any) -> None:
    """Let every block that transformers can checkpoint compute its activations again in the backward pass.

    transformers makes the embeddings' outputs require gradients with it, a crutch of the reentrant variant. It is taken
    away again: a frozen tower would stand under autograd, and Mllama's tower, which cannot be checkpointed, would keep
    every activation (measured in shapes: 25 GiB more for four pages of the 11B model).
    """
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    enable = getattr(inner, "activation_checkpointing_enable", None) or inner.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    if getattr(inner, "_require_grads_hooks", None):
        inner.disable_input_require_grads()


def _cast(model: Any, precision: str) -> None:
    import torch

    for parameter in model.parameters():
        frozen = precision == "bf16" and not parameter.requires_grad
        if (frozen or precision == "half") and parameter.dtype == torch.float32:
            parameter.data = parameter.data.to(torch.bfloat16)


def _to_ghosts(model: Any, ghost: Any) -> set[int]:
    """Let the model's meta tensors say that they are on the CPU; returns the storages of the weights."""
    import torch

    made: dict[int, Any] = {}
    for module in model.modules():
        for held in (module._parameters, module._buffers):
            for name, tensor in held.items():
                if tensor is None:
                    continue
                if id(tensor) not in made:
                    there: Any = ghost(tensor.detach().to("meta"))
                    if isinstance(tensor, torch.nn.Parameter):
                        there = torch.nn.Parameter(there, requires_grad=tensor.requires_grad)
                    made[id(tensor)] = there
                held[name] = made[id(tensor)]
    return {tensor.untyped_storage()._cdata for tensor in made.values()}


def _four_bit(linear: Any) -> Any:
    """A linear layer whose weight is 4-bit codes: unpacked for each product and thrown away, in both directions."""
    import torch
    from torch import nn

    class Unpacked(torch.autograd.Function):
        @staticmethod
        def forward(context: Any, states: Any, layer: Any) -> Any:
            context.layer, context.dtype = layer, states.dtype
            weight = torch.empty(layer.out_features, layer.in_features, dtype=states.dtype)
            return nn.functional.linear(states, weight)

        @staticmethod
        def backward(context: Any, *gradients: Any) -> Any:
            layer = context.layer
            weight = torch.empty(layer.out_features, layer.in_features, dtype=context.dtype)
            return gradients[0].to(context.dtype) @ weight, None

    class FourBit(nn.Linear):
        def forward(self, input: Any) -> Any:
            states = input.to(torch.get_autocast_dtype("cpu")) if torch.is_autocast_enabled("cpu") else input
            return Unpacked.apply(states, self)  # type: ignore[no-untyped-call]

    packed = FourBit(linear.in_features, linear.out_features, bias=False, device="meta")
    codes = torch.empty((linear.weight.numel() + 1) // 2, 1, dtype=torch.uint8, device="meta")
    packed.weight = nn.Parameter(codes, requires_grad=False)
    return packed


@functools.cache
def _watch_mode() -> Any:
    """The dispatch mode's class, made once torch is there."""
    import torch
    from torch.utils import flop_counter
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves, tree_map_only

    counts: Any = flop_counter
    flop_registry = counts.flop_registry
    aten: Any = torch.ops.aten
    mode: Any = TorchDispatchMode
    attention = aten._scaled_dot_product_flash_attention_for_cpu
    attention_backward = aten._scaled_dot_product_flash_attention_for_cpu_backward

    cpu, meta = torch.device("cpu"), torch.device("meta")
    tensor_type: Any = torch.Tensor
    inside: Any = torch._C
    device_of = torch.ops.prim.device.default

    class Ghost(tensor_type):  # type: ignore[misc]
        """A meta tensor with the CPU's dispatch keys: autocast, autograd and attention choose as on the CPU."""

        @staticmethod
        def __new__(cls: Any, shape: Any) -> Any:
            return tensor_type._make_subclass(
                cls, shape, shape.requires_grad, dispatch_device=True, device_for_backend_keys=cpu
            )

        __torch_function__ = inside._disabled_torch_function_impl

        @classmethod
        def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is device_of:
                return meta if inside._meta_in_tls_dispatch_include() else cpu
            return shapes_of(func, args, kwargs or {})

    @functools.cache
    def takes_device(func: Any) -> bool:
        return any(argument.name == "device" for argument in func._schema.arguments)

    def shapes_of(func: Any, args: Any, kwargs: Any) -> Any:
        """Run `func` by its meta kernel."""
        leaves = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, tensor_type)]
        if any(type(leaf) is not Ghost for leaf in leaves):  # a constant of the model's code
            args, kwargs = tree_map_only(
                tensor_type, lambda one: one if isinstance(one, Ghost) else one.detach().to(meta), (args, kwargs)
            )
        if takes_device(func) and (not leaves or kwargs.get("device") is not None):
            kwargs = kwargs | {"device": meta}
        with inside._DisableTorchDispatch(), inside._PreserveDispatchKeyGuard():
            inside._set_meta_in_tls_dispatch_include(True)
            out = func(*args, **kwargs)
        if isinstance(out, tensor_type):
            return out if isinstance(out, Ghost) else Ghost(out)
        return tree_map_only(tensor_type, lambda one: one if isinstance(one, Ghost) else Ghost(one), out)

    class Watch(mode):  # type: ignore[misc]
        ghost, run = Ghost, staticmethod(shapes_of)

        @classmethod
        def _should_skip_dynamo(cls) -> bool:
            return False  # nothing is compiled here: no need of PyTorch's guard around every operation

        def __init__(self, known: set[int], heap: float) -> None:
            super().__init__()
            self.heap = heap
            self.live: dict[int, int] = {}
            self.known, self.gradients = known, set[int]()
            self.kept = self.held = self.flops = 0
            self.phase = PHASES[0]
            self.kept_peak, self.peak = dict.fromkeys(PHASES, 0), dict.fromkeys(PHASES, 0)

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is device_of:
                return cpu
            kwargs = kwargs or {}
            out = self.run(func, args, kwargs)
            packet = func._overloadpacket
            if packet in flop_registry:
                self.flops += flop_registry[packet](*args, **kwargs, out_val=out)
            elif packet is attention:
                self.flops += counts.sdpa_flop_count(args[0].shape, args[1].shape, args[2].shape)
            elif packet is attention_backward:
                self.flops += counts.sdpa_backward_flop_count(
                    args[0].shape, args[1].shape, args[2].shape, args[3].shape
                )
            for leaf in tree_leaves(out):
                if isinstance(leaf, torch.Tensor):
                    self._see(leaf.untyped_storage())
            return out

        def _see(self, storage: Any) -> None:
            key = storage._cdata
            if key in self.known or key in self.live:
                return
            size = storage.nbytes()
            self.live[key] = round(size * self.heap) if size < HEAP_LIMIT else size
            self.kept += self.live[key]
            weakref.finalize(storage, self._gone, key)
            self.touch()

        def _gone(self, key: int) -> None:
            size = self.live.pop(key, 0)
            if key in self.gradients:
                self.gradients.discard(key)
                self.held -= size
            else:
                self.kept -= size

        def touch(self) -> None:
            phase = self.phase
            self.kept_peak[phase] = max(self.kept_peak[phase], self.kept)
            self.peak[phase] = max(self.peak[phase], self.kept + self.held)

        def is_gradient(self, parameter: Any) -> None:
            key = parameter.grad.untyped_storage()._cdata
            if key in self.live and key not in self.gradients:
                self.gradients.add(key)
                self.kept -= self.live[key]
                self.held += self.live[key]

    return Watch
