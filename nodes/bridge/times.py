"""Whether a MODEL takes a time for each sample of a call, found out by trying.

ComfyUI's samplers give all samples of a call the same time, and some models read only the first.
Where times may differ, an update puts several steps into one call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .conditioning import Processed
from .memory import is_out_of_memory
from .session import OURS

__all__ = ["takes_mixed_times"]

_ELSE = (0.85, 0.4)
"""Tried where the run has not two levels of its own."""
_HARMLESS = {"transformer_options", "to_load_options", "disable_cfg1_optimization"}
_PATCHES = ("patches", "patches_replace", "callbacks")
_ROUNDING = {torch.float32: 1e-4, torch.float64: 1e-9}
_COARSE = 0.02
"""For types of fewer bits."""


def takes_mixed_times(
    velocity: Callable[[Tensor, float | Tensor], Tensor],
    shape: tuple[int, ...],
    device: torch.device,
    entries: Processed,
    options: Mapping[str, Any],
    dtype: torch.dtype,
    sigmas: Sequence[float],
) -> bool:
    """Compare a call with two times to two calls with one time each.

    The times are levels of the run: a model may look up there where a step leads to.

    Patches and conditioning may look at the time, too, at one that is not tried; with any of them
    the answer is no.

    Args:
        velocity: Of one prompt.
        shape: Of one latent.
        device: Where the model wants its input.
        entries: Conditioning of that prompt.
        options: ``model_options`` of the call.
        dtype: Of the products of the model.
        sigmas: The levels that the model is sampled with.
    """
    if _looks_at_times(entries, options):
        return False
    inner = [float(sigma) for sigma in sigmas if 0.0 < sigma < 1.0]
    times = (max(inner), min(inner)) if len(set(inner)) > 1 else _ELSE
    generator = torch.Generator().manual_seed(0)
    x_t = torch.randn(2, *shape, generator=generator).to(device)
    with torch.no_grad():
        try:
            early, late = (velocity(x_t, t) for t in times)
            mixed = velocity(x_t, torch.tensor(times, device=device))
        except Exception as error:
            if is_out_of_memory(error):  # then a call has one sample
                return False
            raise
    wanted = torch.stack([early[0], late[1]])
    error = float((mixed - wanted).norm())
    moved = min(float((early[i] - late[i]).norm()) for i in (0, 1))
    is_equal = error <= _ROUNDING.get(dtype, _COARSE) * float(wanted.norm())
    return is_equal and error <= 0.05 * moved


def _looks_at_times(entries: Processed, options: Mapping[str, Any]) -> bool:
    inner = options.get("transformer_options", {})
    wrappers = inner.get("wrappers", {}).values()
    if set(options) - _HARMLESS or any(_holds_any(inner.get(name)) for name in _PATCHES):
        return True
    if any(_holds_any(found) for kind in wrappers for key, found in kind.items() if key != OURS):
        return True
    conditions = [condition for group in entries.values() for condition in group]
    names = ("timestep_start", "timestep_end")
    return any(condition.get(name) is not None for condition in conditions for name in names)


def _holds_any(patches: Any) -> bool:
    """Whether there is anything in nested dictionaries and lists."""
    if isinstance(patches, dict):
        return any(_holds_any(value) for value in patches.values())
    return bool(patches)
