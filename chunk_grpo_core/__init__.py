"""Chunk-GRPO: align flow-matching image models with reward models. Sample by step, optimise by
chunk (arXiv 2510.21583).

Importing this package needs torch alone. The data flow, in reading order:
``schedule -> rules -> rollout -> dynamics -> chunks -> advantage -> objective -> streaming ->
chunk_grpo -> trainer``; ``models/`` and ``rewards/`` plug in at the edges.
"""

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
from .version import __version__

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
