"""One tiny model twice: a transformer of diffusers and ComfyUI's MODEL with the same weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from native_names import NATIVE
from torch import Tensor

from ..tiny_architectures import models
from ..tiny_architectures.architecture import FLUX, Architecture, no_pooled

C, TEXT, GUIDANCE = 16, 32, 3.5
_PATCHES = "b c (h p) (w q) -> b (h w) (c p q)"


def _flux2_config(guidance: bool) -> dict[str, Any]:
    return {
        **FLUX, "image_model": "flux2", "patch_size": 1, "in_channels": 128, "out_channels": 128,
        "depth": 1, "depth_single_blocks": 1, "vec_in_dim": None, "mlp_ratio": 3.0,
        "axes_dim": [8, 8, 8, 8], "theta": 2000, "qkv_bias": False, "global_modulation": True,
        "mlp_silu_act": True, "ops_bias": False, "default_ref_method": "index",
        "ref_index_scale": 10.0, "txt_ids_dims": [3], "guidance_embed": guidance,
    }  # fmt: skip


def _flux2_transformer(guidance: bool) -> Any:
    from diffusers import Flux2Transformer2DModel

    return Flux2Transformer2DModel(
        in_channels=128, num_layers=1, num_single_layers=1, attention_head_dim=32,
        num_attention_heads=2, joint_attention_dim=TEXT, timestep_guidance_channels=256,
        axes_dims_rope=(8, 8, 8, 8), guidance_embeds=guidance,
    )  # fmt: skip


def _sd3_transformer() -> Any:
    from diffusers import SD3Transformer2DModel

    return SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=C, out_channels=C, num_layers=2,
        attention_head_dim=64, num_attention_heads=2, joint_attention_dim=TEXT,
        caption_projection_dim=128, pooled_projection_dim=16, pos_embed_max_size=8,
        qk_norm="rms_norm", dual_attention_layers=(0,),
    )  # fmt: skip


def _qwen_transformer() -> Any:
    from diffusers import QwenImageTransformer2DModel

    return QwenImageTransformer2DModel(
        patch_size=2, in_channels=4 * C, out_channels=C, num_layers=2, attention_head_dim=32,
        num_attention_heads=2, joint_attention_dim=TEXT, axes_dims_rope=(8, 12, 12),
    )  # fmt: skip


def _z_image_transformer() -> Any:
    from diffusers import ZImageTransformer2DModel
    from diffusers.models.transformers.transformer_z_image import TimestepEmbedder

    transformer = ZImageTransformer2DModel(
        in_channels=C, dim=256, n_layers=1, n_refiner_layers=1, n_heads=8, n_kv_heads=8,
        cap_feat_dim=TEXT, axes_dims=[8, 12, 12], axes_lens=[128, 64, 64],
    )  # fmt: skip
    # 1024 inside in diffusers, in ComfyUI no more than the width of the model.
    transformer.t_embedder = TimestepEmbedder(256, mid_size=256)
    return transformer


def _krea2_transformer() -> Any:
    from diffusers import Krea2Transformer2DModel

    return Krea2Transformer2DModel(
        in_channels=4 * C, num_layers=2, attention_head_dim=32, num_attention_heads=2,
        num_key_value_heads=1, intermediate_size=128, timestep_embed_dim=32, text_hidden_dim=TEXT,
        num_text_layers=3, text_num_attention_heads=1, text_num_key_value_heads=1,
        text_intermediate_size=128, axes_dims_rope=(8, 12, 12),
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Twin:
    """What it takes to build and to call both."""

    transformer: Callable[[], Any]
    """The one of diffusers."""
    native: Architecture
    """The one of ComfyUI."""
    tokens: int = 6
    """Of the text."""
    patch: int = 2
    """Side of what diffusers takes as one token of the latent; 0 for a latent that is a grid."""
    frames: bool = False
    """Whether ComfyUI's latents have an axis for frames."""

    def to_diffusers(self, x_t: Tensor) -> Tensor:
        """Native latents as diffusers takes them."""
        import einops

        x_t = x_t.squeeze(2) if self.frames else x_t
        return einops.rearrange(x_t, _PATCHES, p=self.patch, q=self.patch) if self.patch else x_t

    def to_native(self, v_t: Tensor) -> Tensor:
        """And back."""
        import einops

        if self.patch:
            rows = self.native.latent[-2] // self.patch
            v_t = einops.rearrange(
                v_t, "b (h w) (c p q) -> b c (h p) (w q)", h=rows, p=self.patch, q=self.patch
            )
        return v_t.unsqueeze(2) if self.frames else v_t


TWINS = {
    "flux2": Twin(
        transformer=lambda: _flux2_transformer(True),
        native=Architecture(
            kind="Flux2", unet_config=_flux2_config(True), latent=(128, 4, 6), extras=no_pooled
        ),
        patch=1,
        tokens=512,  # ComfyUI fills up to them
    ),
    "flux2-klein": Twin(
        transformer=lambda: _flux2_transformer(False),
        native=Architecture(
            kind="Flux2", unet_config=_flux2_config(False), latent=(128, 4, 6), extras=no_pooled
        ),
        patch=1,
        tokens=512,
    ),
    "sd3": Twin(
        transformer=_sd3_transformer,
        native=models.ALL["sd3"],
        patch=0,
    ),
    "qwen-image": Twin(
        transformer=_qwen_transformer,
        native=replace(models.ALL["qwen_image"], latent=(C, 1, 8, 12)),
        frames=True,
    ),
    "z-image": Twin(
        transformer=_z_image_transformer,
        native=replace(
            models.ALL["z_image"],
            unet_config={
                **models.ALL["z_image"].unet_config, "n_layers": 1, "multiple_of": 2,
                "ffn_dim_multiplier": 8 / 3, "axes_lens": [128, 64, 64],
                "pad_tokens_multiple": 32,
            },
            latent=(C, 8, 12),
        ),
        patch=0,
    ),
    "krea2": Twin(
        transformer=_krea2_transformer,
        native=replace(
            models.ALL["krea2"],
            unet_config={**models.ALL["krea2"].unet_config, "txtdim": TEXT},
            latent=(C, 1, 8, 12),
            context=3 * TEXT,
        ),
        frames=True,
    ),
}  # fmt: skip
"""Family -> its twins."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Both, and the two policies on them."""

    twin: Twin
    family: Any
    """The entry of the family, as the command line has it."""
    diffusers: Any
    """A PipelinePolicy."""
    model: Any
    """The MODEL."""
    native: Any
    """A NativePolicy on it."""
    on: Callable[..., Pair]
    """MODEL, settings of a LoRA -> the pair with another NativePolicy."""

    def velocities(self, t: float, prompt: str = "p0") -> tuple[Tensor, Tensor]:
        """Of the same noise, in ComfyUI's form: diffusers', ComfyUI's."""
        x_t = torch.randn(2, *self.twin.native.latent, generator=torch.Generator().manual_seed(3))
        with torch.no_grad():
            given = self.twin.to_diffusers(x_t)
            of_diffusers = self.diffusers.run(lambda velocity: velocity(given, t, prompt))
            of_comfyui = self.native.run(lambda velocity: velocity(x_t, t, prompt).detach())
        return self.twin.to_native(of_diffusers), of_comfyui

    def load_in_pipeline(self, lora: dict[str, Tensor]) -> None:
        """Put a LoRA beside the transformer's layers as its pipeline does."""
        import diffusers

        kind = getattr(diffusers, self.family.pipeline)
        state = kind.lora_state_dict(lora)
        kind.load_lora_into_transformer(
            state, transformer=self.diffusers.transformer, adapter_name="loaded"
        )
        self.diffusers.transformer.set_adapter("loaded")


def _text(family: str, features: Tensor, extras: dict[str, Any]) -> dict[str, Tensor]:
    """What the transformer of diffusers reads of a CONDITIONING."""
    if family == "z-image":
        return {"cap_feats": features}
    if family == "krea2":
        return {"encoder_hidden_states": features.unflatten(-1, (-1, TEXT))}
    text = {"encoder_hidden_states": features}
    if extras.get("pooled_output") is not None:
        text["pooled_projections"] = extras["pooled_output"]
    return text


def _model(twin: Twin, state: dict[str, Tensor]) -> Any:
    model = models.build(twin.native)
    state = {name.removeprefix("model.diffusion_model."): part for name, part in state.items()}
    state = model.model.model_config.process_unet_state_dict(state)  # newer names of ComfyUI
    missing, strange = model.model.diffusion_model.load_state_dict(state, strict=False)
    # Z-Image has a norm in ComfyUI that no call uses.
    assert not strange and set(missing) <= {"norm_final.weight"}, (missing, strange)
    return model


def pair(lab, family: str, rank: int = 4) -> Pair:
    """Both with the same weights, each with a fresh LoRA of its own on all linear layers."""
    config = lab.module("chunk_grpo_core.lora.adapter").LoraConfig
    native_policy = lab.module("nodes.bridge.policy").NativePolicy
    entry = lab.module("chunk_grpo_core.models.registry").FAMILIES[family].load.args[0]
    twin = TWINS[family]
    transformer = twin.transformer()
    models.fill(transformer)
    transformer.eval().requires_grad_(False)
    model = _model(twin, NATIVE[family](dict(transformer.state_dict())))
    conditioning = models.conditioning(twin.native, 1, twin.tokens)
    features, extras = conditioning[0]
    text = _text(family, features, extras)
    extras["guidance"] = GUIDANCE
    rows, columns = (side // (twin.patch or 2) for side in twin.native.latent[-2:])
    diffusers = lab.module("chunk_grpo_core.models.pipelines.policy").PipelinePolicy(
        entry=entry, rows=rows, columns=columns, guidance=GUIDANCE, name=family,
        transformer=transformer, encode=lambda prompt: (text, None), decode=lambda x: x,
        latent_shape=tuple(twin.to_diffusers(torch.zeros(1, *twin.native.latent)).shape[1:]),
        lora=config(rank=rank, alpha=2.0 * rank, targets="all-linear"),
    )  # fmt: skip

    def on(model: Any, rank: int = rank) -> Pair:
        lora = config(rank=rank, alpha=2.0 * rank, targets="all-linear")
        native = native_policy(model, None, {"p0": conditioning}, twin.native.latent, lora, 0)
        return Pair(twin=twin, family=entry, diffusers=diffusers, model=model, native=native, on=on)

    return on(model)
