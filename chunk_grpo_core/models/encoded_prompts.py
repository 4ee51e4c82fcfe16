"""Prompts as a model reads them, computed once and kept on disk.

Text encoders are larger than many cards. They are loaded only when a prompt is new, before the
transformer, and let go at once.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .tensor_cache import TensorCache, digest

__all__ = ["encoded_prompts", "file_facts"]

log = logging.getLogger(__name__)


def encoded_prompts(
    texts: Sequence[str],
    facts: str,
    cache: TensorCache,
    load_encoder: Callable[[], Callable[[str], Any]],
    device: torch.device,
) -> Callable[[str], Any]:
    """Encode all texts that the cache lacks, each once.

    Args:
        texts: All that will be asked for.
        facts: What the features depend on besides the text.
        cache: Where features are kept; what it has no room for stays in memory.
        load_encoder: Loads the encoders and returns text -> features: CPU tensors in a dict or
            tuple. It is called only if a text is new.
        device: Where the encoders compute, and where features are returned.

    Returns:
        Text -> features. It raises a ValueError for a text that was not among ``texts``.
    """
    keys = {text: digest([facts, text]) for text in texts}
    kept_in_memory: dict[str, Any] = {}
    new = [text for text, key in keys.items() if cache.load(key) is None]
    if new:
        log.info("encoding %d of %d prompts", len(new), len(keys))
        encode = load_encoder()
        for text in new:
            features = encode(text)
            if not cache.store(keys[text], features):
                kept_in_memory[text] = features
        del encode
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()

    def lookup(text: str) -> Any:
        if text not in keys:
            raise ValueError(f"the prompt {text!r} was not encoded when the model was loaded")
        features = kept_in_memory.get(text) or cache.load(keys[text])
        if features is None:
            raise FileNotFoundError(
                f"{cache.folder} has lost the features of a prompt; start again to make them anew"
            )
        return _to(features, device)

    return lookup


def file_facts(sources: Iterable[Path]) -> list[list[object]]:
    """Names, sizes and times of files, and of all files below folders."""
    files = (
        file
        for source in sources
        for file in (sorted(source.rglob("*")) if source.is_dir() else [source])
        if file.is_file()
    )
    return [[f.name, f.stat().st_size, f.stat().st_mtime_ns] for f in files]


def _to(features: Any, device: torch.device) -> Any:
    if isinstance(features, dict):
        return {name: _to(part, device) for name, part in features.items()}
    if isinstance(features, Tensor):
        return features.to(device)
    return tuple(_to(part, device) for part in features)
