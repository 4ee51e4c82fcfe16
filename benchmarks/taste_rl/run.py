"""One run: picks, a head, a training until the units are spent, a measurement, one row of JSON."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from chunk_grpo_core.measure.evaluate import Evaluation, evaluate
from chunk_grpo_core.measure.reward_fell import fallen, reward_gains
from chunk_grpo_core.method.policy import base_model
from chunk_grpo_core.method.reward import Reward
from chunk_grpo_core.models.tiny.model import TinyFlux, sample_images
from chunk_grpo_core.models.tiny.reward import TinyWorldReward
from chunk_grpo_core.rewards.combined import CombinedReward, WeightedReward
from chunk_grpo_core.rewards.follows_prompt import FollowsPrompt
from chunk_grpo_core.rewards.taste.fit import Fitted
from chunk_grpo_core.rewards.taste.head import Head
from chunk_grpo_core.rewards.taste.reward import TasteReward
from chunk_grpo_core.rewards.taste.statistics import statistics
from chunk_grpo_core.train.checkpoint import Checkpoint
from chunk_grpo_core.train.config import TrainConfig
from chunk_grpo_core.train.events import Event, IterationEnd
from chunk_grpo_core.train.trainer import Trainer

from ..race.judge import TRAINING, Judge
from ..race.units import CountedPolicy
from ..tiny import flux_and_policy
from .arms import ARMS, Arm, config_of
from .people import (
    PICTURES,
    PROMPT,
    WRONG,
    first_picks,
    fitted,
    later_picks,
    prompt_deviation,
    scale,
)

__all__ = ["Measured", "Run", "measure", "outcomes", "perform"]

DUELS = 20
_ROUND_STEPS, _ROUND_SEED = 5, 70_000
_FIRST_OF_ROUND = 1_000
_LOOK_EVERY, _LOOKED_AT = 2, TRAINING[-24:]


@dataclass(frozen=True)
class Run:
    """One training."""

    arm: str
    picks: int
    taste: str
    seed: int
    units: int | None = None
    """Those of the arm if None."""

    @property
    def key(self) -> list[object]:
        """What tells it from others."""
        return [self.arm, self.picks, self.taste, self.seed]


@dataclass(frozen=True)
class Measured:
    """Numbers of the held-out pictures, each (B,): taste and adherence in deviations of the
    pool."""

    taste: Tensor
    adherence: Tensor
    clean: Tensor
    head: Tensor


def measure(judge: Judge, images: Tensor, taste: str, head: Head) -> Measured:
    """Measure pictures (B, H, W, 3) of the judge's captions."""
    world = TinyWorldReward().score(images, judge.texts).extras
    adherence = sum((w * world[name] for name, w in PROMPT.weights.items()), torch.zeros(1))
    return Measured(
        scale(taste)(images, judge.texts),
        adherence / prompt_deviation(),
        world["clean"],
        head.score(statistics(images), judge.texts)[0],
    )


def _reward(head: Fitted, arm: Arm) -> CombinedReward:
    taste = TasteReward(head.head, {}, pessimism=arm.pessimism)
    following: Reward = FollowsPrompt() if arm.judges_itself else PROMPT
    return CombinedReward(
        [
            WeightedReward(reward=taste, weight=1 - arm.balance),
            WeightedReward(reward=following, weight=arm.balance),
        ]
    )


def _newest(flux: TinyFlux, count: int) -> tuple[Tensor, list[str]]:
    """Pictures (P, 8, H, W, 3) of training captions by the model as it is, and the captions."""
    captions = TRAINING[192 : 192 + count]
    texts = [text for text in captions for _ in range(PICTURES)]
    images = sample_images(flux, texts, _ROUND_SEED, _ROUND_STEPS).clamp(0, 1)
    return images.view(count, PICTURES, *images.shape[1:]), captions


def _look(policy: CountedPolicy, config: TrainConfig) -> Evaluation:
    return evaluate(policy, PROMPT, _LOOKED_AT, config.grid, seeds=2, seed=90_000)


def perform(run: Run, judge: Judge) -> dict[str, Any]:
    """Do one run; returns its row."""
    arm = ARMS[run.arm]
    config = config_of(arm, run.seed)
    first = run.picks // 2 if arm.refits else run.picks
    picks = first_picks(run.taste, first, run.seed)
    head, was_asked = fitted(picks), False
    flux, inner = flux_and_policy(config.lora, run.seed)
    policy, rows = CountedPolicy(inner), []
    units = arm.units if run.units is None else run.units
    begin = time.process_time()

    def listen(event: Event) -> None:
        if isinstance(event, IterationEnd):
            rows.append(event.metrics)

    trainer = Trainer(
        policy,
        _reward(head, arm),
        TRAINING,
        config,
        listener=listen,
        wants_stop=lambda: policy.units >= units,
    )

    def ask_again(iterations: int) -> None:
        nonlocal head, was_asked
        if was_asked or not arm.refits or policy.units < units / 2:
            return
        was_asked, count = True, run.picks - first
        images, captions = _newest(flux, count)
        policy.units += len(images) * PICTURES * _ROUND_STEPS
        new = later_picks(run.taste, count, run.seed, images, captions, _FIRST_OF_ROUND)
        head = fitted([*picks, *new], (images, _FIRST_OF_ROUND))
        trainer.reward = _reward(head, arm)

    def fell() -> bool:
        """Look whether adherence fell; if so, take the weights from before."""
        nonlocal base, sound
        if base is None:
            with base_model(policy):
                base = _look(policy, config)
            sound = trainer.state()
            return False
        now = _look(policy, config)
        row = {"iterations": trainer.iteration, "rewards": reward_gains(base, now, PROMPT)}
        if fallen(row) and sound is not None:
            trainer.load(sound)
            return True
        sound = trainer.state()
        return False

    def watch(iterations: int) -> bool:
        ask_again(iterations)
        return arm.stops and iterations % _LOOK_EVERY == 0 and fell()

    base: Evaluation | None = None
    sound: Checkpoint | None = None
    trainer.train(watch)
    if arm.stops:
        fell()
    seconds = time.process_time() - begin
    return {
        "run": run.key,
        "units": policy.units,
        "iterations": trainer.iteration,
        "rollouts": len(rows),
        "seconds": round(seconds, 1),
        "fit": {
            "agrees": round(head.report.agreement.share, 3),
            "verdict": head.report.verdict,
            "reads_captions": head.report.reads_captions,
        },
        **outcomes(judge, judge.pictures(flux), run, head.head),
        "velocity_ratio": round(judge.velocity_ratio(flux), 3),
        "training": [_training_row(row) for row in rows],
    }


def outcomes(judge: Judge, images: Tensor, run: Run, head: Head) -> dict[str, Any]:
    """Paired gains on the held-out pictures."""
    before = measure(judge, judge.base_pictures, run.taste, head)
    after = measure(judge, images, run.taste, head)
    gain = after.taste - before.taste
    dice = torch.Generator().manual_seed(80_000 + run.seed)
    chosen = torch.randperm(len(judge.captions), generator=dice)[:DUELS] * 2
    misses = torch.rand(DUELS, generator=dice) < WRONG
    return {
        "taste": _by_caption(gain),
        "adherence": _by_caption(after.adherence - before.adherence),
        "clean": round(float((after.clean - before.clean).mean()), 4),
        "head": round(float((after.head - before.head).mean()), 4),
        "better": round(float((gain > 0).float().mean()), 4),
        "duels": int(((gain[chosen] > 0) != misses).sum()),
    }


def _by_caption(gain: Tensor) -> list[float]:
    """The mean of the two pictures of each caption."""
    return [round(float(mean), 3) for mean in gain.view(-1, 2).mean(1)]


def _training_row(row: Any) -> dict[str, Any]:
    return {
        "rewards": {
            name: [_rounded(part["mean"]), _rounded(part["std"])]
            for name, part in row["rewards"].items()
        },
        "velocity_norm": _rounded(row["velocity_norm"]),
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
