"""What a configuration file says, once it has been read and checked (``configfile/reading.py``)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any

from ..method.chunks import ChunkPlan
from ..method.dynamics import DynamicsCurve
from ..method.plan_text import needs_curve, read_plan, read_weights, weights_need_curve
from ..models.registry import ChosenModel
from ..prompts.split import PromptConfig, PromptSet
from ..settings.declared import Range, check_settings, shortened
from ..train.config import TrainConfig

__all__ = ["GridTable", "PlanTable", "PromptTable", "RewardEntry", "RunConfig", "RunTable"]


@dataclass(frozen=True, kw_only=True, slots=True)
class GridTable:
    """Noise levels of the rollout: steps and shift, or sigmas."""

    steps: int = 0
    """Sampling steps, the deterministic last one included; 2 or more."""
    shift: float | str = ""
    """Shift towards noise, above 0: 1 is even, 3 is common; "model" takes the levels that the model
    itself is sampled with, which may depend on the size of the pictures."""
    sigmas: tuple[float, ...] = ()
    """The noise levels themselves, falling from 1 to 0, instead of steps and shift."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanTable:
    """Which steps share an importance ratio."""

    chunks: str = ""
    """Sizes such as "2, 3, 4, 7"; "step" (step-level GRPO), "whole", "size 4"; or read off a curve
    that is measured first: "adaptive", "adaptive 2 4", "cut 4", "cut 4 2"."""
    weights: str = ""
    """How often chunks are drawn: "uniform", "curve", "softmax 0.5", or one number for each. Empty
    for uniform."""

    @property
    def needs_curve(self) -> bool:
        """Whether the plan is read off a curve that must be measured first."""
        return needs_curve(self.chunks) or weights_need_curve(self.weights)

    def read(self, trainable_steps: int, curve: DynamicsCurve | None = None) -> ChunkPlan | None:
        """Build the plan; None if there is none, for an algorithm without chunks.

        Raises:
            ValueError: It does not fit the steps, or needs a curve; or only weights are given.
        """
        if not self.chunks:
            if self.weights:
                raise ValueError(
                    f"plan.weights is {shortened(self.weights)}, but plan.chunks is missing"
                )
            return None
        plan = read_plan(self.chunks, trainable_steps, curve)
        return read_weights(self.weights, plan, curve) if self.weights else plan


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptTable:
    """Where prompts come from; without any, a model that brings captions along takes those."""

    file: str = ""
    """Prompts to train on: .txt (one on a line), .jsonl, .json, .csv or .tsv."""
    text: tuple[str, ...] = ()
    """Prompts to train on, instead of a file."""
    held_out_file: str = ""
    """Prompts to measure on. Without any, some are taken out of those to train on."""
    wildcards: str = ""
    """Folder of lists for __name__ in prompts."""

    def __post_init__(self) -> None:
        if self.file and self.text:
            raise ValueError("prompts has both file and text; give one of them")

    def check_picks(self, picks: str | None) -> None:
        """Make sure that the algorithm preference gets its prompts from picks.

        Raises:
            ValueError: There are none, or prompts from elsewhere, too.
        """
        if not picks:
            raise ValueError(
                "preference.picks is missing; the algorithm preference trains on picks: name the "
                'folder of a taste, such as picks = "output/chunk_grpo/taste/mine"'
            )
        for name in ("file", "text", "wildcards"):
            if getattr(self, name):
                raise ValueError(
                    f"prompts.{name} is given, but the algorithm preference trains on the prompts "
                    "of its picks; leave it out (prompts to measure on go into "
                    "prompts.held_out_file)"
                )


@dataclass(frozen=True, kw_only=True, slots=True)
class RunTable:
    """What a run needs besides the settings of the training."""

    folder: str = ""
    """Run folder, which must be new; empty for runs/<name of this file>-001 and so on."""
    pictures: Annotated[int, Range(1, 1024)] = 4
    """Pictures of each held-out prompt, before and after training."""
    continue_from: str = ""
    """A LoRA file to train on from."""
    log: tuple[str, ...] = ()
    """Also log to "tensorboard", "wandb". metrics.jsonl is always written."""

    def __post_init__(self) -> None:
        check_settings(self, "run")


@dataclass(frozen=True, kw_only=True)
class RewardEntry:
    """One reward of a file."""

    name: str
    weight: float
    settings: Mapping[str, object]
    balance: float | None = None
    """Its share against all other rewards together, see ``rewards/balance.py``."""

    def to_json(self) -> dict[str, object]:
        """The table as the file has it."""
        balance = {} if self.balance is None else {"balance": self.balance}
        return {"name": self.name, "weight": self.weight, **balance, **self.settings}


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """All that a configuration file says, checked."""

    name: str
    """Name of the file, for the run folder."""
    preset: str
    """Name of a preset, or empty."""
    model: ChosenModel
    prompts: PromptTable
    prompt_config: PromptConfig
    rewards: tuple[RewardEntry, ...]
    plan: PlanTable
    settings: TrainConfig
    """Settings of the training. A plan that is yet to be read off a curve is not known before
    :meth:`train_config`; until then every step has a chunk of its own here."""
    run: RunTable
    is_measured: bool = False
    """Whether ``settings`` have the plan that was read off a curve, from the record of a run."""
    recorded: PromptSet | None = None
    """The prompts of a run that is the source of this; None reads them from their files."""

    @property
    def needs_curve(self) -> bool:
        """Whether a curve must be measured before the plan is known."""
        return self.plan.needs_curve and not self.is_measured

    def tables(self) -> dict[str, Any]:
        """What the file says beside the settings, as plain values: its tables by name."""
        return {
            "model": {"type": self.model.type, **asdict(self.model.table)},
            "prompts": {**asdict(self.prompts), **asdict(self.prompt_config)},
            "reward": [reward.to_json() for reward in self.rewards],
            "plan": asdict(self.plan),
            "run": asdict(self.run),
        }

    def train_config(self, curve: DynamicsCurve | None = None) -> TrainConfig:
        """Settings of the training with their plan.

        Raises:
            ValueError: The plan needs a curve, or does not fit the settings.
        """
        if not self.needs_curve:
            return self.settings
        plan = self.plan.read(self.settings.grid.trainable_steps, curve)
        return replace(self.settings, plan=plan)
