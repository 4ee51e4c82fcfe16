"""A model of diffusers and ComfyUI's MODEL of it compute the same, and so do their LoRAs."""

from __future__ import annotations

import pytest
import torch

from ..tiny_architectures import models
from .models import apply_lora, merge_lora
from .twins import TWINS, pair

WITH_LORA = [family for family in TWINS if family != "flux2"]  # the names of flux2-klein


def skip_if_missing(family: str) -> None:
    if not models.is_there(TWINS[family].native):
        pytest.skip("this ComfyUI does not have the model")


def takes_diffusers_names(family: str) -> bool:
    """Whether this ComfyUI's own loader takes the whole of a file of diffusers."""
    import comfy.utils

    return family in ("sd3", "qwen-image") or hasattr(comfy.utils, "krea2_to_diffusers")


@pytest.mark.parametrize("family", TWINS)
def test_native_velocity_equals_that_of_diffusers(lab, family):
    skip_if_missing(family)
    with torch.inference_mode():
        both = pair(lab, family)
        for t in (1.0, 0.6, 0.1):
            ours, theirs = both.velocities(t)
            assert float((ours - theirs).abs().max() / theirs.abs().max()) < 1e-4, t


def shaken(adapter, seed: int, size: float = 0.05) -> None:
    """Move every weight, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))


def effect(trained: torch.Tensor, base: torch.Tensor) -> float:
    return float((trained - base).abs().max() / base.abs().max())


@pytest.mark.parametrize("family", WITH_LORA)
def test_a_lora_trained_natively_is_the_same_function_in_diffusers(lab, family):
    """Converted and loaded by the pipeline's own loader; and trained on from the native file."""
    skip_if_missing(family)
    files = lab.module("chunk_grpo_core.lora.files")
    start_from = lab.module("chunk_grpo_core.lora.continuing").start_from
    with torch.inference_mode():
        both = pair(lab, family, rank=2)
        _, base = both.velocities(0.6)
        shaken(both.native.adapter, 3)
        lora = both.native.lora_model()
        _, trained = both.velocities(0.6)
        assert effect(trained, base) > 0.02
        fresh = both.diffusers.adapter.state_dict()
        scale = both.diffusers.adapter.config.scale
        both.diffusers.adapter.load_state_dict(start_from(lora, fresh, scale))
        continued, _ = both.velocities(0.6)
        assert effect(continued, trained) < 1e-4
        both.diffusers.adapter.load_state_dict(fresh)
        both.load_in_pipeline(files.convert_lora(lora, "diffusers"))
        loaded, _ = both.velocities(0.6)
        assert effect(loaded, trained) < 1e-4


@pytest.mark.parametrize("family", WITH_LORA)
def test_a_lora_trained_with_diffusers_is_the_same_function_in_comfyui(lab, family):
    """Applied, trained on, and merged by ComfyUI's own loader from the converted file."""
    skip_if_missing(family)
    files = lab.module("chunk_grpo_core.lora.files")
    start_state = lab.module("nodes.bridge.side_branches").start_state
    with torch.inference_mode():
        both = pair(lab, family, rank=2)
        base, _ = both.velocities(0.6)
        shaken(both.diffusers.adapter, 4)
        adapter = both.diffusers.adapter
        lora = files.diffusers_lora(adapter.state_dict(), adapter.config.file_alpha)
        trained, _ = both.velocities(0.6)
        assert effect(trained, base) > 0.02
        merged = files.convert_lora(lora, "native", family)
        if takes_diffusers_names(family):
            merged = lora
        for model in (apply_lora(lab, both.model, lora), merge_lora(both.model, merged)):
            _, found = both.on(model).velocities(0.6)
            assert effect(found, trained) < 1e-4
        wide = both.on(both.model, rank=6)
        adapter = wide.native.adapter
        fresh, scale = adapter.state_dict(), adapter.config.scale
        if family == "krea2":  # ComfyUI reads the text before the steps, outside of what is trained
            with pytest.raises(ValueError, match="32 of the 48 .*txtfusion"):
                start_state(both.model, lora, fresh, scale)
            lora = {name: tensor for name, tensor in lora.items() if "text_fusion" not in name}
            _, trained = both.on(apply_lora(lab, both.model, lora)).velocities(0.6)
        adapter.load_state_dict(start_state(both.model, lora, fresh, scale))
        _, continued = wide.velocities(0.6)
        assert effect(continued, trained) < 1e-4
