"""Sockets of this pack, and what travels through them. Native types are used wherever one exists.

Payloads are plain frozen dataclasses; nothing here is pickled or compared by class across packs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from comfy_api.latest import io

from ..chunk_grpo_core.lora.adapter import LoraConfig
from ..chunk_grpo_core.method.advantage import AdvantageConfig
from ..chunk_grpo_core.method.objective import ObjectiveConfig
from ..chunk_grpo_core.method.rollout import Trajectory
from ..chunk_grpo_core.method.windows import WindowConfig
from ..chunk_grpo_core.prompts.split import PromptSet as PlainPromptSet
from ..chunk_grpo_core.runs.experiment import Outcome
from ..chunk_grpo_core.train.config import OptimizerConfig, TrainConfig

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
    "Settings",
    "SettingsSocket",
    "TrainingLog",
    "guidance_inputs",
]

CATEGORY = "training/chunk-grpo"

PromptsSocket = io.Custom("CHUNK_GRPO_PROMPTS")
RolloutsSocket = io.Custom("CHUNK_GRPO_TRAJECTORIES")
CurveSocket = io.Custom("CHUNK_GRPO_CURVE")
PlanSocket = io.Custom("CHUNK_GRPO_PLAN")
RewardSocket = io.Custom("CHUNK_GRPO_REWARD")
SettingsSocket = io.Custom("CHUNK_GRPO_SETTINGS")
LogSocket = io.Custom("CHUNK_GRPO_LOG")

BUILD_ON = "Settings to build on: what this node has an input for is replaced, the rest is kept."
"""Tooltip of the ``settings`` input of every node that gives settings."""


def guidance_inputs() -> list[Any]:
    """Inputs ``negative`` and ``cfg`` of every node that samples with a MODEL."""
    return [
        io.Conditioning.Input(
            "negative",
            optional=True,
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


@dataclass(frozen=True, kw_only=True)
class PromptSet(PlainPromptSet):
    """Prompts with their conditioning."""

    conditioning: Mapping[str, Any]
    """Prompt -> positive CONDITIONING, for all prompts of both kinds."""


@dataclass(frozen=True)
class Rollouts:
    """Sampled groups and the name of the model that sampled them."""

    trajectories: Sequence[Trajectory]
    model: str


@dataclass(frozen=True)
class Settings:
    """All of a training's settings that Train LoRA has no input for; names of ``TrainConfig``,
    and what concerns the MODEL alone."""

    advantage: AdvantageConfig = AdvantageConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    """The learning rate is Train LoRA's own."""
    lora: LoraConfig = LoraConfig()
    """Rank and alpha are Train LoRA's own."""
    chunk_fraction: float = 0.5
    window: WindowConfig = WindowConfig()
    noise: str = "all"
    ode_solver: str = "euler"
    share_initial_noise: bool = True
    batch_size: int | None = None
    update_batch_size: int | None = None
    checkpoint_every: int = 10
    evaluate_every: int = 0
    self_test: bool = True
    activation_offloading: bool = False
    """Of the MODEL, not of ``TrainConfig``: it changes no number."""

    @classmethod
    def of(cls, config: TrainConfig) -> Settings:
        """Take what belongs here from the settings of a run."""
        known = {field.name for field in fields(cls)} & {field.name for field in fields(config)}
        return cls(**{name: getattr(config, name) for name in known})


@dataclass(frozen=True)
class TrainingLog:
    """A finished training."""

    outcome: Outcome
    run_folder: str
