"""Encode prompts, each once: what was encoded before comes from a cache on disk.

A cached entry must belong to this very text encoder, LoRAs and all (:mod:`.text_encoder`), and to
the prompt's tokens: they hold the vectors of textual inversions, which the text only names. When
all prompts are cached, the encoder neither runs nor moves to the GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import comfy.model_management as memory

from ...chunk_grpo_core.models.tensor_cache import TensorCache, digest
from .conditioning import Conditioning
from .host import check_interrupt, output_folder, progress_bar, show_progress
from .text_encoder import fingerprint

__all__ = ["Encoded", "conditioning_cache", "encode_prompts"]


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """Conditioning of all prompts."""

    conditioning: dict[str, Conditioning]
    cached: int
    """How many came from the disk."""


def conditioning_cache(gib: float) -> TensorCache | None:
    """The cache in ``output/chunk_grpo/.conditioning``; None for 0 GiB.

    ComfyUI empties its temp folder at every start, and its user folder is the one that people
    back up. No run can have this name.
    """
    return TensorCache(output_folder() / ".conditioning", int(gib * 2**30)) if gib else None


def encode_prompts(clip: Any, prompts: Sequence[str], cache: TensorCache | None) -> Encoded:
    """Encode or read prompts; what is done when the user cancels stays in the cache.

    Conditioning with hooks or other objects is never cached.

    Args:
        clip: A comfy.sd.CLIP.
        prompts: All different.
        cache: None encodes everything.

    Raises:
        InterruptProcessingException: The user pressed Cancel.
    """
    bar = progress_bar(len(prompts))
    identity = fingerprint(clip) if cache else None
    conditioning, cached = {}, 0
    for number, prompt in enumerate(prompts, start=1):
        check_interrupt()
        tokens = clip.tokenize(prompt)
        key = _digest((identity, tokens)) if identity else None
        encoded = cache.load(key, memory.intermediate_device()) if cache and key else None
        if encoded is None:
            encoded = clip.encode_from_tokens_scheduled(tokens)
            if cache and key:
                with suppress(TypeError):  # an object in it; encode it again next time
                    cache.store(key, encoded)
        else:
            cached += 1
        conditioning[prompt] = encoded
        show_progress(bar, number)
    return Encoded(conditioning=conditioning, cached=cached)


def _digest(tree: Any) -> str | None:
    try:
        return digest(tree)
    except TypeError:
        return None
