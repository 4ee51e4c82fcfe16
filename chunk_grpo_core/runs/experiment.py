"""A training run with a fair measurement around it; the command line and the nodes share it."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from ..algorithms import algorithm_of
from ..algorithms.algorithm import Algorithm
from ..configfile.edits import check_edits
from ..configfile.facts import loaded_facts
from ..configfile.record import PYTHON, Record, new_run_id, read_record, write_run
from ..disk.atomic import write_whole
from ..method.cancel import CheckCancel, never_cancel
from ..method.policy import Policy
from ..method.reward import Reward
from ..method.sampler import name_of_sampler
from ..processes.collective import Processes
from ..prompts.example import Prompt, examples_of
from ..train.alarms import REWARD_FELL, AlarmStop
from ..train.batch_limit import BatchLimit
from ..train.checkpoint import Checkpoint
from ..train.config import TrainConfig
from ..train.events import (
    Listener,
    RunEnd,
    StopWish,
    StopWished,
    broadcast,
    ignore,
    never_stop,
)
from ..train.may_change import Change, prompts_digest
from ..train.trainer import Trainer
from ..watch.derived import derived, make_way
from ..watch.history import HeldOutWriter, MetricsWriter
from ..watch.newest_group import LatestGroup
from ..watch.pictures import SampleWriter
from .asking import GoesOn, WaitingRun, asked_by, check_asking, never_goes_on
from .folder import RunFolder, locked_run
from .held_out import HeldOut, check_held_out, check_needless
from .outcome import EVALUATION_SEED, Outcome
from .refitting import RewardInForce, Stops, first_heads

__all__ = ["run_experiment"]

log = logging.getLogger(__name__)


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
    goes_on: GoesOn = never_goes_on,
    limit: BatchLimit | None = None,
    processes: Processes | None = None,
    tables: Mapping[str, Any] = PYTHON,
    follows_record: bool = False,
) -> Outcome:
    """Measure, train, measure again; everything is kept in the run folder.

    With ``config.evaluate_every`` it is measured in between, too.

    Args:
        policy: Model and adapter.
        reward: What to maximise; :class:`~chunk_grpo_core.method.reward.NoReward` if nothing is to
            be measured and the algorithm asks for no scores.
        prompts: What to train on; their metadata goes to the reward.
        held_out: What to measure on, at least two, best none of ``prompts``.
        config: All settings.
        folder: Where the run is created, or resumed; locked meanwhile.
        resume: Go on with the run that is in the folder.
        algorithm: How to train; the one that ``config.algorithm`` names if None.
        evaluation_seeds: Pictures of each held-out prompt.
        listener: Hears all events, in the first process.
        check_cancel: Raises to stop; called after every micro-step.
        wants_stop: Once true, training ends early and what it has learnt is measured; at least one
            iteration is always done.
        goes_on: Asked while the run waits for its person (``ask``, the reward votes): whether they
            want to go on with what they have said.
        limit: Samples that fit into memory at once; begins at ``config.batch_size`` if None.
        processes: Those that train together; this one alone if None. Only the first touches the
            run folder, which the others need not even see.
        tables: What the record says of that which was loaded: ``model``, and where a configuration
            named them ``prompts``, ``reward``, ``plan`` and ``run``. See
            :func:`~chunk_grpo_core.configfile.writing.settings_text`.
        follows_record: Whether ``config`` and ``tables`` were read from the record of the run that
            is resumed. Otherwise an edit of the record must be in them, too.

    Raises:
        NothingScored: No picture of an iteration or of a measurement has a score; the run can be
            resumed when the reward works.
        FileExistsError: The folder holds a run and ``resume`` is False, or somebody trains there.
        FileNotFoundError: The folder holds no run and ``resume`` is True, or it was moved or
            deleted meanwhile.
        CannotWrite: The disk is full, or something else is in the way; the run can be resumed.
        ValueError: The run was trained with something that may not change, its record was edited
            and says something else, there are too few prompts, or the processes have different
            models, rewards or prompts.
    """
    check_held_out(held_out)
    check_needless(reward, config)
    processes = processes or Processes()
    with locked_run(folder, processes, goes_on=resume) as locked:
        return _experiment(
            policy,
            reward,
            prompts,
            held_out,
            config,
            locked,
            resume=resume,
            algorithm=algorithm,
            evaluation_seeds=evaluation_seeds,
            listener=listener,
            check_cancel=check_cancel,
            wants_stop=wants_stop,
            goes_on=goes_on,
            limit=limit or BatchLimit(size=config.batch_size),
            processes=processes,
            tables=tables,
            follows_record=follows_record,
        )


def _experiment(
    policy: Policy,
    reward: Reward,
    prompts: Sequence[Prompt],
    prompts_held_out: Sequence[Prompt],
    config: TrainConfig,
    folder: RunFolder,
    *,
    resume: bool,
    algorithm: Algorithm[Any, Any] | None,
    evaluation_seeds: int,
    listener: Listener,
    check_cancel: CheckCancel,
    wants_stop: StopWish,
    goes_on: GoesOn,
    limit: BatchLimit,
    processes: Processes,
    tables: Mapping[str, Any],
    follows_record: bool,
) -> Outcome:
    """See :func:`run_experiment`."""
    metrics, measurements = MetricsWriter(folder.metrics_file), HeldOutWriter(folder.held_out_file)
    listener = broadcast(
        lambda event: folder.check_in_place(),
        derived(metrics),
        derived(measurements),
        derived(SampleWriter(folder.samples)),
        derived(LatestGroup(folder.group)),
        listener,
    )
    before_resume = read_record(folder.path) if resume and processes.is_writer else None
    run_id = before_resume.id if before_resume else new_run_id()
    check_asking(reward, config, processes)
    if not resume:
        config.ask.check_used()
    person = WaitingRun(
        listener if processes.is_writer else ignore,
        check_cancel,
        goes_on,
        lambda: trainer.iteration > 0 and wants_stop(),
    )
    if processes.count == 1:
        reward = first_heads(reward, folder.path, resume=resume, keeps=config.ask.is_on)
    in_force = RewardInForce(asked_by(reward, person))
    algorithm = algorithm or algorithm_of(config)
    checkpoints = folder.checkpoints_of(run_id)
    trainer = Trainer(
        policy,
        in_force,
        prompts,
        config,
        algorithm=algorithm,
        checkpoints=checkpoints,
        facts={"held_out": prompts_digest(prompts_held_out), **loaded_facts(tables)},
        listener=listener,
        check_cancel=check_cancel,
        wants_stop=wants_stop,
        limit=limit,
        processes=processes,
    )
    config = trainer.config
    listener = listener if processes.is_writer else ignore
    _check_equal(processes.gather(trainer.trained_with))
    if resume and not follows_record:
        processes.from_writer(lambda: check_edits(folder.path, config, tables))
    if resume:
        trainer.resume()

    def write_record() -> tuple[Change, ...]:
        folder.check_in_place()
        before = before_resume.changes if before_resume else ()
        # What was changed after the checkpoint was trained by nobody.
        kept = tuple(change for change in before if change.iteration < trainer.iteration)
        record = Record(
            model=policy.name,
            sampler=name_of_sampler(algorithm.sampler),
            reward=reward.name,
            reward_fingerprint=dict(reward.fingerprint),
            train=examples_of(prompts),
            held_out=examples_of(prompts_held_out),
            changes=(*kept, *trainer.changes),
            id=run_id,
        )
        write_run(folder.path, config, tables, record)
        return record.changes

    changes = processes.from_writer(write_record)
    stops = Stops(
        folder=folder.path,
        config=config,
        policy=policy,
        reward=in_force,
        prompts=trainer.prompts,
        person=person,
        sampler=algorithm.sampler,
        limit=limit,
        check_cancel=check_cancel,
    )
    refit = stops.take_up(trainer.iteration, processes)
    held_out = HeldOut(
        policy=policy,
        reward=in_force.now,
        prompts=prompts_held_out,
        config=config,
        seeds=evaluation_seeds,
        sampler=algorithm.sampler,
        limit=limit,
        listener=listener,
        check_cancel=check_cancel,
        processes=processes,
        refit=refit,
    )

    def ask(why: str) -> bool:
        if why and stops.ask(trainer.iteration, why):
            held_out.judge_with(in_force.now, trainer.iteration)
        return bool(why)

    goes_back, every = REWARD_FELL in config.run.stop_on, config.evaluate_every
    sound: Checkpoint | None = None

    def watch(iterations: int) -> bool:
        """Ask and measure; whether training ends here."""
        nonlocal sound
        try:
            is_asked = ask(stops.reason(iterations, metrics.rows))
            if not (iterations and every and iterations % every == 0):
                return False
            alarm = held_out.tell(iterations, held_out.measure("during"))
            if alarm and config.ask.when_alarm and not (is_asked or goes_back):
                ask(f"alarm {alarm.name}")
        except StopWished:
            return True
        if not goes_back:
            return False
        if alarm is None:
            sound = trainer.state()
            return False
        if sound is None or not sound.iteration:
            raise AlarmStop(alarm)
        go_back(sound)
        return True

    def go_back(to: Checkpoint) -> None:
        log.warning("training ends with the weights of iteration %d", to.iteration)
        trainer.load(to)
        if processes.is_writer:
            checkpoints.drop_after(to.iteration)
        trainer.save()

    before = held_out.before
    if not held_out.refit:  # otherwise another judge gave the row of the base model
        held_out.tell(0, before)
    sound = trainer.state() if goes_back and trainer.iteration else None
    trainer.train(watch)
    after = held_out.measure("after")
    has_fallen = held_out.tell(trainer.iteration, after) is not None
    if has_fallen and sound and 0 < sound.iteration < trainer.iteration:
        go_back(sound)
        after = held_out.measure("after")
        held_out.tell(trainer.iteration, after)
    before = held_out.before

    def keep() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        folder.check_in_place()
        scores = {"before": before.to_json(), "after": after.to_json()}
        facts = {"noise_seed": EVALUATION_SEED, "iterations": trainer.iteration}
        body = json.dumps({**facts, **scores}, indent=1)
        make_way(folder.evaluation_file)
        write_whole(folder.evaluation_file, body)
        return metrics.rows, measurements.rows

    rows, measured = processes.from_writer(keep)
    listener(RunEnd(trainer.iteration, stopped=trainer.iteration < config.iterations))
    return Outcome(
        config=config,
        model=policy.name,
        sampler=name_of_sampler(algorithm.sampler),
        reward=reward.name,
        iterations=trainer.iteration,
        changes=changes,
        rows=rows,
        held_out=measured,
        before=before,
        after=after,
    )


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
