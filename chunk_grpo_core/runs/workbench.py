"""From a configuration file to the things it names, and through a run with them.

train     measure, train, measure again; a run folder that can be resumed
resume    the same folder, from its own copy of the configuration
load      model, reward and prompts for anything else (pictures, curves, measurements)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..configfile.reading import read_config_file
from ..configfile.run_config import RunConfig
from ..configfile.writing import write_config
from ..lora.files import continued_state, load_lora
from ..method.dynamics import DynamicsCurve
from ..method.policy import Policy, base_model
from ..method.reward import Reward
from ..models.diffusers_policy import DiffusersPolicy
from ..models.sharding import ShardedPolicy
from ..optional import import_early, require
from ..processes.collective import Processes, TorchProcesses
from ..prompts.example import Prompt
from ..prompts.files import PromptLine, read_prompt_file
from ..prompts.split import PromptSet, make_prompt_set
from ..prompts.wildcards import WildcardFolder
from ..rewards import load_reward
from ..rewards.combined import CombinedReward, WeightedReward
from ..train.batch_limit import BatchLimit
from ..train.checkpoint import RunFolder
from ..train.config import TrainConfig
from ..train.events import EvaluationProgress, Listener, broadcast, ignore
from ..watch.history import read_metrics
from ..watch.trackers import TRACKERS
from .experiment import Outcome, check_held_out, run_experiment
from .results import RunFiles, measure_curve, write_results

__all__ = [
    "CONFIG_COPY",
    "TrainedRun",
    "load_adapter",
    "load_policy",
    "load_prompts",
    "load_rewards",
    "resume",
    "train",
]

CONFIG_COPY = "run.toml"
"""A run folder's own configuration, with everything in it."""
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
    processes: Processes | None = None,
    shard: bool = False,
) -> TrainedRun:
    """Train as a configuration says.

    Args:
        config: From :func:`~chunk_grpo_core.configfile.reading.read_config_file`.
        folder: Run folder, new.
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

    def check() -> None:
        if run.config_file.exists():
            raise FileExistsError(
                f"{folder} already holds a run; resume it, or choose another folder"
            )

    def begin() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CONFIG_COPY).write_text(write_config(config), encoding="utf-8")

    processes.from_writer(check)
    parts = _prepare(config, run, listener, processes, shard)
    policy = _load(config, parts)
    settings = _settings(config, policy, parts)
    processes.from_writer(begin)
    return _run(parts, settings, policy, run, resume=False)


def resume(
    folder: Path,
    *,
    iterations: int | None = None,
    listener: Listener = ignore,
    processes: Processes | None = None,
    shard: bool = False,
) -> TrainedRun:
    """Go on with a run that was stopped or killed, or train a finished one for longer.

    Args:
        folder: Run folder.
        iterations: Iterations in all; those the run was started with when None.
        listener: See :func:`train`.
        processes: See :func:`train`; not necessarily as many as the run was started with.
        shard: See :func:`train`.

    Raises:
        FileNotFoundError: The folder holds no run of :func:`train`.
        ValueError: The run has done more iterations already, or a file that it needs is wrong now.
    """
    run, processes = RunFolder(folder), processes or Processes()

    def read() -> tuple[RunConfig, TrainConfig | None]:
        if not (folder / CONFIG_COPY).is_file():
            raise FileNotFoundError(f"{folder} holds no run of 'train': {CONFIG_COPY} is missing")
        config = read_config_file(folder / CONFIG_COPY)
        done = len(read_metrics(run.metrics_file))
        if iterations is not None and iterations < done:
            raise ValueError(f"iterations is {iterations}, but {folder} has done {done} already")
        # There is none if it was killed before the first measurement.
        return config, run.read_config() if run.config_file.exists() else None

    config, old = processes.from_writer(read)
    parts = _prepare(config, run, listener, processes, shard)
    policy = _load(config, parts)
    settings = old or _settings(config, policy, parts)
    if iterations is not None:
        settings = replace(settings, iterations=iterations)
    return _run(parts, settings, policy, run, resume=old is not None)


def load_prompts(config: RunConfig) -> PromptSet:
    """Read and split the prompts.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: A line is wrong, or none is left to train on.
    """
    table, family = config.prompts, config.model.family
    held_out = read_prompt_file(table.held_out_file) if table.held_out_file else []
    if table.file:
        lines = read_prompt_file(table.file)
    elif family.captions is None or table.text:
        lines = _lines(table.text, "prompts.text")
    else:
        captions = family.captions()
        lines = _lines(captions.train, f"captions of {family.title}")
        held_out = held_out or _lines(captions.held_out, f"held-out captions of {family.title}")
    folder = WildcardFolder(table.wildcards) if table.wildcards else None
    return make_prompt_set(lines, held_out, config.prompt_config, folder)


def load_rewards(config: RunConfig) -> Reward:
    """Load the rewards; several, or one with a weight, become a combination."""
    parts = [
        WeightedReward(reward=load_reward(entry.name, **entry.settings), weight=entry.weight)
        for entry in config.rewards
    ]
    if len(parts) == 1 and parts[0].weight == 1.0:
        return parts[0].reward
    return CombinedReward(parts)


def load_policy(
    config: RunConfig, prompts: Sequence[Prompt], *, keep_on_cpu: bool = False
) -> DiffusersPolicy[Any]:
    """Load the model with a fresh adapter, or with ``run.continue_from`` in it.

    Args:
        config: What to load.
        prompts: All prompts that it will be asked for.
        keep_on_cpu: See :class:`~chunk_grpo_core.models.family.Load`.
    """
    settings, model = config.settings, config.model
    policy = model.family.load(
        model.table, prompts, settings.lora, settings.seed, keep_on_cpu=keep_on_cpu
    )
    if config.run.continue_from:
        load_adapter(policy, Path(config.run.continue_from))
    return policy


def load_adapter(policy: DiffusersPolicy[Any], path: Path) -> None:
    """Put a LoRA file, of either layout, into the adapter of a model.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It belongs to another model, or has a higher rank than the adapter.
    """
    tensors, _ = load_lora(path)
    adapter = policy.adapter
    try:
        state = continued_state(tensors, adapter.state_dict(), adapter.config.scale)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    adapter.load_state_dict(state)


def _lines(texts: Sequence[str], where: str) -> list[PromptLine]:
    return [
        PromptLine(text=text, where=f"{where}, number {number}")
        for number, text in enumerate(texts, start=1)
    ]


@dataclass(frozen=True)
class _Parts:
    """All that a training needs beside the model."""

    prompts: PromptSet
    reward: Reward
    listener: Listener
    pictures: int
    processes: Processes
    shard: bool


def _prepare(
    config: RunConfig, folder: RunFolder, listener: Listener, processes: Processes, shard: bool
) -> _Parts:
    """Load what may fail before the model, which takes minutes; nothing is written."""
    require("matplotlib", "To draw the plots of a run")
    _check_processes(config, processes, shard)
    prompts = processes.from_writer(lambda: load_prompts(config))
    check_held_out(prompts.held_out)
    heard = ignore
    if processes.is_writer:
        trackers = [TRACKERS[name](folder.path) for name in config.run.log]
        heard = broadcast(*trackers, listener)
    return _Parts(prompts, load_rewards(config), heard, config.run.pictures, processes, shard)


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


def _load(config: RunConfig, parts: _Parts) -> Policy:
    """Load the model into every process, on its own device, or spread it over them."""
    processes, prompts = parts.processes, (*parts.prompts.train, *parts.prompts.held_out)
    config = _placed(config, processes)
    if processes.count > 1:  # here all import at the same time, in one_first one after the other
        import_early(*config.model.family.imports)
    policy = processes.one_first(lambda: load_policy(config, prompts, keep_on_cpu=parts.shard))
    if parts.shard and isinstance(processes, TorchProcesses):
        return ShardedPolicy(policy, processes, prompts[0])
    return policy


def _settings(config: RunConfig, policy: Policy, parts: _Parts) -> TrainConfig:
    """Settings of the training; measures the curve first if the plan is read off one."""
    if not config.plan.needs_curve:
        return config.train_config()

    def progress(fraction: float) -> None:
        parts.listener(EvaluationProgress("curve", fraction))

    def measure() -> DynamicsCurve:
        with base_model(policy):
            few = parts.prompts.train[:_CURVE_PROMPTS]
            return measure_curve(policy, few, config.settings, progress)

    return config.train_config(parts.processes.from_writer(measure))


def _run(
    parts: _Parts, settings: TrainConfig, policy: Policy, folder: RunFolder, *, resume: bool
) -> TrainedRun:
    # A call that one process of a sharded model tries again would be answered by no other.
    limit = BatchLimit(size=settings.batch_size, may_halve=not parts.shard)
    outcome = run_experiment(
        policy,
        parts.reward,
        parts.prompts.train,
        parts.prompts.held_out,
        settings,
        folder,
        resume=resume,
        evaluation_seeds=parts.pictures,
        listener=parts.listener,
        limit=limit,
        processes=parts.processes,
    )
    few = parts.prompts.train[:_CURVE_PROMPTS]
    files = parts.processes.from_writer(lambda: write_results(outcome, policy, folder, few))
    return TrainedRun(outcome, files, folder.path)
