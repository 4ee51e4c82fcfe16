"""Know a text encoder without running it, or moving it to a GPU.

ComfyUI's CLIP does not say which file it came from, its patches have random ids, and hashing all
weights would take as long as encoding. So its weights are known by samples of their bytes: another
training, LoRA or type changes nearly all of them. Embedding tables are read whole, because an edit
may concern a few words. Patches count as they are, not as they change the weights, so that it makes
no difference whether ComfyUI has them merged at the moment.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import torch
from comfy.weight_adapter import WeightAdapterBase
from comfyui_version import __version__ as comfyui_version
from torch import Tensor, nn

from ...chunk_grpo_core.models.tensor_cache import digest
from ...chunk_grpo_core.version import __version__

__all__ = ["fingerprint"]

log = logging.getLogger(__name__)

_WHOLE = 2**20
"""Weights of up to so many bytes are read whole."""
_PLACES, _LENGTH = 16, 2**12
"""Larger ones at so many places, so many bytes each."""

_CODE = ("injections", "wrappers", "hook_patches", "forced_hooks", "weight_wrapper_patches")
"""Attributes of a patcher that change what the encoder computes in ways nobody can read."""


def fingerprint(clip: Any) -> str | None:
    """A hash that differs whenever the text encoder does; None when that cannot be told.

    Args:
        clip: A comfy.sd.CLIP.
    """
    try:
        return digest(_facts(clip))
    except (TypeError, NotImplementedError) as error:  # some object; weights that are not here
        log.info("this text encoder cannot be told from others and is not cached: %s", error)
        return None


def _facts(clip: Any) -> Any:
    patcher = clip.patcher
    code = [name for name in _CODE if _is_used(getattr(patcher, name, None))]
    if clip.apply_hooks_to_conds is not None or code:
        raise TypeError(f"it has {', '.join(code) or 'hooks'}")
    kind = type(patcher.model)
    options = (clip.layer_idx, clip.use_clip_schedule, patcher.load_device.type)
    return [
        (__version__, comfyui_version, kind.__module__, kind.__qualname__),
        options,
        _plain(patcher.model_options),
        _plain(patcher.object_patches),
        _plain(patcher.patches),
        list(_weights(patcher)),
    ]


def _is_used(value: Any) -> bool:
    return any(value.values()) if isinstance(value, dict) else bool(value)


def _weights(patcher: Any) -> Iterator[tuple[str, str, list[int], list[Tensor]]]:
    """Name, kind, shape and sampled bytes of every weight, as it is without patches."""
    model = patcher.model
    tables = {
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding)
    }
    for name, weight in (*model.named_parameters(), *model.named_buffers()):
        weight = patcher.backup[name].weight if name in patcher.backup else weight
        kind = f"{type(weight.data).__name__} {weight.dtype}"
        memory = [_bytes(part) for part in _parts(weight)]
        if name not in tables:
            memory = [_sample(part) for part in memory]
        yield name, kind, list(weight.shape), memory


def _parts(tensor: Tensor) -> list[Tensor]:
    """The plain tensors that a tensor consists of; one, unless it is quantised."""
    if not hasattr(tensor, "__tensor_flatten__"):
        return [tensor.as_subclass(Tensor).detach()]
    names, _ = tensor.__tensor_flatten__()
    return [part for name in names for part in _parts(getattr(tensor, name))]


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def _sample(memory: Tensor) -> Tensor:
    if len(memory) <= _WHOLE:
        return memory
    last = len(memory) - _LENGTH
    starts = [place * last // (_PLACES - 1) for place in range(_PLACES)]
    return torch.cat([memory[start : start + _LENGTH] for start in starts])


def _plain(value: Any) -> Any:
    """Turn what patches and options consist of into what can be hashed; the rest stays."""
    if isinstance(value, WeightAdapterBase):
        return [type(value).__name__, _plain(value.weights)]
    if isinstance(value, (torch.dtype, torch.device)):
        return str(value)
    if isinstance(value, Tensor):
        return [str(value.dtype), *_parts(value)]
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
