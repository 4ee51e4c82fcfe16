"""The tiny FLUX as a family of models, with one member."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...lora.adapter import LoraConfig
from ...method.schedule import TimeGrid, shifted_grid
from ...prompts.example import Prompt
from ..family import Captions, Family, ModelTable
from ..flux.policy import FluxPolicy
from .model import SHIFT
from .policy import tiny_policy
from .world import HELD_OUT, TRAIN, caption

__all__ = ["FAMILY", "TinyModel"]


@dataclass(frozen=True, kw_only=True)
class TinyModel(ModelTable):
    """The embedded model, which has nothing to set."""


def _load(
    table: TinyModel, prompts: Sequence[Prompt], lora: LoraConfig, seed: int, *, keep_on_cpu: bool
) -> FluxPolicy:
    """Load the asset; its captions are read at any time, and it lives on the CPU anyway."""
    return tiny_policy(lora, seed)


def _captions() -> Captions:
    return Captions(*([caption(scene) for scene in scenes] for scenes in (TRAIN, HELD_OUT)))


def _grid(table: TinyModel, steps: int) -> TimeGrid:
    return shifted_grid(steps, SHIFT)


FAMILY = Family(
    name="tiny",
    title="the tiny FLUX",
    table=TinyModel,
    load=_load,
    grid=_grid,
    captions=_captions,
    reward="tiny_world",
    few_steps=5,
    tested="it is what the tests and the demo train",
    imports=("diffusers.FluxTransformer2DModel",),
)
