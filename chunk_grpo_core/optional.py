"""The one door to packages that are not needed to import this library."""

from __future__ import annotations

import contextlib
import importlib
from types import ModuleType

__all__ = ["import_early", "require"]

#: Importable module -> the extra of this project that brings it.
_EXTRAS = {
    "diffusers": "train",
    "einops": "train",
    "peft": "train",
    "transformers": "train",
    "tokenizers": "train",
    "bitsandbytes": "low-memory",
    "matplotlib": "plots",
    "typer": "cli",
    "rich": "cli",
    "onnxruntime": "ocr",
    "rapidocr": "ocr",
    "tomli": "cli",
    "yaml": "cli",
    "gguf": "low-memory",
    "accelerate": "low-memory",
    "tensorboard": "tracking",
    "wandb": "tracking",
    "aiohttp": "remote",
    "yarl": "remote",
}


def require(module: str, purpose: str) -> ModuleType:
    """Import an optional package or say how to install it.

    Args:
        module: Importable name, for example ``"diffusers"`` or ``"peft.tuners.lora"``.
        purpose: What it is needed for, completing "... is needed".

    Raises:
        ImportError: The package is absent; the message holds the pip line.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        top = module.partition(".")[0]
        if error.name is None or error.name.partition(".")[0] != top:
            raise
        extra = _EXTRAS.get(top)
        line = f'pip install "chunk-grpo-core[{extra}]"' if extra else f"pip install {top}"
        message = f"{purpose}, the package {top!r} is needed, and it is not installed. Run: {line}"
        raise ImportError(message, name=top) from error


def import_early(*names: str) -> None:
    """Import parts of large packages before they are needed, which takes seconds each.

    What is missing or broken is left to where it is needed, which says so.

    Args:
        names: Module and attribute, for example ``"diffusers.FluxTransformer2DModel"``.
    """
    for name in names:
        module, _, attribute = name.rpartition(".")
        with contextlib.suppress(ImportError, AttributeError, RuntimeError):
            getattr(importlib.import_module(module), attribute)
