"""The noise levels that a pipeline samples with, from its own scheduler."""

from __future__ import annotations

from typing import Any

from ...method.schedule import TimeGrid
from ...optional import require
from ...settings.declared import shortened
from .entry import PipelineEntry
from .model import PipelineModel

__all__ = ["pipeline_grid", "token_grid"]

_SCHEDULER = "FlowMatchEulerDiscreteScheduler"


def token_grid(entry: PipelineEntry, model: PipelineModel) -> tuple[int, int]:
    """Rows and columns of image tokens.

    Raises:
        ValueError: The pipeline is of another class, its VAE's settings are damaged, or the size of
            the pictures does not suit the VAE.
    """
    if model.settings_of("") is not None:
        model.check_pipeline(entry.pipeline)
    vae = model.settings_of("vae")
    try:
        side = (entry.pixels(vae) if vae else entry.published_pixels) * entry.form.patch
    except (LookupError, TypeError) as error:
        raise ValueError(
            f"model.path: the settings of the pipeline's VAE (vae/config.json) are damaged "
            f"({type(error).__name__}: {error})"
        ) from error
    for name in ("width", "height"):
        if getattr(model, name) % (side * entry.side):
            raise ValueError(
                f"model.{name} is {getattr(model, name)}; with this model it must be a multiple "
                f"of {side * entry.side}"
            )
    return model.height // side, model.width // side


def pipeline_grid(entry: PipelineEntry, model: PipelineModel, steps: int) -> TimeGrid:
    """The levels of ``steps`` steps; those of the published model where the model is not here.

    Raises:
        ValueError: The scheduler is another one, or its levels are no grid.
        ImportError: diffusers is not installed.
    """
    kind = getattr(require("diffusers", "For the noise levels of a pipeline"), _SCHEDULER)
    index: dict[str, Any] = model.settings_of("") or {}
    settings = model.settings_of("scheduler") or dict(entry.scheduler)
    if settings.get("_class_name", _SCHEDULER) != _SCHEDULER:
        raise ValueError(
            f"the pipeline's scheduler is {shortened(settings['_class_name'])}; its levels are "
            f"known of {_SCHEDULER} alone: set grid.shift to a number, or give grid.sigmas"
        )
    if steps < 2:
        raise ValueError(f"steps is {steps}; it must be 2 or more (the last one is not trained)")
    scheduler = kind.from_config(settings)
    rows, columns = token_grid(entry, model)
    options = {"mu": entry.mu(rows * columns, steps, scheduler.config, index)}
    sigmas = _own_sigmas(index, steps) or entry.sigmas(steps)
    if sigmas is None:
        scheduler.set_timesteps(steps, **options)
    else:
        scheduler.set_timesteps(sigmas=sigmas, **options)
    return TimeGrid.of(scheduler.sigmas)


def _own_sigmas(index: dict[str, Any], steps: int) -> list[float] | None:
    """Levels that the makers of a checkpoint fixed (``sample_sigmas`` in model_index.json)."""
    fixed = index.get("sample_sigmas")
    if fixed is not None and len(fixed) != steps:
        raise ValueError(
            f"steps is {steps}, but this checkpoint was made for its own {len(fixed)} noise "
            f"levels; set grid.steps to {len(fixed)}, or give grid.sigmas"
        )
    return fixed
