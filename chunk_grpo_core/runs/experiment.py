"""A training run with a fair measurement around it; the command line and the nodes share it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from ..algorithms.algorithm import Algorithm
from ..configfile.record import PYTHON, Record, read_record, write_run
from ..disk.atomic import write_whole
from ..measure.evaluate import Evaluation, Interval, evaluate, paired_gain
from ..method.cancel import CheckCancel, never_cancel
from ..method.policy import Policy, base_model
from ..method.reward import Reward
from ..processes.collective import Processes
from ..prompts.example import Prompt, examples_of
from ..train.batch_limit import BatchLimit
from ..train.config import TrainConfig
from ..train.events import (
    EvaluationProgress,
    HeldOutEnd,
    Listener,
    Measured,
    RunEnd,
    StopWish,
    broadcast,
    ignore,
    never_stop,
)
from ..train.may_change import Change, prompts_digest
from ..train.trainer import Trainer
from ..version import __version__
from ..watch.comparison import pair_grid
from ..watch.history import HeldOutWriter, MetricsWriter, read_metrics
from ..watch.newest_group import LatestGroup
from ..watch.pictures import SampleWriter
from ..watch.plots import plot_training
from .folder import RunFolder

__all__ = ["EVALUATION_SEED", "Outcome", "check_held_out", "loaded_facts", "run_experiment"]

EVALUATION_SEED = 20_000
"""Noise seed of the first held-out prompt; far from seeds people type for training."""


@dataclass(frozen=True)
class Outcome:
    """A finished run and what it gained on held-out prompts."""

    config: TrainConfig
    model: str
    reward: str
    iterations: int
    """Iterations done."""
    changes: tuple[Change, ...]
    """Settings that were changed on the way."""
    rows: list[dict[str, Any]]
    """metrics.jsonl."""
    held_out: list[dict[str, Any]]
    """held_out.jsonl."""
    before: Evaluation
    """The base model on the held-out prompts."""
    after: Evaluation
    """The same prompts and noise with the adapter on."""

    @property
    def gain(self) -> Interval:
        """Mean paired gain with its 95 % interval."""
        return paired_gain(self.before, self.after)

    @property
    def ratio_error_first_update(self) -> float | None:
        """Largest |ratio - 1| at the first update of any rollout of the run; None if the algorithm
        has no ratio."""
        errors = [row.get("ratio_error_first_update") for row in self.rows]
        return max((error for error in errors if error is not None), default=None)

    def plot(self, *, dark: bool = False) -> Tensor:
        """Training curves with the measurements on held-out prompts."""
        return plot_training(self.rows, held_out=self.held_out, dark=dark)

    def before_after_grid(self) -> Tensor:
        """Held-out prompts, base model above, adapter below; see :func:`pair_grid`."""
        return pair_grid(self.before, self.after)

    def lora_metadata(self) -> dict[str, str]:
        """What the LoRA is and how it was made, as text, for the header of its file.

        ``chunk_grpo_recipe`` holds all settings, by their dotted keys, as the last iteration was
        trained with, and ``chunk_grpo_changes`` what was changed on the way; the plain entries
        repeat those people look for.
        """
        config = self.config
        trained = [change for change in self.changes if change.iteration < self.iterations]
        untrained = {c.key: c.old for c in self.changes if c.iteration >= self.iterations}
        return {
            "base_model": self.model,
            "reward": self.reward,
            "chunk_grpo_version": __version__,
            "chunk_grpo_recipe": json.dumps({**config.flat(), **untrained}),
            "chunk_grpo_changes": json.dumps([asdict(change) for change in trained]),
            "chunk_plan": ", ".join(map(str, config.plan.sizes if config.plan else ())),
            "steps": str(config.grid.steps),
            "iterations": str(self.iterations),
            "seed": str(config.seed),
            "held_out_seed": str(EVALUATION_SEED),
            "held_out_reward": json.dumps({"before": self.before.mean, "after": self.after.mean}),
        }


def check_held_out(prompts: Sequence[Prompt]) -> None:
    """Make sure that there are enough prompts to measure on.

    Raises:
        ValueError: There are fewer than two, which have no interval.
    """
    if len(prompts) < 2:
        raise ValueError(f"{len(prompts)} held-out prompts; a measurement needs at least 2")


def run_experiment(
    policy: Policy,
    reward: Reward,
    prompts: Sequence[Prompt],
    held_out: Sequence[Prompt],
    config: TrainConfig,
    folder: RunFolder,
    *,
    resume: bool = False,
    algorithm: Algorithm[Any, Any] | None = None,
    evaluation_seeds: int = 4,
    listener: Listener = ignore,
    check_cancel: CheckCancel = never_cancel,
    wants_stop: StopWish = never_stop,
    limit: BatchLimit | None = None,
    processes: Processes | None = None,
    tables: Mapping[str, Any] = PYTHON,
) -> Outcome:
    """Measure, train, measure again; everything is kept in the run folder.

    With ``config.evaluate_every`` it is measured in between, too.

    Args:
        policy: Model and adapter.
        reward: What to maximise.
        prompts: What to train on; their metadata goes to the reward.
        held_out: What to measure on, at least two, best none of ``prompts``.
        config: All settings.
        folder: Where the run is created, or resumed.
        resume: Go on with the run that is in the folder.
        algorithm: How to train; the one that ``config.algorithm`` names if None.
        evaluation_seeds: Pictures of each held-out prompt.
        listener: Hears all events, in the first process.
        check_cancel: Raises to stop; called after every micro-step.
        wants_stop: Once true, training ends early and what it has learnt is measured; at least one
            iteration is always done.
        limit: Samples that fit into memory at once; begins at ``config.batch_size`` if None.
        processes: Those that train together; this one alone if None. Only the first touches the
            run folder, which the others need not even see.
        tables: What the record says of that which was loaded: ``model``, and where a configuration
            named them ``prompts``, ``reward``, ``plan`` and ``run``. See
            :func:`~chunk_grpo_core.configfile.writing.settings_text`.

    Raises:
        NothingScored: No picture of an iteration or of a measurement has a score; the run can be
            resumed when the reward works.
        FileExistsError: The folder holds a run and ``resume`` is False.
        FileNotFoundError: The folder holds no run and ``resume`` is True.
        ValueError: The run was trained with something that may not change, there are too few
            prompts, or the processes have different models, rewards or prompts.
    """
    check_held_out(held_out)
    processes = processes or Processes()
    limit = limit or BatchLimit(size=config.batch_size)
    listener = broadcast(
        MetricsWriter(folder.metrics_file),
        HeldOutWriter(folder.held_out_file),
        SampleWriter(folder.samples),
        LatestGroup(folder.group),
        listener,
    )
    trainer = Trainer(
        policy,
        reward,
        prompts,
        config,
        algorithm=algorithm,
        checkpoints=folder.checkpoints,
        facts={"held_out": prompts_digest(held_out), **loaded_facts(tables)},
        listener=listener,
        check_cancel=check_cancel,
        wants_stop=wants_stop,
        limit=limit,
        processes=processes,
    )
    config = trainer.config
    listener = listener if processes.is_writer else ignore
    _check_equal(processes.gather(trainer.trained_with))
    processes.from_writer(folder.check_holds_a_run if resume else folder.check_free)
    if resume:
        trainer.resume()

    def write_record() -> tuple[Change, ...]:
        before = read_record(folder.path).changes if resume else ()
        # What was changed after the checkpoint was trained by nobody.
        kept = tuple(change for change in before if change.iteration < trainer.iteration)
        record = Record(
            model=policy.name,
            reward=reward.name,
            reward_fingerprint=dict(reward.fingerprint),
            train=examples_of(prompts),
            held_out=examples_of(held_out),
            changes=(*kept, *trainer.changes),
        )
        write_run(folder.path, config, tables, record)
        return record.changes

    changes = processes.from_writer(write_record)

    def measure(which: Measured) -> Evaluation:
        share = _part(len(held_out), processes)
        evaluation = (
            evaluate(
                policy,
                reward,
                held_out[share.start : share.stop],
                config.grid,
                seeds=evaluation_seeds,
                seed=EVALUATION_SEED + share.start,
                limit=limit,
                is_part=True,
                progress=lambda fraction: listener(EvaluationProgress(which, fraction)),
                check_cancel=check_cancel,
            )
            if share
            else None
        )
        whole = Evaluation.joined([part for part in processes.gather(evaluation) if part])
        return whole.check_scored(reward.name)

    def tell(iterations: int, evaluation: Evaluation) -> None:
        gain = paired_gain(before, evaluation)
        low, high = before.mean + gain.low, before.mean + gain.high
        listener(HeldOutEnd(iterations, evaluation.mean, low, high))

    def watch(iterations: int) -> None:
        if iterations and config.evaluate_every and iterations % config.evaluate_every == 0:
            tell(iterations, measure("during"))

    with base_model(policy):
        before = measure("before")
    tell(0, before)
    trainer.train(watch)
    after = measure("after")
    tell(trainer.iteration, after)

    def keep() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        scores = {"before": before.to_json(), "after": after.to_json()}
        body = json.dumps({"noise_seed": EVALUATION_SEED, **scores}, indent=1)
        write_whole(folder.evaluation_file, body)
        return read_metrics(folder.metrics_file), read_metrics(folder.held_out_file)

    rows, measured = processes.from_writer(keep)
    listener(RunEnd(trainer.iteration, stopped=trainer.iteration < config.iterations))
    return Outcome(
        config=config,
        model=policy.name,
        reward=reward.name,
        iterations=trainer.iteration,
        changes=changes,
        rows=rows,
        held_out=measured,
        before=before,
        after=after,
    )


def loaded_facts(tables: Mapping[str, Any]) -> dict[str, object]:
    """What a record's tables say that a training depends on, by dotted key.

    Rewards are not among it: their names and fingerprints are compared.
    """
    return {
        f"{table}.{key}": value
        for table in ("model", "prompts", "run")
        for key, value in tables.get(table, {}).items()
    }


def _part(count: int, processes: Processes) -> range:
    """The prompts that this process measures; as many as the others, give or take one."""
    rank, all_of_them = processes.rank, processes.count
    return range(rank * count // all_of_them, (rank + 1) * count // all_of_them)


def _check_equal(facts: Sequence[Mapping[str, object]]) -> None:
    """Make sure that all processes train the same thing.

    Raises:
        ValueError: They do not; the message names process and fact.
    """
    for rank, other in enumerate(facts):
        for name, value in other.items():
            if value != facts[0][name]:
                raise ValueError(
                    f"process {rank} has another {name} than process 0 ({value!s:.200} instead of "
                    f"{facts[0][name]!s:.200}); all must load the same files"
                )
