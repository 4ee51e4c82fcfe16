"""A run of the command line, from a configuration to its LoRA.

train     measure, train, measure again; a run folder that can be resumed
resume    the same folder, from its own record
check     try a little of it, and say what the whole will take; nothing is kept
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from ..algorithms import algorithm_of
from ..algorithms.preference import Preference
from ..configfile.run_config import RunConfig
from ..method.cancel import CheckCancel, never_cancel
from ..method.dynamics import DynamicsCurve
from ..method.policy import Policy, base_model
from ..method.reward import Reward
from ..models.sharding import ShardedPolicy
from ..optional import import_early, require
from ..processes.collective import Processes, TorchProcesses
from ..prompts.split import PromptSet
from ..rewards.taste.picks import Taste
from ..train.batch_limit import BatchLimit
from ..train.config import TrainConfig
from ..train.events import EvaluationProgress, Listener, broadcast, ignore
from ..watch.trackers import TRACKERS
from .asking import GoesOn, check_asking, never_goes_on
from .check import check_training
from .experiment import run_experiment
from .folder import RunFolder, locked_run
from .forecast import Check
from .held_out import check_held_out, check_needless
from .load import load_policy, load_prompts, load_rewards
from .outcome import Outcome
from .preferences import judged_latents
from .recorded import RecordedRun, open_to_resume
from .results import RunFiles, measure_curve, write_results
from .unbegun import dropped_if_unbegun

__all__ = ["TrainedRun", "check", "resume", "train"]

_CURVE_PROMPTS = 4


@dataclass(frozen=True)
class TrainedRun:
    """A finished run."""

    outcome: Outcome
    files: RunFiles
    folder: Path


def train(
    config: RunConfig,
    folder: Path,
    *,
    listener: Listener = ignore,
    check_cancel: CheckCancel = never_cancel,
    goes_on: GoesOn = never_goes_on,
    processes: Processes | None = None,
    shard: bool = False,
) -> TrainedRun:
    """Train as a configuration says.

    Args:
        config: From :func:`~chunk_grpo_core.configfile.reading.read_config_file`.
        folder: Run folder, which must be new; the record names it as ``run.folder``.
        listener: Hears all events, in the first process; what it raises stops the run.
        check_cancel: Raises to stop; called after every micro-step, and between what is loaded.
        goes_on: See :func:`~.experiment.run_experiment`.
        processes: Those that train together, each calling this; this one alone if None.
        shard: Spread the frozen weights over them (FSDP2).

    Raises:
        FileExistsError: The folder holds a run already, or somebody trains there.
        CannotWrite: The disk is full, or something else is in the way.
        ValueError: Something in the configuration, or a file that it names, is wrong, or the
            processes cannot share the work.
        ImportError: A package is missing.
    """
    processes = processes or Processes()
    config.settings.ask.check_used()
    with locked_run(RunFolder(folder), processes, goes_on=False) as run, ExitStack() as stack:
        if processes.is_writer:
            stack.enter_context(dropped_if_unbegun(run))
        place = processes.from_writer(lambda: str(run.path.absolute()))
        config = replace(config, run=replace(config.run, folder=place))
        return _train(config, run, None, listener, check_cancel, goes_on, processes, shard)


def resume(
    folder: Path,
    *,
    changes: Sequence[str] = (),
    listener: Listener = ignore,
    check_cancel: CheckCancel = never_cancel,
    goes_on: GoesOn = never_goes_on,
    processes: Processes | None = None,
    shard: bool = False,
) -> TrainedRun:
    """Go on with a run that was stopped or killed, or train a finished one for longer.

    Args:
        folder: Run folder.
        changes: Settings to change, as ``KEY=VALUE``; see
            :data:`~chunk_grpo_core.train.may_change.MAY_CHANGE`.
        listener: See :func:`train`.
        check_cancel: See :func:`train`.
        goes_on: See :func:`train`.
        processes: See :func:`train`; not necessarily as many as the run was started with.
        shard: See :func:`train`.

    Raises:
        FileNotFoundError: The folder holds no run.
        FileExistsError: Somebody trains there.
        CannotWrite: See :func:`train`.
        ValueError: A setting was changed that must stay, or a file that the run needs is wrong now.
    """
    processes = processes or Processes()
    with locked_run(RunFolder(folder), processes, goes_on=True) as run:
        recorded = processes.from_writer(lambda: open_to_resume(run, changes))
        return _train(
            recorded.config, run, recorded, listener, check_cancel, goes_on, processes, shard
        )


def check(
    config: RunConfig,
    *,
    listener: Listener = ignore,
    check_cancel: CheckCancel = never_cancel,
) -> Check:
    """Try a little of a training, in this process alone; nothing is written.

    Raises:
        ValueError: See :func:`train` and :func:`~.check.check_training`.
        NothingScored: The reward scores no picture.
        SelfTestFailed: The training would stop before its first update.
        ImportError: A package is missing.
    """
    prepared = _prepare(config, None, listener, check_cancel, Processes(), shard=False)
    policy, settings = _load(config, prepared), config.settings
    if config.needs_curve:
        settings = config.train_config(_curve(config, policy, prepared))
    return check_training(
        policy,
        prepared.reward,
        prepared.prompts.train,
        prepared.prompts.held_out,
        settings,
        algorithm=lambda small: _algorithm(small, policy, prepared) or algorithm_of(small),
        evaluation_seeds=config.run.pictures,
        listener=listener,
        check_cancel=check_cancel,
        limit=BatchLimit(size=settings.batch_size),
    )


def _train(
    config: RunConfig,
    run: RunFolder,
    recorded: RecordedRun | None,
    listener: Listener,
    check_cancel: CheckCancel,
    goes_on: GoesOn,
    processes: Processes,
    shard: bool,
) -> TrainedRun:
    """Train a new run, or the one whose record this is, in a folder that is locked."""
    prepared = _prepare(config, run, listener, check_cancel, processes, shard)
    if recorded:  # compared here, too, before minutes are spent on loading the model
        processes.from_writer(lambda: recorded.check_reward(prepared.reward))
    policy, settings = _load(config, prepared), config.settings
    check_cancel()
    if config.needs_curve:
        settings = config.train_config(_curve(config, policy, prepared))
    # A call that one process of a sharded model tries again would be answered by no other.
    limit = BatchLimit(size=settings.batch_size, may_halve=not shard)
    outcome = run_experiment(
        policy,
        prepared.reward,
        prepared.prompts.train,
        prepared.prompts.held_out,
        settings,
        run,
        resume=recorded is not None,
        algorithm=_algorithm(settings, policy, prepared),
        evaluation_seeds=config.run.pictures,
        listener=prepared.listener,
        check_cancel=check_cancel,
        goes_on=goes_on,
        limit=limit,
        processes=processes,
        tables=config.tables(),
        follows_record=True,
    )
    few = prepared.prompts.train[:_CURVE_PROMPTS]
    files = processes.from_writer(lambda: write_results(outcome, policy, run, few, check_cancel))
    return TrainedRun(outcome, files, run.path)


def _algorithm(settings: TrainConfig, policy: Policy, prepared: _Prepared) -> Preference | None:
    """The algorithm of settings that train on pictures that are there; None for all others."""
    if settings.algorithm != "preference":
        return None
    taste, judged = Taste(settings.preference.picks), prepared.prompts.train
    return Preference(
        settings,
        prepared.processes.from_writer(
            lambda: judged_latents(taste, policy, judged, prepared.check_cancel)
        ),
    )


@dataclass(frozen=True)
class _Prepared:
    """All that a training needs beside the model."""

    prompts: PromptSet
    reward: Reward
    listener: Listener
    check_cancel: CheckCancel
    processes: Processes
    shard: bool


def _prepare(
    config: RunConfig,
    folder: RunFolder | None,
    listener: Listener,
    check_cancel: CheckCancel,
    processes: Processes,
    shard: bool,
) -> _Prepared:
    """Load what may fail before the model, which takes minutes; nothing is written.

    Without a folder no tracker listens.
    """
    require("matplotlib", "To draw the plots of a run")
    _check_processes(config, processes, shard)
    prompts = processes.from_writer(lambda: load_prompts(config))
    check_held_out(prompts.held_out)
    heard = ignore
    if processes.is_writer:
        trackers = [TRACKERS[name](folder.path) for name in config.run.log if folder]
        heard = broadcast(*trackers, listener)
    reward = load_rewards(config)
    check_needless(reward, config.settings)
    check_asking(reward, config.settings, processes)
    check_cancel()
    return _Prepared(prompts, reward, heard, check_cancel, processes, shard)


def _check_processes(config: RunConfig, processes: Processes, shard: bool) -> None:
    """Make sure that the processes can do what they are asked for.

    Raises:
        ValueError: They cannot.
    """
    sizes = config.settings
    processes.shares(sizes.prompts_per_iteration, sizes.group_size)
    _placed(config, processes)
    if shard and processes.count == 1:
        raise ValueError("--shard needs several processes; start them with torchrun or accelerate")
    if shard:
        config.model.table.check_shardable()


def _placed(config: RunConfig, processes: Processes) -> RunConfig:
    """The configuration for this one of the processes.

    Raises:
        ValueError: It asks for another device than this process has.
    """
    if processes.device is None:
        return config
    table = config.model.table.for_process(processes.device)
    return replace(config, model=replace(config.model, table=table))


def _load(config: RunConfig, prepared: _Prepared) -> Policy:
    """Load the model into every process, on its own device, or spread it over them."""
    processes, prompts = prepared.processes, (*prepared.prompts.train, *prepared.prompts.held_out)
    config = _placed(config, processes)
    if processes.count > 1:  # here all import at the same time, in one_first one after the other
        import_early(*config.model.family.imports)
    policy = processes.one_first(lambda: load_policy(config, prompts, keep_on_cpu=prepared.shard))
    if prepared.shard and isinstance(processes, TorchProcesses):
        return ShardedPolicy(policy, processes, prompts[0])
    return policy


def _curve(config: RunConfig, policy: Policy, prepared: _Prepared) -> DynamicsCurve:
    """Measure the curve that the plan is read off, in the first process."""

    def progress(fraction: float) -> None:
        prepared.listener(EvaluationProgress("curve", fraction))
        prepared.check_cancel()

    def measure() -> DynamicsCurve:
        with base_model(policy):
            few = prepared.prompts.train[:_CURVE_PROMPTS]
            return measure_curve(policy, few, config.settings, progress)

    return prepared.processes.from_writer(measure)
