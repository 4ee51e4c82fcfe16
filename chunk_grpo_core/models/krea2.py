"""Krea 2, as diffusers' Krea2Pipeline runs it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import torch

from ..settings.declared import Range
from .family import Checkpoint
from .pipelines.as_family import pipeline_family
from .pipelines.entry import Call, PipelineEntry, Settings, Text, in_blocks, linear_mu, positions
from .pipelines.form import Form
from .pipelines.guidance import Guidance
from .pipelines.model import GuidedModel, PipelineModel
from .pipelines.scaling import QWEN

__all__ = ["FAMILY"]


@dataclass(frozen=True, kw_only=True)
class Krea2Model(GuidedModel):
    """A Krea 2: a pipeline, whose transformer may come from another file."""

    guidance: Annotated[float, Range(0, 100)] = 3.5
    """Guidance scale of the RAW model; above 0 each step takes two calls. A distilled one (Turbo)
    has none and takes no notice."""


def _mu(tokens: int, steps: int, scheduler: Settings, index: Settings) -> float:
    if index.get("is_distilled"):
        return 1.15
    return linear_mu(most_tokens=6400)(tokens, steps, scheduler, index)


def _encode(pipe: Any, prompt: str, model: PipelineModel) -> Text:
    features, mask = pipe.encode_prompt(prompt, max_sequence_length=model.max_tokens)
    # Padding stands in the middle; without it nothing changes, and less is kept and computed.
    return {"encoder_hidden_states": features[:, mask[0].bool()]}


def _inputs(call: Call) -> dict[str, Any]:
    length = call.text["encoder_hidden_states"].shape[1]
    text = torch.zeros(length, 3, device=call.latents.device)
    return {
        "hidden_states": call.latents,
        "timestep": call.time,
        "position_ids": torch.cat([text, positions(call)]),
        **call.text,
    }


FAMILY = pipeline_family(
    PipelineEntry(
        pipeline="Krea2Pipeline",
        since="0.39",
        transformer="Krea2Transformer2DModel",
        vae="AutoencoderKLQwenImage",
        encode=_encode,
        inputs=_inputs,
        form=Form(packed=True),
        scaling=QWEN,
        guidance=Guidance(from_prompt=True),
        mu=_mu,
        scheduler={"use_dynamic_shifting": True, "max_image_seq_len": 6400},
        pixels=lambda vae: 2 ** len(vae["temperal_downsample"]),
        blocks=(
            "transformer_blocks",
            "text_fusion.layerwise_blocks",
            "text_fusion.refiner_blocks",
        ),
        targets=in_blocks(
            r"(transformer_blocks|text_fusion\.(layerwise|refiner)_blocks)\.\d+",
            attention=r"attn\.(to_[qkv]|to_gate|to_out\.0)",
            mlp=r"ff\.(gate|up|down)",
        ),
    ),
    name="krea2",
    title="Krea 2",
    table=Krea2Model,
    checkpoints=(
        Checkpoint("krea/Krea-2-Raw", "12.9B", "Krea 2 Community"),
        Checkpoint("krea/Krea-2-Turbo", "12.9B", "Krea 2 Community"),
    ),
    few_steps=20,
)
