"""Pipelines of diffusers' true classes with random weights, text encoders included, in folders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

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


def tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = [*_SPECIAL, *WORDS]
    model = models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>")
    made = Tokenizer(model)
    made.pre_tokenizer = pre_tokenizers.Whitespace()  # as many tokens as the templates expect
    fast = PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", unk_token="<unk>", eos_token="</s>",
        model_max_length=77,
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


def qwen3(kind: str) -> Any:
    import transformers

    config = transformers.Qwen3Config(
        hidden_size=8, intermediate_size=8, num_hidden_layers=3, num_attention_heads=1,
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


PIPELINES: dict[str, Callable[[], Any]] = {
    "z-image": z_image,
    "sd3": sd3,
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
    return pipe


def saved(family: str, folder: Path) -> Path:
    """Write the pipeline, as diffusers does."""
    small_pipeline(family).save_pretrained(folder)
    return folder
