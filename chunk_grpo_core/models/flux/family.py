"""FLUX.1 as a family of models."""

from __future__ import annotations

from ...method.schedule import TimeGrid, flux_shift, shifted_grid
from ..family import Checkpoint, Family
from .config import FluxModel
from .loading import flux_policy

__all__ = ["FAMILY"]


def _grid(model: FluxModel, steps: int) -> TimeGrid:
    return shifted_grid(steps, flux_shift((model.width // 16) * (model.height // 16)))


FAMILY = Family(
    name="flux",
    title="FLUX.1",
    table=FluxModel,
    load=flux_policy,
    grid=_grid,
    imports=(
        "diffusers.FluxTransformer2DModel",
        "diffusers.AutoencoderKL",
        "transformers.CLIPTextModel",
        "transformers.T5EncoderModel",
    ),
    example={"path": "black-forest-labs/FLUX.1-dev"},
    checkpoints=(
        Checkpoint("black-forest-labs/FLUX.1-dev", "12B", "FLUX.1 [dev] Non-Commercial"),
        Checkpoint("black-forest-labs/FLUX.1-schnell", "12B", "Apache 2.0"),
    ),
    tested="tested on small models of the true class, from pipelines and single files, and at "
    "full size with random weights on an H100; not with real weights",
)
