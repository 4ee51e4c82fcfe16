"""Stable Diffusion 3 and 3.5, as diffusers' StableDiffusion3Pipeline runs them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from ..settings.declared import Range
from .family import Checkpoint
from .pipelines.as_family import pipeline_family
from .pipelines.entry import PipelineEntry, Text, in_blocks, linear_mu
from .pipelines.form import Form
from .pipelines.model import GuidedModel, PipelineModel
from .pipelines.scaling import KL

__all__ = ["FAMILY"]


@dataclass(frozen=True, kw_only=True)
class Sd3Model(GuidedModel):
    """A Stable Diffusion 3.5: a pipeline, whose transformer and VAE may come from other files."""

    guidance: Annotated[float, Range(0, 100)] = 4.5
    """Guidance scale: 4.5 for Medium, 3.5 for Large, 1 (none) for Turbo. Above 1 each step takes
    two calls."""
    max_tokens: Annotated[int, Range(1, 4096)] = 256
    """Text tokens for T5; longer prompts are cut."""


def _encode(pipe: Any, prompt: str, model: PipelineModel) -> Text:
    features, _, pooled, _ = pipe.encode_prompt(
        prompt, None, None, do_classifier_free_guidance=False, max_sequence_length=model.max_tokens
    )
    return {"encoder_hidden_states": features, "pooled_projections": pooled}


FAMILY = pipeline_family(
    PipelineEntry(
        pipeline="StableDiffusion3Pipeline",
        since="0.35",
        transformer="SD3Transformer2DModel",
        vae="AutoencoderKL",
        encode=_encode,
        inputs=lambda call: {"hidden_states": call.latents, "timestep": call.time, **call.text},
        time=(1000.0, 0.0),
        form=Form(packed=False),
        scaling=KL,
        scheduler={"shift": 3.0},
        sigmas=lambda steps: None,
        mu=linear_mu(most=1.16),
        blocks=("transformer_blocks",),
        targets=in_blocks(
            r"transformer_blocks\.\d+",
            attention=r"attn2?\.(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out)",
            mlp=r"ff(_context)?\.net\.(0\.proj|2)",
        ),
    ),
    name="sd3",
    title="Stable Diffusion 3.5",
    table=Sd3Model,
    checkpoints=(
        Checkpoint(
            "stabilityai/stable-diffusion-3.5-medium", "2.5B", "Stability AI Community", 4.5
        ),
        Checkpoint("stabilityai/stable-diffusion-3.5-large", "8.1B", "Stability AI Community", 3.5),
        Checkpoint(
            "stabilityai/stable-diffusion-3.5-large-turbo", "8.1B", "Stability AI Community", 1.0
        ),
    ),
    few_steps=16,
)
