"""Z-Image and Z-Image-Turbo, as diffusers' ZImagePipeline runs them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import torch

from ..settings.declared import Range
from .family import Checkpoint
from .pipelines.as_family import pipeline_family
from .pipelines.entry import Call, PipelineEntry, Text, in_blocks
from .pipelines.form import Form
from .pipelines.guidance import Guidance
from .pipelines.model import GuidedModel, PipelineModel
from .pipelines.scaling import KL

__all__ = ["FAMILY"]


@dataclass(frozen=True, kw_only=True)
class ZImageModel(GuidedModel):
    """A Z-Image: a pipeline, whose transformer and VAE may come from other files."""

    guidance: Annotated[float, Range(0, 100)] = 0.0
    """Guidance scale: 0 (none) for Z-Image-Turbo; 4 for Z-Image, which doubles the time."""


def _encode(pipe: Any, prompt: str, model: PipelineModel) -> Text:
    # A list of its own: the pipeline writes into it.
    (features,), _ = pipe.encode_prompt(
        [prompt], do_classifier_free_guidance=False, max_sequence_length=model.max_tokens
    )
    return {"cap_feats": features[None]}


def _inputs(call: Call) -> dict[str, Any]:
    return {
        "x": list(call.latents.unsqueeze(2)),
        "t": call.time,
        "cap_feats": list(call.text["cap_feats"]),
    }


_ENTRY = PipelineEntry(
    pipeline="ZImagePipeline",
    since="0.39",
    transformer="ZImageTransformer2DModel",
    vae="AutoencoderKL",
    encode=_encode,
    inputs=_inputs,
    time=(-1.0, 1.0),
    sign=-1.0,
    output=lambda out, call: torch.stack(out).squeeze(2),
    form=Form(packed=False),
    scaling=KL,
    guidance=Guidance(from_prompt=True),
    scheduler={"shift": 3.0},
    blocks=("layers", "noise_refiner", "context_refiner"),
    targets=in_blocks(
        r"(layers|noise_refiner|context_refiner)\.\d+",
        attention=r"attention\.(to_[qkv]|to_out\.0)",
        mlp=r"feed_forward\.w[123]",
    ),
)

FAMILY = pipeline_family(
    _ENTRY,
    name="z-image",
    title="Z-Image",
    table=ZImageModel,
    checkpoints=(
        Checkpoint("Tongyi-MAI/Z-Image-Turbo", "6B", "Apache 2.0", 0.0),
        Checkpoint("Tongyi-MAI/Z-Image", "6B", "Apache 2.0", 4.0),
    ),
    few_steps=8,
)
