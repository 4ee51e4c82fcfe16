"""Tell model files apart by the names and shapes of their tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ..weight_file import Shapes, below

__all__ = ["PARTS", "PartKind", "identify"]


@dataclass(frozen=True)
class PartKind:
    """How to recognise one of the models that FLUX.1 is made of."""

    title: str
    prefixes: tuple[str, ...]
    layouts: Mapping[str, tuple[str, ...]]
    """Layout -> names that only this model has, all of them."""


#: The models FLUX.1 is made of.
PARTS = {
    "transformer": PartKind(
        "a FLUX.1 transformer",
        ("", "model.diffusion_model.", "diffusion_model.", "transformer."),
        {
            "native": (
                "img_in.weight",
                "vector_in.in_layer.weight",
                "double_blocks.0.img_mod.lin.weight",
                "double_blocks.0.img_attn.qkv.weight",
                "single_blocks.0.linear1.weight",
            ),
            "diffusers": (
                "x_embedder.weight",
                "context_embedder.weight",
                "transformer_blocks.0.norm1_context.linear.weight",
                "single_transformer_blocks.0.proj_mlp.weight",
            ),
        },
    ),
    "vae": PartKind(
        "a VAE",
        ("", "vae.", "first_stage_model."),
        {
            "native": ("decoder.conv_in.weight", "decoder.mid.block_1.conv1.weight"),
            "diffusers": ("decoder.conv_in.weight", "decoder.mid_block.resnets.0.conv1.weight"),
        },
    ),
    "clip": PartKind(
        "a CLIP-L text encoder",
        ("", "text_encoders.clip_l.transformer.", "text_encoders.clip_l.", "clip_l."),
        {"native": ("text_model.embeddings.token_embedding.weight",)},
    ),
    "t5": PartKind(
        "a T5 text encoder",
        ("", "text_encoders.t5xxl.transformer.", "text_encoders.t5xxl.", "t5xxl.transformer."),
        {"native": ("shared.weight", "encoder.block.0.layer.0.SelfAttention.q.weight")},
    ),
}


def identify(shapes: Shapes) -> str:
    """Say in a few words what a file with these tensors is."""
    for start in ("", "model.diffusion_model."):
        inner = below(shapes, start)
        for title, is_this in _KINDS:
            if is_this(inner):
                return f"a whole checkpoint with {title}" if start else title
    for part in PARTS.values():
        for names in part.layouts.values():
            if all(name in shapes for name in names):
                return part.title
    names = ", ".join(sorted(shapes)[:3]) or "none"
    return f"something unknown (its first tensors: {names})"


def _has(*names: str) -> Callable[[Shapes], bool]:
    return lambda shapes: all(name in shapes for name in names)


def _any(*pieces: str) -> Callable[[Shapes], bool]:
    return lambda shapes: any(piece in name for name in shapes for piece in pieces)


def _vae_of(channels: int) -> Callable[[Shapes], bool]:
    return lambda shapes: shapes.get("decoder.conv_in.weight", (0, 0))[1] == channels


def _width(name: str, width: int) -> Callable[[Shapes], bool]:
    return lambda shapes: shapes.get(name, (0,))[-1] == width


_CLIP = "text_model.embeddings.token_embedding.weight"
#: What else people have on their disks; the first that fits.
_KINDS: tuple[tuple[str, Callable[[Shapes], bool]], ...] = (
    ("a LoRA", _any(".lora_A.", ".lora_B.", ".lora_down.", ".lora_up.", ".lora.down.", ".lokr_")),
    ("a ControlNet", _any("controlnet_", "control_model.")),
    ("an SD3 transformer", _has("joint_blocks.0.context_block.attn.qkv.weight")),
    ("an SD3 transformer", _has("pos_embed.proj.weight", "transformer_blocks.0.ff.net.2.weight")),
    ("an SDXL U-Net", _has("input_blocks.0.0.weight", "label_emb.0.0.weight")),
    ("a Stable Diffusion U-Net", _has("input_blocks.0.0.weight")),
    ("a Stable Diffusion U-Net", _has("conv_in.weight", "down_blocks.0.resnets.0.conv1.weight")),
    ("a FLUX.2 transformer", _has("double_stream_modulation_img.lin.weight")),
    ("a FLUX.2 transformer", _has("double_stream_modulation_img.linear.weight")),
    ("a Chroma transformer", _any("distilled_guidance_layer.")),
    ("a HunyuanVideo transformer", _any("individual_token_refiner.")),
    ("a Qwen-Image transformer", _has("transformer_blocks.0.img_mod.1.weight")),
    ("a Z-Image or Lumina transformer", _any("noise_refiner.0.")),
    ("a Wan transformer", _has("patch_embedding.weight", "blocks.0.cross_attn.k.weight")),
    ("a FLUX.1 transformer", _has(*PARTS["transformer"].layouts["native"])),
    ("a FLUX.1 transformer", _has(*PARTS["transformer"].layouts["diffusers"])),
    ("a FLUX.1 or SD3 VAE", _vae_of(16)),
    ("a Stable Diffusion VAE", _vae_of(4)),
    ("a T5 text encoder", _has("encoder.block.0.layer.0.SelfAttention.q.weight")),
    ("a CLIP-L text encoder", _width(_CLIP, 768)),
    ("a CLIP-G text encoder", _width(_CLIP, 1280)),
    ("a CLIP vision model", _any("vision_model.")),
    ("a language model", _has("model.layers.0.self_attn.q_proj.weight")),
)
