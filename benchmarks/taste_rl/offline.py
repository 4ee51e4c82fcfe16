"""One offline run: picks, a training on them without rollouts, a measurement, one row of JSON."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

from torch import Tensor

from chunk_grpo_core.algorithms.preference import JudgedLatents, Preference
from chunk_grpo_core.method.schedule import shifted_grid
from chunk_grpo_core.models.tiny.model import SHIFT
from chunk_grpo_core.prompts.example import Example
from chunk_grpo_core.prompts.judged import Judged
from chunk_grpo_core.rewards.taste.events import TORCH_CPU, Pick, Shown
from chunk_grpo_core.rewards.taste.judged import judged_examples
from chunk_grpo_core.train.config import TrainConfig
from chunk_grpo_core.train.events import Event, IterationEnd
from chunk_grpo_core.train.trainer import Trainer

from ..race.judge import Judge
from ..race.units import CountedPolicy
from ..tiny import flux_and_policy
from .arms import ARMS, Arm
from .chosen import offline_settings
from .people import PROMPT, drawn_with, first_picks, fitted, pool
from .run import Run, outcomes

__all__ = ["offline_config", "perform_offline"]

_COLUMNS = (
    "preference_loss",
    "preference_accuracy",
    "implicit_reward_better",
    "implicit_reward_worse",
    "velocity_norm",
)


def offline_config(arm: Arm, seed: int, rows: Sequence[Mapping[str, Any]]) -> TrainConfig:
    """All settings of a run, which ends by its units and not by its iterations.

    Args:
        arm: What is run.
        seed: Of the run.
        rows: Runs that are done: those that prepare the others decide what the arm leaves open.
    """
    return TrainConfig.of(
        {
            "algorithm": "preference",
            "preference.objective": arm.offline,
            "preference.picks": "simulated",
            "preference.beta": 200.0,
            "grid": shifted_grid(5, SHIFT),
            "lora.rank": 16,
            "lora.alpha": 32.0,
            "prompts_per_iteration": 8,
            "group_size": 2,
            "optimizer.updates_per_rollout": 1,
            "seed": seed,
            "iterations": 100_000,
            "run.stop_on": (),
            **(arm.settings or offline_settings(rows, arm.offline)),
        }
    )


def perform_offline(
    run: Run, judge: Judge, rows_done: Sequence[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    """Do one run; returns its row. For ``rows_done`` see :func:`offline_config`."""
    arm = ARMS[run.arm]
    config = offline_config(arm, run.seed, rows_done)
    picks = first_picks(run.taste, run.picks, run.seed)
    examples = judged_examples(map(_with_noise, picks), config.preference.objective)
    head = fitted(picks)
    flux, inner = flux_and_policy(config.lora, run.seed)
    policy, rows = CountedPolicy(inner), []
    begin = time.process_time()

    def listen(event: Event) -> None:
        if isinstance(event, IterationEnd):
            rows.append(event.metrics)

    trainer = Trainer(
        policy,
        PROMPT,
        examples,
        config,
        algorithm=Preference(config, _latents(policy, examples)),
        listener=listen,
        wants_stop=lambda: policy.units >= (arm.units if run.units is None else run.units),
    )
    trainer.train()
    seconds = time.process_time() - begin
    return {
        "run": run.key,
        "units": policy.units,
        "iterations": trainer.iteration,
        "seconds": round(seconds, 1),
        "noise": config.preference.noise,
        "learning_rate": config.optimizer.learning_rate,
        **outcomes(judge, judge.pictures(flux), run, head.head),
        "velocity_ratio": round(judge.velocity_ratio(flux), 3),
        "last_ten": {
            name: round(fmean(row[name] for row in rows[-10:]), 4) for name in _COLUMNS
        },
    }  # fmt: skip


def _with_noise(pick: Pick) -> Pick:
    """The pick as Pick Pictures writes it, with the noise of its pictures."""

    def known(shown: Shown) -> Shown:
        seed, index = drawn_with(shown.picture)
        return replace(shown, seed=seed, index=index, made={"noise": TORCH_CPU})

    return replace(pick, shown=tuple(map(known, pick.shown)))


def _latents(policy: CountedPolicy, examples: Sequence[Example]) -> JudgedLatents:
    latents: dict[str, Tensor] = {}
    for name in dict.fromkeys(n for one in examples for n in Judged.of(one).pictures):
        encoded = policy.encode(pool().images[int(name, 16)][None])
        assert encoded is not None
        latents[name] = encoded[0].cpu().float()
    return JudgedLatents(latents)
