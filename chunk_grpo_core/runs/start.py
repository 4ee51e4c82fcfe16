"""A run of the command line, from a configuration to its LoRA.

train     measure, train, measure again; a run folder that can be resumed
resume    the same folder, from its own record
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..configfile.record import read_run
from ..configfile.run_config import RunConfig
from ..method.dynamics import DynamicsCurve
from ..method.policy import Policy, base_model
from ..method.reward import Reward
from ..models.sharding import ShardedPolicy
from ..optional import import_early, require
from ..processes.collective import Processes, TorchProcesses
from ..prompts.split import PromptSet
from ..train.batch_limit import BatchLimit
from ..train.events import EvaluationProgress, Listener, broadcast, ignore
from ..train.may_change import changes_since
from ..watch.trackers import TRACKERS
from .experiment import Outcome, check_held_out, loaded_facts, run_experiment
from .folder import RunFolder
from .load import load_policy, load_prompts, load_rewards
from .results import RunFiles, measure_curve, write_results

__all__ = ["TrainedRun", "resume", "train"]

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
    goes_on: bool = False,
    listener: Listener = ignore,
    processes: Processes | None = None,
    shard: bool = False,
) -> TrainedRun:
    """Train as a configuration says.

    Args:
        config: From :func:`~chunk_grpo_core.configfile.reading.read_config_file`.
        folder: Run folder; new, unless the run that is in it goes on.
        goes_on: Whether it does; :func:`resume` reads the configuration for that.
        listener: Hears all events, in the first process; what it raises stops the run.
        processes: Those that train together, each calling this; this one alone if None.
        shard: Spread the frozen weights over them (FSDP2).

    Raises:
        FileExistsError: The folder holds a run already.
        ValueError: Something in the configuration, or a file that it names, is wrong, or the
            processes cannot share the work.
        ImportError: A package is missing.
    """
    run, processes = RunFolder(folder), processes or Processes()
    if not goes_on:
        processes.from_writer(run.check_free)
    prepared = _prepare(config, run, listener, processes, shard)
    policy, settings = _load(config, prepared), config.settings
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
        resume=goes_on,
        evaluation_seeds=config.run.pictures,
        listener=prepared.listener,
        limit=limit,
        processes=processes,
        tables=config.tables(),
    )
    few = prepared.prompts.train[:_CURVE_PROMPTS]
    files = processes.from_writer(lambda: write_results(outcome, policy, run, few))
    return TrainedRun(outcome, files, run.path)


def resume(
    folder: Path,
    *,
    changes: Sequence[str] = (),
    listener: Listener = ignore,
    processes: Processes | None = None,
    shard: bool = False,
) -> TrainedRun:
    """Go on with a run that was stopped or killed, or train a finished one for longer.

    Args:
        folder: Run folder.
        changes: Settings to change, as ``KEY=VALUE``; see
            :data:`~chunk_grpo_core.train.may_change.MAY_CHANGE`.
        listener: See :func:`train`.
        processes: See :func:`train`; not necessarily as many as the run was started with.
        shard: See :func:`train`.

    Raises:
        FileNotFoundError: The folder holds no run.
        ValueError: A setting was changed that must stay, or a file that the run needs is wrong now.
    """
    run, processes = RunFolder(folder), processes or Processes()

    def read() -> RunConfig:
        config = read_run(folder, changes, resumes=True)
        state = run.checkpoints.newest_state()
        if state is None:  # nothing was trained: prompts may be other ones, too
            return replace(config, recorded=None)
        # Compared here, too, before minutes are spent on loading the model.
        now = {**config.settings.flat(), **loaded_facts(config.tables())}
        if config.needs_curve:
            del now["plan"]
        changes_since(state, now, says=f"{run.run_file} says")
        return config

    config = processes.from_writer(read)
    return train(config, folder, goes_on=True, listener=listener, processes=processes, shard=shard)


@dataclass(frozen=True)
class _Prepared:
    """All that a training needs beside the model."""

    prompts: PromptSet
    reward: Reward
    listener: Listener
    processes: Processes
    shard: bool


def _prepare(
    config: RunConfig, folder: RunFolder, listener: Listener, processes: Processes, shard: bool
) -> _Prepared:
    """Load what may fail before the model, which takes minutes; nothing is written."""
    require("matplotlib", "To draw the plots of a run")
    _check_processes(config, processes, shard)
    prompts = processes.from_writer(lambda: load_prompts(config))
    check_held_out(prompts.held_out)
    heard = ignore
    if processes.is_writer:
        trackers = [TRACKERS[name](folder.path) for name in config.run.log]
        heard = broadcast(*trackers, listener)
    return _Prepared(prompts, load_rewards(config), heard, processes, shard)


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

    def measure() -> DynamicsCurve:
        with base_model(policy):
            few = prepared.prompts.train[:_CURVE_PROMPTS]
            return measure_curve(policy, few, config.settings, progress)

    return prepared.processes.from_writer(measure)
