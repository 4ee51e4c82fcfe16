"""A model of diffusers and ComfyUI's MODEL of it compute the same, and so do their LoRAs."""

from __future__ import annotations

import pytest
import torch

from ..tiny_architectures import models
from .twins import TWINS, pair


@pytest.mark.parametrize("family", TWINS)
def test_native_velocity_equals_that_of_diffusers(lab, family):
    if not models.is_there(TWINS[family].native):
        pytest.skip("this ComfyUI does not have the model")
    with torch.inference_mode():
        both = pair(lab, family)
        for t in (1.0, 0.6, 0.1):
            ours, theirs = both.velocities(t)
            assert float((ours - theirs).abs().max() / theirs.abs().max()) < 1e-4, t
