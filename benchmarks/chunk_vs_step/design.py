"""PROTOCOL.md in code: arms, regimes, seeds, and the settings of each run."""

from __future__ import annotations

from dataclasses import dataclass

from chunk_grpo_core.lora.adapter import LoraConfig
from chunk_grpo_core.method.chunks import ChunkPlan, chunk_weights, drawn_count, per_step_plan
from chunk_grpo_core.method.dynamics import DynamicsCurve
from chunk_grpo_core.method.objective import ObjectiveConfig
from chunk_grpo_core.method.planners import adaptive_plan
from chunk_grpo_core.method.rules import SdeConfig
from chunk_grpo_core.method.schedule import shifted_grid
from chunk_grpo_core.models.tiny.world import HELD_OUT, TRAIN, caption
from chunk_grpo_core.train.config import OptimizerConfig, TrainConfig

__all__ = [
    "CHOOSING",
    "GRID",
    "REGIMES",
    "SDE",
    "SWEPT_RATES",
    "TESTING",
    "TRAINING",
    "Run",
    "config_of",
    "main_runs",
    "plan_of",
    "sweep_runs",
]

GRID, SDE = shifted_grid(17, 3.0), SdeConfig(rule="flow", eta=0.7)
_CAPTIONS = [caption(scene) for scene in TRAIN]
TRAINING, CHOOSING = _CAPTIONS[:336], _CAPTIONS[336:]
TESTING = [caption(scene) for scene in HELD_OUT]

REGIMES = {"on": 1, "off": 3}
"""Epochs for each rollout."""
UPDATES, STEPS_PER_SAMPLE, GROUP, CAPTIONS_PER_ROLLOUT = 54, 8, 12, 2
PAPER = (2, 3, 4, 7)
SWEPT_RATES, SWEPT_ARMS, SWEEP_SEEDS = (3e-4, 6e-4, 1.2e-3), ("step", "chunk"), (100, 101)
PRIMARY, PRIMARY_SEEDS, OTHER_SEEDS = ("step", "chunk"), range(10), range(5)
LATER_SEEDS = range(5, 10)
"""Of ``control``, off-policy: added after the others were known."""
OTHERS = ("adaptive", "weighted", "equal", "reversed", "whole", "control")
ALONE = ("alone 1", "alone 2", "alone 3", "alone 4")


@dataclass(frozen=True)
class Run:
    """One training run."""

    arm: str
    regime: str
    seed: int
    learning_rate: float
    sweep: bool = False
    """Whether it helps to choose the learning rate (other captions judge it)."""

    @property
    def name(self) -> str:
        """File name of its result."""
        kind = "sweep-" if self.sweep else ""
        arm = self.arm.replace(" ", "")
        return f"{kind}{arm}-{self.regime}-lr{self.learning_rate:g}-seed{self.seed}"


def sweep_runs() -> list[Run]:
    """The 24 runs that choose the learning rates."""
    return [
        Run(arm, regime, seed, rate, sweep=True)
        for seed in SWEEP_SEEDS
        for regime in REGIMES
        for arm in SWEPT_ARMS
        for rate in SWEPT_RATES
    ]


def main_runs(rates: dict[tuple[str, str], float]) -> list[Run]:
    """All runs that are reported, given the learning rate of each (arm, regime) of the sweep."""

    def run(arm: str, regime: str, seed: int) -> Run:
        return Run(arm, regime, seed, rates["step" if arm == "step" else "chunk", regime])

    primary = [run(arm, r, seed) for seed in PRIMARY_SEEDS for r in REGIMES for arm in PRIMARY]
    others = [
        run(arm, regime, seed)
        for seed in OTHER_SEEDS
        for regime in REGIMES
        for arm in OTHERS
        if (arm, regime) != ("control", "on")
    ]
    alone = [run(arm, "on", seed) for seed in OTHER_SEEDS for arm in ALONE]
    later = [run("control", "off", seed) for seed in LATER_SEEDS]
    return primary + others + alone + later


def plan_of(arm: str, curve: DynamicsCurve) -> ChunkPlan:
    """The chunk plan of an arm; ``curve`` is the measured one of the training sampler."""
    plans = {
        "step": per_step_plan(GRID.trainable_steps),
        "chunk": ChunkPlan(PAPER),
        "control": ChunkPlan(PAPER),
        "weighted": chunk_weights(ChunkPlan(PAPER), curve),
        "adaptive": adaptive_plan(curve, min_size=2, max_size=4),
        "equal": ChunkPlan((4, 4, 4, 4)),
        "reversed": ChunkPlan(PAPER[::-1]),
        "whole": ChunkPlan((16,)),
    }
    for index, name in enumerate(ALONE):
        plans[name] = ChunkPlan((4, 4, 4, 4), tuple(float(k == index) for k in range(4)))
    return plans[arm]


def _expected_steps(plan: ChunkPlan, fraction: float) -> float:
    """Steps that a sample trains on average: chunks drawn one after another by weight."""
    weights = plan.weights or (1.0,) * plan.count
    draws = drawn_count(plan, fraction, range(plan.count))

    def expected(left: frozenset[int], draws: int) -> float:
        if not draws:
            return 0.0
        total = sum(weights[k] for k in left)
        return sum(
            weights[k] / total * (plan.sizes[k] + expected(left - {k}, draws - 1))
            for k in left
            if weights[k] > 0
        )

    if plan.weights is None:
        return draws * plan.steps / plan.count
    return expected(frozenset(range(plan.count)), draws)


def config_of(run: Run, curve: DynamicsCurve) -> TrainConfig:
    """All settings of a run."""
    plan, epochs = plan_of(run.arm, curve), REGIMES[run.regime]
    is_alone = run.arm in ALONE
    fraction = 0.25 if is_alone else 0.5
    is_whole = run.arm == "whole"
    trained = STEPS_PER_SAMPLE if is_alone or is_whole else _expected_steps(plan, fraction)
    return TrainConfig(
        grid=GRID,
        plan=plan,
        sde=SDE,
        objective=ObjectiveConfig(
            clip_low=1e-4, clip_high=1e-4, ratio="step" if run.arm == "control" else "chunk"
        ),
        optimizer=OptimizerConfig(
            learning_rate=run.learning_rate, updates_per_rollout=1, epochs=epochs
        ),
        lora=LoraConfig(rank=16, alpha=32.0),
        iterations=round(UPDATES / epochs * STEPS_PER_SAMPLE / trained),
        prompts_per_iteration=1 if is_whole else CAPTIONS_PER_ROLLOUT,
        group_size=GROUP,
        chunk_fraction=fraction,
        checkpoint_every=5,
        seed=run.seed,
    )
