"""Models that the command line does not train, but whose LoRAs have diffusers' names, too: one
network twice, as diffusers and ComfyUI have it, and a LoRA that is the same function in both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from environment import package
from native_names import NATIVE
from torch import Tensor

from ..tiny_architectures import models
from ..tiny_architectures.architecture import Architecture
from .models import apply_lora, merge_lora
from .test_twins import effect, shaken

LATENT = (16, 8, 8)


def _lumina2() -> Any:
    from diffusers import Lumina2Transformer2DModel

    return Lumina2Transformer2DModel(
        in_channels=16, hidden_size=96, num_layers=2, num_refiner_layers=1, num_attention_heads=3,
        num_kv_heads=1, multiple_of=32, axes_dim_rope=(8, 12, 12), axes_lens=(64, 64, 64),
        cap_feat_dim=32,
    )  # fmt: skip


def _lumina2_velocity(transformer: Any, x_t: Tensor, t: float, text: Tensor, extras: Any) -> Tensor:
    mask = extras["attention_mask"].bool().expand(len(x_t), -1)
    time = torch.full((len(x_t),), 1.0 - t)
    return -transformer(x_t, time, text.expand(len(x_t), -1, -1), mask, return_dict=False)[0]


def _hidream() -> Any:
    from diffusers import HiDreamImageTransformer2DModel

    return HiDreamImageTransformer2DModel(
        patch_size=2, in_channels=16, out_channels=16, num_layers=2, num_single_layers=2,
        attention_head_dim=32, num_attention_heads=2, caption_channels=[32, 32], text_emb_dim=16,
        num_routed_experts=4, num_activated_experts=2, axes_dims_rope=(8, 12, 12),
        max_resolution=(16, 16), llama_layers=[0, 1, 1, 1],
    )  # fmt: skip


def _hidream_velocity(transformer: Any, x_t: Tensor, t: float, text: Tensor, extras: Any) -> Tensor:
    llama, count = extras["conditioning_llama3"].movedim(1, 0), len(x_t)
    (v_t,) = transformer(
        hidden_states=x_t, timesteps=torch.full((count,), 1000.0 * t),
        encoder_hidden_states_t5=text.expand(count, -1, -1),
        encoder_hidden_states_llama3=llama.expand(-1, count, -1, -1),
        pooled_embeds=extras["pooled_output"].expand(count, -1), return_dict=False,
    )  # fmt: skip
    return -v_t


@dataclass(frozen=True)
class Twin:
    transformer: Callable[[], Any]
    velocity: Callable[..., Tensor]
    pipeline: str
    native: Architecture


TWINS = {
    "lumina2": Twin(
        _lumina2,
        _lumina2_velocity,
        "Lumina2Pipeline",
        replace(
            models.ALL["lumina2"],
            unet_config={
                **models.ALL["lumina2"].unet_config, "dim": 96, "n_heads": 3, "n_kv_heads": 1,
                "ffn_dim_multiplier": 4.0,
            },
            latent=LATENT,
        ),
    ),
    "hidream": Twin(
        _hidream,
        _hidream_velocity,
        "HiDreamImagePipeline",
        replace(models.ALL["hidream"], latent=LATENT),
    ),
}  # fmt: skip


@pytest.mark.parametrize("family", TWINS)
def test_a_lora_is_the_same_function_under_both_names(lab, family):
    twin = TWINS[family]
    config = lab.module("chunk_grpo_core.lora.adapter").LoraConfig
    native_policy = lab.module("nodes.bridge.policy").NativePolicy
    convert_lora = lab.module("chunk_grpo_core.lora.files").convert_lora
    start_state = lab.module("nodes.bridge.side_branches").start_state
    x_t = torch.randn(2, *LATENT, generator=torch.Generator().manual_seed(3))
    conditioning = models.conditioning(twin.native, 1)
    with torch.inference_mode():
        transformer = twin.transformer()
        models.fill(transformer)
        transformer.eval().requires_grad_(False)
        model = models.build(twin.native)
        state = NATIVE[family](dict(transformer.state_dict()))
        missing, strange = model.model.diffusion_model.load_state_dict(state, strict=False)
        assert not strange and set(missing) <= {"norm_final.weight"}, (missing, strange)

        def policy(of: Any, rank: int = 2) -> Any:
            lora = config(rank=rank, alpha=2.0 * rank, targets="all-linear")
            return native_policy(of, None, {"p0": conditioning}, LATENT, lora, 0)

        def native(of: Any) -> Tensor:
            return of.run(lambda velocity: velocity(x_t, 0.6, "p0").detach())

        def diffusers() -> Tensor:
            return twin.velocity(transformer, x_t, 0.6, *conditioning[0])

        trained = policy(model)
        base = native(trained)
        assert effect(diffusers(), base) < 1e-4
        shaken(trained.adapter, 3)
        wanted, lora = native(trained), trained.lora_model()
        assert effect(wanted, base) > 0.02

        file = convert_lora(lora, "diffusers", family)
        kind = getattr(package("diffusers"), twin.pipeline)
        loaded = kind.lora_state_dict(dict(file))
        kind.load_lora_into_transformer(loaded, transformer=transformer, adapter_name="loaded")
        assert effect(diffusers(), wanted) < 1e-4

        merged = effect(native(policy(merge_lora(model, file))), wanted)
        if family == "hidream":  # ComfyUI's own loader knows its names in diffusers alone
            assert merged < 1e-4
        else:
            assert merged > 0.01
        for tensors in (file, convert_lora(file, "native", family)):
            assert effect(native(policy(apply_lora(lab, model, tensors))), wanted) < 1e-4
            wide = policy(model, rank=6)
            adapter = wide.adapter
            fresh, scale = adapter.state_dict(), adapter.config.scale
            adapter.load_state_dict(start_state(model, tensors, fresh, scale))
            assert effect(native(wide), wanted) < 1e-4
