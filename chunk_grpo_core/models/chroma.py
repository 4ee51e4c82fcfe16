"""Chroma, as diffusers' ChromaPipeline runs it, but for a mask that the pipeline gets wrong.

The pipeline hands its text mask over as the numbers 0 and 1, which attention adds to its scores, so
that padding is attended to (github.com/huggingface/diffusers/issues/13619), and the single blocks
drop it where they are computed again in the backward pass. Here the text is cut to the tokens that
the mask leaves, as its makers sample it, and there is no mask.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import torch

from ..settings.declared import Range
from .family import Checkpoint
from .pipelines.as_family import pipeline_family
from .pipelines.entry import Call, PipelineEntry, Text, in_blocks, positions
from .pipelines.form import Form
from .pipelines.model import GuidedModel, PipelineModel
from .pipelines.scaling import KL

__all__ = ["FAMILY"]


@dataclass(frozen=True, kw_only=True)
class ChromaModel(GuidedModel):
    """A Chroma: a pipeline, whose transformer and VAE may come from other files."""

    guidance: Annotated[float, Range(0, 100)] = 5.0
    """Guidance scale; above 1 each step takes two calls. 1 (none) for Chroma1-Flash."""


def _encode(pipe: Any, prompt: str, model: PipelineModel) -> Text:
    features, _, mask, *_ = pipe.encode_prompt(
        prompt, do_classifier_free_guidance=False, max_sequence_length=model.max_tokens
    )
    return {"encoder_hidden_states": features[:, mask[0].bool()]}


def _inputs(call: Call) -> dict[str, Any]:
    length = call.text["encoder_hidden_states"].shape[1]
    return {
        "hidden_states": call.latents,
        "timestep": call.time,
        "img_ids": positions(call),
        "txt_ids": torch.zeros(length, 3, device=call.latents.device),
        **call.text,
    }


FAMILY = pipeline_family(
    PipelineEntry(
        pipeline="ChromaPipeline",
        since="0.35",
        transformer="ChromaTransformer2DModel",
        vae="AutoencoderKL",
        encode=_encode,
        inputs=_inputs,
        form=Form(packed=True),
        scaling=KL,
        scheduler={"use_dynamic_shifting": True},
        blocks=("transformer_blocks", "single_transformer_blocks"),
        targets=in_blocks(
            r"(single_)?transformer_blocks\.\d+",
            attention=r"attn\.(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out)",
            mlp=r"ff(_context)?\.net\.(0\.proj|2)|proj_mlp|proj_out",
        ),
    ),
    name="chroma",
    title="Chroma",
    table=ChromaModel,
    checkpoints=(Checkpoint("lodestones/Chroma1-HD", "8.9B", "Apache 2.0"),),
    few_steps=20,
)
