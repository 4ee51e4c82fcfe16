"""Chunk-GRPO: align flow-matching image models with reward models. Sample by step, optimise by
chunk (arXiv 2510.21583).

Importing this package imports nothing else; a name of it imports its module, with torch, when it
is first used. The data flow, in reading order:
``schedule -> rules -> rollout -> dynamics -> chunks -> advantage -> objective -> streaming ->
chunk_grpo -> trainer``; ``models/`` and ``rewards/`` plug in at the edges.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .version import __version__

if TYPE_CHECKING:
    from .lora.adapter import LoraConfig
    from .method.cancel import Cancelled
    from .method.chunks import ChunkPlan
    from .method.dynamics import DynamicsCurve, dynamics_curve
    from .method.noise import Noise
    from .method.plan_text import read_plan
    from .method.policy import Adapter, Policy, Velocity
    from .method.reward import Reward, RewardBatch
    from .method.rollout import Trajectory, rollout
    from .method.rules import SdeConfig
    from .method.schedule import TimeGrid, flux_shift, shifted_grid
    from .method.windows import WindowConfig
    from .presets import PRESETS, preset_config
    from .train.config import OptimizerConfig, TrainConfig
    from .train.trainer import Trainer

__all__ = [
    "PRESETS",
    "Adapter",
    "Cancelled",
    "ChunkPlan",
    "DynamicsCurve",
    "LoraConfig",
    "Noise",
    "OptimizerConfig",
    "Policy",
    "Reward",
    "RewardBatch",
    "SdeConfig",
    "TimeGrid",
    "TrainConfig",
    "Trainer",
    "Trajectory",
    "Velocity",
    "WindowConfig",
    "__version__",
    "dynamics_curve",
    "flux_shift",
    "preset_config",
    "read_plan",
    "rollout",
    "shifted_grid",
]

_HOMES = {
    "Adapter": "method.policy",
    "Cancelled": "method.cancel",
    "ChunkPlan": "method.chunks",
    "DynamicsCurve": "method.dynamics",
    "LoraConfig": "lora.adapter",
    "Noise": "method.noise",
    "OptimizerConfig": "train.config",
    "PRESETS": "presets",
    "Policy": "method.policy",
    "Reward": "method.reward",
    "RewardBatch": "method.reward",
    "SdeConfig": "method.rules",
    "TimeGrid": "method.schedule",
    "TrainConfig": "train.config",
    "Trainer": "train.trainer",
    "Trajectory": "method.rollout",
    "Velocity": "method.policy",
    "WindowConfig": "method.windows",
    "dynamics_curve": "method.dynamics",
    "flux_shift": "method.schedule",
    "preset_config": "presets",
    "read_plan": "method.plan_text",
    "rollout": "method.rollout",
    "shifted_grid": "method.schedule",
}
"""Name of the list above -> the module that defines it."""


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
