"""Sockets of this pack, and what travels through them. Native types are used wherever one exists.

Payloads are plain frozen dataclasses; nothing here is pickled or compared by class across packs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from comfy_api.latest import io

from ..chunk_grpo_core.method.rollout import Trajectory
from ..chunk_grpo_core.prompts.split import PromptSet as PlainPromptSet
from ..chunk_grpo_core.runs.outcome import Outcome

__all__ = [
    "BUILD_ON",
    "CATEGORY",
    "CurveSocket",
    "LogSocket",
    "PlanSocket",
    "PromptsSocket",
    "PromptSet",
    "RewardSocket",
    "Rollouts",
    "RolloutsSocket",
    "SettingsSocket",
    "TrainingLog",
    "guidance_inputs",
    "rare",
    "settings_outputs",
]

CATEGORY = "training/chunk-grpo"

PromptsSocket = io.Custom("CHUNK_GRPO_PROMPTS")
RolloutsSocket = io.Custom("CHUNK_GRPO_TRAJECTORIES")
CurveSocket = io.Custom("CHUNK_GRPO_CURVE")
PlanSocket = io.Custom("CHUNK_GRPO_PLAN")  # a ChunkPlan, or a word that fits any number of steps
RewardSocket = io.Custom("CHUNK_GRPO_REWARD")
SettingsSocket = io.Custom("CHUNK_GRPO_SETTINGS")  # a patch: nodes/patch.py
LogSocket = io.Custom("CHUNK_GRPO_LOG")

BUILD_ON = "Settings to build on: what this node sets is replaced, the rest is kept."
"""Tooltip of the ``settings`` input of every node that gives settings."""


def settings_outputs() -> list[Any]:
    """Outputs of every node that builds on settings."""
    return [
        SettingsSocket.Output(
            "changed",  # ids of inputs and outputs may not be equal
            display_name="settings",
            tooltip="For Train LoRA (RL), or the next settings node.",
        ),
        io.String.Output(
            "text",
            display_name="text",
            tooltip="Each setting of this node, its value, and where it comes from; for Preview "
            "Any.",
        ),
    ]


def guidance_inputs() -> list[Any]:
    """Inputs ``negative`` and ``cfg`` of every node that samples with a MODEL."""
    return [
        io.Conditioning.Input(
            "negative",
            optional=True,
            lazy=True,
            tooltip="Negative prompt for all prompts, from CLIP Text Encode; only used when cfg is "
            "not 1.",
        ),
        io.Float.Input(
            "cfg",
            default=1.0,
            min=1.0,
            max=100.0,
            step=0.01,
            round=0.01,
            optional=True,  # prompts saved before it existed still run
            tooltip="Classifier-free guidance of every call of the model. 1 is off, for FLUX and "
            "all distilled models; SD3 and Qwen-Image are used with 3 to 5. Above 1 it needs "
            "negative and takes twice the time.",
        ),
    ]


def rare(made: Any) -> Any:
    """The same input among the advanced ones; ComfyUI 0.3.75 has no argument for it, and hands on
    what stands in ``extra_dict``."""
    made.extra_dict = {**made.extra_dict, "advanced": True}
    return made


@dataclass(frozen=True, kw_only=True)
class PromptSet(PlainPromptSet):
    """Prompts with their conditioning."""

    conditioning: Mapping[str, Any]
    """Text -> positive CONDITIONING, for the texts of all prompts of both kinds and the empty
    one."""


@dataclass(frozen=True)
class Rollouts:
    """Sampled groups and the name of the model that sampled them."""

    trajectories: Sequence[Trajectory]
    model: str


@dataclass(frozen=True)
class TrainingLog:
    """A finished training."""

    outcome: Outcome
    run_folder: str
