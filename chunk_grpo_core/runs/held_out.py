"""Measurements on the held-out prompts of a run: before it, meanwhile and after it.

A reward that is fitted again in mid-training is another judge. The base model is then measured
anew with it, on the same noise, before the next gain is told, so that gains are always paired; rows
that are written already keep their numbers, and each says which judge gave them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from ..measure.evaluate import Evaluation, evaluate, paired_gain, paired_means
from ..measure.reward_fell import fallen, reward_gains
from ..method.cancel import CheckCancel
from ..method.policy import Policy, base_model
from ..method.reward import NoReward, Reward, RewardBatch
from ..method.sampler import Sampler
from ..processes.collective import Processes
from ..prompts.example import Prompt
from ..rewards.parts import measurable
from ..train.alarms import Alarm
from ..train.batch_limit import BatchLimit
from ..train.config import TrainConfig
from ..train.events import AlarmRaised, EvaluationProgress, HeldOutEnd, Listener, Measured
from ..train.patience import Patience
from .outcome import EVALUATION_SEED

__all__ = ["HeldOut", "check_held_out", "check_needless"]

log = logging.getLogger(__name__)


def check_held_out(prompts: Sequence[Prompt]) -> None:
    """Make sure that there are enough prompts to measure on.

    Raises:
        ValueError: There are fewer than two, which have no interval.
    """
    if len(prompts) < 2:
        raise ValueError(
            f"prompts held out: {len(prompts)}; a measurement needs at least 2, so raise "
            "prompts.held_out (held_out of Prompt Set) or write more prompts"
        )


def check_needless(reward: Reward, config: TrainConfig) -> None:
    """Make sure that a training without a reward needs none.

    Raises:
        ValueError: Its algorithm trains on scores, or it is to be measured meanwhile.
    """
    if not isinstance(reward, NoReward):
        return
    if config.algorithm != "preference":
        raise ValueError(
            "reward is missing: the training needs one that says which pictures are better, in "
            "ComfyUI a node Load Reward connected to the input reward. Only the algorithm "
            f"preference, which trains on picks, does without; this one is {config.algorithm}"
        )
    if config.evaluate_every:
        raise ValueError(
            f"evaluate_every is {config.evaluate_every}, but without a reward nothing is measured; "
            "set it to 0, or add a reward"
        )


@dataclass(kw_only=True)
class HeldOut:
    """What is measured, and how; several processes share the prompts."""

    policy: Policy
    reward: Reward
    """In force; its parts that ask a person do not measure."""
    prompts: Sequence[Prompt]
    config: TrainConfig
    sampler: Sampler | None
    seeds: int
    """Pictures of each prompt; one without a reward, to look at."""
    limit: BatchLimit
    processes: Processes
    listener: Listener
    check_cancel: CheckCancel
    refit: int = 0
    """Iterations that were done when the reward was fitted."""

    def __post_init__(self) -> None:
        self.judge_with(self.reward, self.refit)

    def judge_with(self, reward: Reward, refit: int) -> None:
        """From here on this reward measures, the base model too."""
        self.reward, self.refit = measurable(reward), refit
        self._before: Evaluation | None = None

    @property
    def before(self) -> Evaluation:
        """The base model, by the reward in force; measured when it is needed."""
        if self._before is None:
            with base_model(self.policy):
                self._before = self.measure("during" if self.refit else "before")
        return self._before

    @property
    def is_scored(self) -> bool:
        """Whether there is a reward that measures."""
        return not isinstance(self.reward, NoReward)

    def measure(self, which: Measured) -> Evaluation:
        """Draw all prompts with the adapter as it is, and score them."""
        share = self.processes.part(len(self.prompts))
        evaluation = (
            evaluate(
                self.policy,
                self.reward,
                self.prompts[share.start : share.stop],
                self.config.grid,
                seeds=self.seeds if self.is_scored else 1,
                seed=EVALUATION_SEED + share.start,
                solver=self.config.ode_solver,
                sampler=self.sampler,
                limit=self.limit,
                settle=self._all_scores,
                progress=lambda fraction: self.listener(EvaluationProgress(which, fraction)),
                check_cancel=self.check_cancel,
            )
            if share
            else None
        )
        if not share:  # more processes than prompts
            self._all_scores(list)
        return Evaluation.joined([part for part in self.processes.gather(evaluation) if part])

    def tell(self, iterations: int, now: Evaluation) -> Alarm | None:
        """Tell the listener what was gained; the alarm of a reward that fell."""
        if not self.is_scored:
            return None
        before = self.before
        gain = paired_gain(before, now)
        base, mean = paired_means(before, now)
        low, high = base + gain.low, base + gain.high
        gains = reward_gains(before, now, self.reward)
        measured = HeldOutEnd(iterations, mean, low, high, now.missing, gains, self.refit)
        self.listener(measured)
        alarm = fallen(asdict(measured))
        if alarm:
            log.warning("%s", alarm.text)
            self.listener(AlarmRaised(alarm))
        return alarm

    def _all_scores(self, attempt: Callable[[], list[RewardBatch]]) -> list[RewardBatch]:
        if not self.is_scored:
            return attempt()
        patience = Patience(self.config.run, self.listener, self.check_cancel)
        return patience.until_scored(
            lambda: [batch for part in self.processes.gather(attempt()) for batch in part],
            self.reward.name,
            "the evaluation",
        )
