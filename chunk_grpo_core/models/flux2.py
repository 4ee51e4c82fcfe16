"""FLUX.2 and FLUX.2 klein, as diffusers' Flux2Pipeline and Flux2KleinPipeline run them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import torch

from ..settings.declared import Range
from .family import Checkpoint
from .pipelines.as_family import pipeline_family
from .pipelines.entry import Call, PipelineEntry, Settings, Text, in_blocks, positions
from .pipelines.form import Form
from .pipelines.guidance import Guidance
from .pipelines.model import GuidedModel, PipelineModel
from .pipelines.scaling import FLUX2

__all__ = ["DEV", "KLEIN"]


@dataclass(frozen=True, kw_only=True)
class Flux2Model(PipelineModel):
    """A FLUX.2 [dev]: a pipeline, whose transformer and VAE may come from other files."""

    guidance: Annotated[float, Range(0, 100)] = 4.0
    """Distilled guidance, an input of the model."""


@dataclass(frozen=True, kw_only=True)
class KleinModel(GuidedModel):
    """A FLUX.2 klein: a pipeline, whose transformer and VAE may come from other files."""

    guidance: Annotated[float, Range(0, 100)] = 4.0
    """Guidance scale of the base models: above 1 each step takes two calls. The distilled ones (4
    steps) have none and take no notice."""


def _mu(tokens: int, steps: int, scheduler: Settings, index: Settings) -> float:
    """FLUX.2's shift depends on the number of steps, up to 4300 tokens."""
    at_200 = 0.00016927 * tokens + 0.45666666
    if tokens > 4300:
        return at_200
    at_10 = 8.73809524e-05 * tokens + 1.89833333
    return at_200 + (at_200 - at_10) / 190.0 * (steps - 200.0)


def _encode(pipe: Any, prompt: str, model: PipelineModel) -> Text:
    features, _ = pipe.encode_prompt(prompt, max_sequence_length=model.max_tokens)
    return {"encoder_hidden_states": features}


def _inputs(call: Call) -> dict[str, Any]:
    batch, length = call.text["encoder_hidden_states"].shape[:2]
    text = torch.zeros(length, 4, device=call.latents.device)
    text[:, 3] = torch.arange(length)
    return {
        "hidden_states": call.latents,
        "timestep": call.time,
        "img_ids": positions(call, 4).expand(batch, -1, -1),
        "txt_ids": text.expand(batch, -1, -1),
        **call.text,
    }


_SHARED: dict[str, Any] = dict(
    transformer="Flux2Transformer2DModel",
    vae="AutoencoderKLFlux2",
    encode=_encode,
    form=Form(packed=True),
    scaling=FLUX2,
    mu=_mu,
    scheduler={"shift": 3.0, "use_dynamic_shifting": True},
    blocks=("transformer_blocks", "single_transformer_blocks"),
    targets=in_blocks(
        r"(single_)?transformer_blocks\.\d+",
        # The single blocks have attention and MLP in one: to_qkv_mlp_proj, to_out.
        attention=r"attn\.(to_[qkv]|to_out(\.0)?|add_[qkv]_proj|to_add_out|to_qkv_mlp_proj)",
        mlp=r"ff(_context)?\.linear_(in|out)",
    ),
)

DEV = pipeline_family(
    PipelineEntry(
        pipeline="Flux2Pipeline",
        since="0.37",
        inputs=lambda call: {**_inputs(call), "guidance": call.ones() * call.guidance},
        guidance=None,
        **_SHARED,
    ),
    name="flux2",
    title="FLUX.2",
    table=Flux2Model,
    checkpoints=(Checkpoint("black-forest-labs/FLUX.2-dev", "32B", "FLUX Non-Commercial"),),
    few_steps=20,
)

KLEIN = pipeline_family(
    PipelineEntry(
        pipeline="Flux2KleinPipeline",
        since="0.37",
        inputs=lambda call: {**_inputs(call), "guidance": None},
        guidance=Guidance(),
        **_SHARED,
    ),
    name="flux2-klein",
    title="FLUX.2 klein",
    table=KleinModel,
    checkpoints=(
        Checkpoint("black-forest-labs/FLUX.2-klein-4B", "4B", "Apache 2.0"),
        Checkpoint("black-forest-labs/FLUX.2-klein-base-4B", "4B", "Apache 2.0"),
        Checkpoint("black-forest-labs/FLUX.2-klein-9B", "9B", "FLUX Non-Commercial"),
    ),
    few_steps=4,
)
