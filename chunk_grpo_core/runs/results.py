"""What a finished run leaves beside its numbers: the LoRA, plots, pictures before and after."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ..lora.files import diffusers_lora, save_lora
from ..measure.sampling import roll_out
from ..method.cancel import CheckCancel, never_cancel
from ..method.dynamics import DynamicsCurve, dynamics_curve
from ..method.noise import derive_seed
from ..method.policy import Policy, base_model, trained_adapter
from ..prompts.example import Prompt
from ..train.batch_limit import BatchLimit
from ..train.config import TrainConfig
from ..watch.derived import make_way
from ..watch.pictures import save_png
from ..watch.plots import plot_dynamics
from .folder import RunFolder
from .outcome import Outcome

__all__ = ["RunFiles", "measure_curve", "write_pictures", "write_results"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunFiles:
    """Paths of the files that a finished run has written."""

    lora: Path
    pictures: tuple[Path, ...]


def write_results(
    outcome: Outcome,
    policy: Policy,
    folder: RunFolder,
    prompts: Sequence[Prompt],
    check_cancel: CheckCancel = never_cancel,
) -> RunFiles:
    """Write the LoRA and the pictures of a finished run.

    Args:
        outcome: The run.
        policy: A diffusers model with the trained adapter.
        folder: The run's.
        prompts: What the curve of relative L1 is measured on.
        check_cancel: Raises to stop; the LoRA is written first.

    Raises:
        CannotWrite: The LoRA cannot be written. Pictures that cannot are named in a warning.
        FileNotFoundError: The folder was moved or deleted.
    """
    folder.check_in_place()
    config = outcome.config
    make_way(folder.lora_file)
    lora = save_lora(
        diffusers_lora(trained_adapter(policy).state_dict(), config.lora.file_alpha),
        folder.lora_file,
        outcome.lora_metadata(),
    )
    with base_model(policy):
        curve = measure_curve(policy, prompts, config, lambda fraction: check_cancel())
    dynamics = _saved(lambda: plot_dynamics(curve, config.plan), folder.plots / "dynamics.png")
    return RunFiles(lora, (*write_pictures(outcome, folder), *dynamics))


def write_pictures(outcome: Outcome, folder: RunFolder) -> tuple[Path, ...]:
    """Write the training curves and the pictures before and after into a run folder.

    Returns:
        Those that could be written; a warning names the others.

    Raises:
        ImportError: matplotlib is not installed; the pictures before and after are written.
    """
    plots = folder.plots
    before_after = _saved(outcome.before_after_grid, plots / "before_after.png")
    if not outcome.rows:  # metrics.jsonl was lost, and nothing was left to train
        return before_after
    return (*_saved(outcome.plot, plots / "training.png"), *before_after)


def _saved(draw: Callable[[], Tensor], file: Path) -> tuple[Path, ...]:
    """A picture in a file, or nothing where that cannot be written: the LoRA is what counts."""
    picture = draw()
    try:
        return (save_png(picture, file),)
    except OSError as error:
        log.warning("%s", error)
        return ()


def measure_curve(
    policy: Policy,
    prompts: Sequence[Prompt],
    config: TrainConfig,
    progress: Callable[[float], None] = lambda fraction: None,
) -> DynamicsCurve:
    """Roll prompts out with the sampler that trains and measure how much each step changes.

    Args:
        policy: Model; its adapter is used as it is.
        prompts: One group for each; a few are enough.
        config: Grid, rule, group size and seed; the plan is not looked at.
        progress: Called with the fraction done.
    """
    groups = roll_out(
        policy,
        prompts,
        config.grid,
        config.sde,
        group_size=config.group_size,
        seeds=[derive_seed(config.seed, "curve", index) for index in range(len(prompts))],
        limit=BatchLimit(size=config.batch_size),
        progress=progress,
    )
    return dynamics_curve(groups, policy.name)
