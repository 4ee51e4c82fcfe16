"""What ComfyUI knows about memory, for the core's ``BatchLimit``."""

from __future__ import annotations

import comfy.model_management as memory
import torch

from ...chunk_grpo_core.train.batch_limit import BatchLimit
from .host import show_text

__all__ = ["batch_limit", "is_out_of_memory"]

_ADVICE = (
    "use a smaller latent, a lower rank or fewer lora_targets, turn on activation_offloading in "
    "GRPO Settings (behind GRPO Preset it replaces the preset's values: write them into it, with "
    "batch_size 1), or let ComfyUI keep more of the model in system memory: start it with "
    "--lowvram, or with --reserve-vram and some GiB"
)


def is_out_of_memory(error: Exception) -> bool:
    """Whether a device ran out of memory, by torch's word or by what ComfyUI knows of it."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    out_of_memory = memory.OOM_EXCEPTION
    if out_of_memory is Exception:  # ComfyUI's stand-in where torch has no such error
        return False
    newer = getattr(memory, "is_oom", None)
    return newer(error) if newer else isinstance(error, out_of_memory)


def batch_limit(size: int | None) -> BatchLimit:
    """A limit that empties ComfyUI's caches, and tells the user on the running node."""
    return BatchLimit(
        size=size,
        is_out_of_memory=is_out_of_memory,
        empty_cache=memory.soft_empty_cache,
        on_halved=lambda before, after: show_text(
            f"Out of memory with {before} pictures at once; going on with {after}. Same noise, "
            f"same result up to rounding. Set batch_size {after} to begin there."
        ),
        advice=_ADVICE,
    )
