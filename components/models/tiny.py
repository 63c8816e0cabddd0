"""The tiny bases, as transformers' own architectures with small sizes and fresh weights.

`ecg-tiny`: FastVLM with a ResNet tower and a 4-layer Llama. `ecg-llama-tiny`: Mllama, the code path of Llama 3.2
Vision, and `pulse-tiny`: LLaVA-NeXT, that of PULSE. Their ViT towers stay at chance when trained on a CPU, so they
prove the path and nothing else. `ecg-smol`: FastVLM with the tower of ecg-tiny and the text model of SmolLM2.
"""

from __future__ import annotations

from typing import Any

PAGE_WIDTH, PAGE_HEIGHT, TOKEN_PX = 352, 256, 32
VOCABULARY = 1536
PIXEL_MEAN, PIXEL_STD = 0.85, 0.25  # pages are mostly paper: this centres paper and ink


def build_ecg_tiny(tokenizer: Any, seed: int) -> tuple[Any, Any]:
    """`(model, processor)` of about 2.2 M parameters in float32, freshly initialised from `seed`."""
    import torch
    from transformers import (
        FastVlmConfig,
        FastVlmForConditionalGeneration,
        LlamaConfig,
        ResNetConfig,
    )

    torch.manual_seed(seed)
    vision = _resnet_config(ResNetConfig)
    text = _text_config(LlamaConfig, tokenizer)
    image_token = tokenizer.convert_tokens_to_ids("<image>")
    config = FastVlmConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=image_token,
        image_seq_length=(PAGE_WIDTH // TOKEN_PX) * (PAGE_HEIGHT // TOKEN_PX),
        tie_word_embeddings=True,
    )
    model = FastVlmForConditionalGeneration(config)
    return model, _fast_vlm_processor(tokenizer)


def build_ecg_llama_tiny(tokenizer: Any, seed: int) -> tuple[Any, Any]:
    """`(model, processor)`: a Mllama of about 3 M parameters in float32, freshly initialised from `seed`."""
    import torch
    from transformers import MllamaConfig, MllamaForConditionalGeneration
    from transformers.models.mllama.configuration_mllama import MllamaTextConfig, MllamaVisionConfig

    torch.manual_seed(seed)
    tile = 224
    vision = MllamaVisionConfig(
        hidden_size=128,
        num_hidden_layers=2,
        num_global_layers=1,
        attention_heads=4,
        intermediate_size=256,
        vision_output_dim=256,
        image_size=tile,
        patch_size=16,
        max_num_tiles=2,
        intermediate_layers_indices=[1],
        supported_aspect_ratios=[[1, 1], [1, 2], [2, 1]],
    )
    text = MllamaTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=320,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        cross_attention_layers=[1, 3],
        max_position_embeddings=2048,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    config = MllamaConfig(
        vision_config=vision, text_config=text, image_token_index=tokenizer.convert_tokens_to_ids("<image>")
    )
    model = MllamaForConditionalGeneration(config)
    # Fresh gates are 0 and LoRA does not touch them: at 0 the text would never see the page.
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("cross_attn_attn_gate", "cross_attn_mlp_gate")):
                parameter.fill_(1.0)
    from transformers import AutoImageProcessor  # noqa: F401  (registers the processors)
    from transformers.models.mllama.image_processing_pil_mllama import MllamaImageProcessorPil
    from transformers.models.mllama.processing_mllama import MllamaProcessor

    tokenizer.image_token = "<image>"
    tokenizer.image_token_id = tokenizer.convert_tokens_to_ids("<image>")
    images = MllamaImageProcessorPil(size={"height": tile, "width": tile}, max_image_tiles=2)
    make: Any = MllamaProcessor
    return model, make(image_processor=images, tokenizer=tokenizer, chat_template=tokenizer.chat_template)


def build_pulse_tiny(tokenizer: Any, seed: int) -> tuple[Any, Any]:
    """`(model, processor)`: a LLaVA-NeXT of about 1.4 M parameters in float32, freshly initialised from `seed`.

    The path of PULSE (arXiv 2410.19008: LLaVA-NeXT with Vicuna) at toy size: CLIP tower, tiles, projector, Llama. A ViT
    tower of this size stays at chance on a CPU; what is trained on it proves the path and nothing else.
    """
    import torch
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaNextConfig,
        LlavaNextForConditionalGeneration,
        LlavaNextProcessor,
    )
    from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

    torch.manual_seed(seed)
    tile, patch = 96, 16
    grid = [[tile, 2 * tile], [2 * tile, tile], [2 * tile, 2 * tile]]
    vision = CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=tile,
        patch_size=patch,
        projection_dim=128,
    )
    config = LlavaNextConfig(
        vision_config=vision,
        text_config=_text_config(LlamaConfig, tokenizer),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=grid,
        image_seq_length=(tile // patch) ** 2,
        tie_word_embeddings=True,
    )
    model = LlavaNextForConditionalGeneration(config)
    images = LlavaNextImageProcessorPil(
        size={"shortest_edge": tile}, crop_size={"height": tile, "width": tile}, image_grid_pinpoints=grid
    )
    make: Any = LlavaNextProcessor
    processor = make(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=patch,
        vision_feature_select_strategy="default",
        chat_template=tokenizer.chat_template,
        image_token="<image>",
        num_additional_image_tokens=1,
    )
    return model, processor


# A turn's content may be a list of parts, as processors take it; an image writes its placeholder.
PARTS_MACRO = (
    "{%- macro parts(content) -%}{%- if content is string -%}{{ content }}{%- else -%}{%- for part in content -%}"
    "{{ '<image>' if part['type'] == 'image' else part['text'] }}{%- endfor -%}{%- endif -%}{%- endmacro -%}"
)


def ecg_smol_config(text: Any, image_token: int) -> Any:
    """FastVLM's configuration over SmolLM2's, whose vocabulary grows to hold `<image>` at id `image_token`."""
    from transformers import FastVlmConfig, ResNetConfig

    sizes = {key: value for key, value in text.to_dict().items() if key not in ("model_type", "architectures")}
    return FastVlmConfig(
        vision_config=_resnet_config(ResNetConfig),
        text_config=type(text)(**{**sizes, "vocab_size": image_token + 1}),
        image_token_index=image_token,
        image_seq_length=(PAGE_WIDTH // TOKEN_PX) * (PAGE_HEIGHT // TOKEN_PX),
        tie_word_embeddings=True,
    )


def build_ecg_smol(text: Any, tokenizer: Any, tower: dict[str, Any], seed: int) -> tuple[Any, Any]:
    """`(model, processor)`: a FastVLM of 135 M parameters that reads pages with a trained tower and writes English.

    Args:
        text: SmolLM2 (LlamaForCausalLM), whose weights are taken over.
        tokenizer: SmolLM2's; `<image>` is added to it, and to its chat template.
        tower: weights of ecg-tiny's vision tower.
        seed: of the projector, the only fresh part.
    """
    import torch
    from transformers import FastVlmForConditionalGeneration

    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    tokenizer.chat_template = PARTS_MACRO + tokenizer.chat_template.replace(
        "message['content']", "parts(message['content'])"
    )
    model: Any = FastVlmForConditionalGeneration(
        ecg_smol_config(text.config, tokenizer.convert_tokens_to_ids("<image>"))
    )
    torch.manual_seed(seed)  # the projector alone: how much was drawn before it must not matter
    model.model.multi_modal_projector.apply(model._init_weights)
    model.model.vision_tower.load_state_dict(tower)
    weights = dict(text.model.state_dict())
    known = weights["embed_tokens.weight"]
    # The new token never stands for itself: features take its place. The mean is never the likeliest next token.
    weights["embed_tokens.weight"] = torch.cat([known, known.mean(0, keepdim=True)])
    model.model.language_model.load_state_dict(weights)
    model.tie_weights()
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model, _fast_vlm_processor(tokenizer)


def _fast_vlm_processor(tokenizer: Any) -> Any:
    from transformers import LlavaProcessor

    make: Any = LlavaProcessor
    return make(
        image_processor=_image_processor(),
        tokenizer=tokenizer,
        patch_size=TOKEN_PX,
        vision_feature_select_strategy="full",
        chat_template=tokenizer.chat_template,
        image_token="<image>",
        num_additional_image_tokens=0,
    )


def _resnet_config(kind: Any) -> Any:
    return kind(
        layer_type="basic",
        depths=[1, 1, 1, 1],
        hidden_sizes=[32, 64, 128, 256],
        embedding_size=16,
        hidden_size=256,  # what FastVLM's projector asks its tower for
    )


def _text_config(kind: Any, tokenizer: Any) -> Any:
    return kind(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=320,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )


def _image_processor() -> Any:
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    return CLIPImageProcessorPil(
        do_resize=True,
        size={"height": PAGE_HEIGHT, "width": PAGE_WIDTH},
        do_center_crop=False,
        do_convert_rgb=True,
        image_mean=[PIXEL_MEAN] * 3,
        image_std=[PIXEL_STD] * 3,
    )
