"""Chunk-GRPO: align flow-matching image models with reward models. Sample by step, optimise by
chunk (arXiv 2510.21583).

Importing this package needs torch alone. The data flow, in reading order:
``schedule -> sde -> rollout -> dynamics -> chunks -> advantage -> objective -> streaming ->
trainer``; ``models/`` and ``rewards/`` plug in at the edges.
"""

from .chunks import ChunkPlan, parse_plan
from .config import OptimizerConfig, TrainConfig
from .dynamics import DynamicsCurve, dynamics_curve
from .events import Cancelled
from .lora import LoraConfig
from .policy import Adapter, Policy, Velocity
from .presets import PRESETS, preset_config
from .rewards.base import Reward, RewardBatch
from .rollout import Noise, Trajectory, rollout
from .schedule import TimeGrid, flux_shift, shifted_grid
from .sde import SdeConfig
from .trainer import Trainer
from .version import __version__
from .windows import WindowConfig

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
    "parse_plan",
    "preset_config",
    "rollout",
    "shifted_grid",
]
