"""Pipelines of diffusers' true classes with random weights, text encoders included, in folders."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from environment import package

from chunk_grpo_core.models.pipelines import loading
from chunk_grpo_core.models.registry import FAMILIES

WORDS = ["a", "red", "fox", "large", "bird", "two", "owls", "hat", "blurry", "in", "the", "snow"]
_SPECIAL = [
    "<pad>", "<unk>", "</s>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>",
    "<|image_pad|>", "<|video_pad|>", "[INST]", "[/INST]", "[IMG]", "[IMG_BREAK]", "[IMG_END]",
]  # fmt: skip
_C = 4
"""Latent channels."""
LINEAR = {
    "use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 0.9,
    "base_image_seq_len": 4, "max_image_seq_len": 64,
}  # fmt: skip


def skip_where_diffusers_is_old(family: str) -> None:
    """Leave out a family whose pipeline the installed diffusers does not have."""
    since = FAMILIES[family].load.args[0].since
    if not loading.is_new_enough(package("diffusers").__version__, since):
        pytest.skip(f"needs diffusers {since}")


def tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = [*_SPECIAL, *WORDS]
    model = models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>")
    made = Tokenizer(model)
    made.pre_tokenizer = pre_tokenizers.Whitespace()  # as many tokens as the templates expect
    fast = PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", unk_token="<unk>", eos_token="</s>",
        model_max_length=77, additional_special_tokens=["<|image_pad|>"],
    )  # fmt: skip
    fast.chat_template = (
        "{% for m in messages %}{% if m['content'] is string %}{{ m['content'] }}"
        "{% else %}{{ m['content'][0]['text'] }}{% endif %} {% endfor %}"
    )
    return fast


def kl() -> Any:
    from diffusers import AutoencoderKL

    blocks = 4
    return AutoencoderKL(
        block_out_channels=(4,) * blocks, norm_num_groups=1, latent_channels=_C,
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks, layers_per_block=1,
        scaling_factor=1.5, shift_factor=0.1, use_quant_conv=False, use_post_quant_conv=False,
    )  # fmt: skip


def t5() -> Any:
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(
        T5Config(d_model=8, d_ff=8, d_kv=8, num_layers=1, num_heads=1, vocab_size=64)
    )


def qwen3(kind: str, layers: int = 3) -> Any:
    import transformers

    config = transformers.Qwen3Config(
        hidden_size=8, intermediate_size=8, num_hidden_layers=layers, num_attention_heads=1,
        num_key_value_heads=1, head_dim=8, vocab_size=64,
    )  # fmt: skip
    return getattr(transformers, kind)(config)


def sd3() -> Any:
    import diffusers
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    clip = CLIPTextConfig(
        hidden_size=4, intermediate_size=8, num_hidden_layers=2, num_attention_heads=1,
        vocab_size=64, projection_dim=4, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    return diffusers.StableDiffusion3Pipeline(
        transformer=diffusers.SD3Transformer2DModel(
            sample_size=8, patch_size=2, in_channels=_C, out_channels=_C, num_layers=2,
            attention_head_dim=8, num_attention_heads=2, joint_attention_dim=8,
            caption_projection_dim=16, pooled_projection_dim=8, pos_embed_max_size=8,
            qk_norm="rms_norm", dual_attention_layers=(0,),
        ),
        vae=kl(), scheduler=scheduler(shift=3.0),
        text_encoder=CLIPTextModelWithProjection(clip), tokenizer=tokenizer(),
        text_encoder_2=CLIPTextModelWithProjection(clip), tokenizer_2=tokenizer(),
        text_encoder_3=t5(), tokenizer_3=tokenizer(),
    )  # fmt: skip


def z_image() -> Any:
    import diffusers

    return diffusers.ZImagePipeline(
        transformer=diffusers.ZImageTransformer2DModel(
            in_channels=_C, dim=16, n_layers=1, n_refiner_layers=1, n_heads=2, n_kv_heads=2,
            cap_feat_dim=8, axes_dims=[4, 2, 2], axes_lens=[64, 32, 32],
        ),
        vae=kl(), scheduler=scheduler(shift=3.0),
        text_encoder=qwen3("Qwen3Model"), tokenizer=tokenizer(),
    )  # fmt: skip


def scheduler(**settings: Any) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(**settings)


def flux2_vae() -> Any:
    from diffusers import AutoencoderKLFlux2

    blocks = 4
    vae = AutoencoderKLFlux2(
        block_out_channels=(4,) * blocks, norm_num_groups=1, latent_channels=_C,
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks, layers_per_block=1,
    )  # fmt: skip
    vae.bn.running_mean.uniform_(-1, 1)
    vae.bn.running_var.uniform_(0.5, 2)
    return vae


def flux2_transformer(guidance: bool) -> Any:
    from diffusers import Flux2Transformer2DModel

    return Flux2Transformer2DModel(
        in_channels=4 * _C, num_layers=1, num_single_layers=1, attention_head_dim=8,
        num_attention_heads=2, joint_attention_dim=24, timestep_guidance_channels=8,
        axes_dims_rope=(2, 2, 2, 2), guidance_embeds=guidance,
    )  # fmt: skip


def flux2() -> Any:
    import diffusers
    import transformers

    text = {
        "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 30, "head_dim": 8,
        "num_attention_heads": 1, "num_key_value_heads": 1, "vocab_size": 64,
    }  # fmt: skip
    vision = {
        "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
        "num_attention_heads": 1, "head_dim": 8, "image_size": 28, "patch_size": 14,
    }  # fmt: skip
    config = transformers.Mistral3Config(
        text_config=transformers.MistralConfig(**text),
        vision_config=transformers.PixtralVisionConfig(**vision), image_token_index=11,
    )  # fmt: skip
    return diffusers.Flux2Pipeline(
        transformer=flux2_transformer(True), vae=flux2_vae(),
        scheduler=scheduler(shift=3.0, **LINEAR),
        text_encoder=transformers.Mistral3ForConditionalGeneration(config),
        tokenizer=tokenizer(),
    )  # fmt: skip


def flux2_klein() -> Any:
    import diffusers

    return diffusers.Flux2KleinPipeline(
        transformer=flux2_transformer(False), vae=flux2_vae(),
        scheduler=scheduler(shift=3.0, **LINEAR),
        text_encoder=qwen3("Qwen3ForCausalLM", 27), tokenizer=tokenizer(),
    )  # fmt: skip


def qwen_vae() -> Any:
    from diffusers import AutoencoderKLQwenImage

    return AutoencoderKLQwenImage(
        base_dim=4, z_dim=_C, dim_mult=[1, 1, 1, 1], num_res_blocks=1,
        temperal_downsample=[False, True, True], latents_mean=[0.1, 0.2, 0.3, 0.4],
        latents_std=[1.0, 2.0, 3.0, 4.0],
    )  # fmt: skip


def qwen_vl(version: str, kind: str, layers: int = 2) -> Any:
    import transformers

    rope = {"mrope_section": [1, 1, 2], "rope_type": "default"}
    text = {
        "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": layers,
        "num_attention_heads": 1, "num_key_value_heads": 1, "vocab_size": 64,
        "rope_scaling": rope, "rope_theta": 1e4,
    }  # fmt: skip
    vision = {
        "depth": 1, "hidden_size": 8, "intermediate_size": 8, "num_heads": 1,
        "out_hidden_size": 8,
    }  # fmt: skip
    if version == "Qwen3VL":
        text["head_dim"] = 8
        text["rope_scaling"] = {**rope, "mrope_interleaved": True}
        vision["deepstack_visual_indexes"] = []
    config = getattr(transformers, f"{version}Config")(text_config=text, vision_config=vision)
    return getattr(transformers, kind)(config)


def qwen_image() -> Any:
    import diffusers

    pipe = diffusers.QwenImagePipeline(
        transformer=diffusers.QwenImageTransformer2DModel(
            patch_size=2, in_channels=4 * _C, out_channels=_C, num_layers=2,
            attention_head_dim=8, num_attention_heads=2, joint_attention_dim=8,
            axes_dims_rope=(4, 2, 2),
        ),
        vae=qwen_vae(), scheduler=scheduler(shift=1.0, shift_terminal=0.02, **LINEAR),
        text_encoder=qwen_vl("Qwen2_5_VL", "Qwen2_5_VLForConditionalGeneration"),
        tokenizer=tokenizer(),
    )  # fmt: skip
    return pipe


def qwen_image_21() -> Any:
    import diffusers

    from chunk_grpo_core.models.qwen_image import TextProcessor

    return diffusers.QwenImage21Pipeline(
        transformer=diffusers.QwenImage21Transformer2DModel(
            in_channels=_C, out_channels=_C, num_layers=1, attention_head_dim=8,
            num_attention_heads=2, context_in_dim=8, mlp_ratio=2, axes_dims_rope=(4, 2, 2),
        ),
        vae=diffusers.AutoencoderKLQwenImage21(
            base_dim=4, decoder_base_dim=4, z_dim=_C, dim_mult=[1] * 5, num_res_blocks=1,
            temperal_downsample=[False, True, True, True], latents_mean=[0.1, 0.2, 0.3, 0.4],
            latents_std=[1.0, 2.0, 3.0, 4.0],
        ),
        scheduler=scheduler(shift=1.0, **LINEAR),
        text_encoder=qwen_vl("Qwen3VL", "Qwen3VLForConditionalGeneration"),
        processor=TextProcessor(tokenizer()),  # the whole one needs torchvision
    )  # fmt: skip


def chroma() -> Any:
    import diffusers

    return diffusers.ChromaPipeline(
        transformer=diffusers.ChromaTransformer2DModel(
            in_channels=4 * _C, num_layers=1, num_single_layers=1, attention_head_dim=8,
            num_attention_heads=2, joint_attention_dim=8, axes_dims_rope=(4, 2, 2),
            approximator_num_channels=8, approximator_hidden_dim=8, approximator_layers=1,
        ),
        vae=kl(), scheduler=scheduler(shift=1.0, **LINEAR), text_encoder=t5(),
        tokenizer=tokenizer(),
    )  # fmt: skip


def krea2() -> Any:
    import diffusers

    return diffusers.Krea2Pipeline(
        transformer=diffusers.Krea2Transformer2DModel(
            in_channels=4 * _C, num_layers=1, attention_head_dim=8, num_attention_heads=2,
            num_key_value_heads=1, intermediate_size=16, timestep_embed_dim=8,
            text_hidden_dim=8, num_text_layers=2, text_num_attention_heads=1,
            text_num_key_value_heads=1, text_intermediate_size=8,
            num_layerwise_text_blocks=1, num_refiner_text_blocks=1, axes_dims_rope=(4, 2, 2),
        ),
        vae=qwen_vae(), scheduler=scheduler(shift=1.0, **LINEAR),
        text_encoder=qwen_vl("Qwen3VL", "Qwen3VLModel"), tokenizer=tokenizer(),
        text_encoder_select_layers=[1, 2],
    )  # fmt: skip


PIPELINES: dict[str, Callable[[], Any]] = {
    "z-image": z_image,
    "sd3": sd3,
    "flux2": flux2,
    "flux2-klein": flux2_klein,
    "qwen-image": qwen_image,
    "qwen-image-2.1": qwen_image_21,
    "chroma": chroma,
    "krea2": krea2,
}
"""Name of the family -> a small pipeline."""


def small_pipeline(family: str) -> Any:
    """The same pipeline at every call; weights that begin as zero are drawn, too, so that they
    cannot hide a mistake."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipe = PIPELINES[family]()
        for part in pipe.components.values():
            if isinstance(part, torch.nn.Module):
                part.eval().requires_grad_(False)
        for parameter in pipe.transformer.parameters():
            if not parameter.any():
                parameter.normal_(std=0.2)
    pipe.set_progress_bar_config(disable=True)
    if family == "chroma":  # its mask of 0 and 1 is added to the scores of attention
        prepared = pipe._prepare_attention_mask

        def as_truth(**given: Any) -> Any:
            mask = prepared(**given)
            return None if mask is None else mask.bool()

        pipe._prepare_attention_mask = as_truth
    return pipe


def saved(family: str, folder: Path) -> Path:
    """Write the pipeline, as diffusers does."""
    pipe = small_pipeline(family)
    if "processor" not in pipe.components:
        pipe.save_pretrained(folder)
        return folder
    index = {"_class_name": type(pipe).__name__}
    for name, part in pipe.components.items():
        (part if hasattr(part, "save_pretrained") else part.tokenizer).save_pretrained(
            folder / name
        )
        library = type(part).__module__.partition(".")[0]
        kind = "Qwen3VLProcessor" if name == "processor" else type(part).__name__
        index[name] = ["transformers" if name == "processor" else library, kind]
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder
