"""Read the transformer and the VAE of a pipeline, from folders or from single files.

diffusers reads them, but for two things: it takes no notice of the scales of fp8 files, so that
their weights would be wrong without a word, and it has no layers in 8 bits that can be trained
through without a copy in 16.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ...optional import require
from ...settings.declared import shortened
from ..kept_weights import WEIGHTS, bitsandbytes_config, keep_in_fp8
from ..weight_file import read_header
from .single_file import check_complete, check_places, check_single_file, single_file_state

__all__ = ["check_source", "naming", "read_transformer", "read_vae"]

_UNREADABLE = (OSError, ValueError, RuntimeError, LookupError, TypeError, AttributeError)
"""What diffusers raises for files that are not what they are given for."""
_MODULATION = re.compile(r"norm|adaLN|_mod\b|modulation")
"""In names of linear layers that shift and scale."""


def check_source(
    kind: Any,
    source: Path,
    part: str,
    folder: Path,
    weights: str = "bf16",
    blocks: Sequence[str] = (),
) -> None:
    """Look at the header of a single file, or at the settings in a folder; nothing else is read.

    Args:
        kind: Class in diffusers.
        source: Folder or file.
        part: ``transformer`` or ``vae``.
        folder: The pipeline, whose settings a file needs.
        weights: How its weights are to be kept.
        blocks: Names of the model's lists of blocks.

    Raises:
        ValueError: It cannot be read, or not be kept like this.
        ImportError: A package is missing; the message says how to install it.
    """
    is_gguf = source.suffix.lower() == ".gguf" and not source.is_dir()
    if is_gguf != (weights == "gguf"):
        raise ValueError(
            f"model.weights is {weights!r}; 'gguf' is for .gguf files alone, and goes with every "
            f"one of them; model.{part} is {source}"
        )
    if source.is_dir():
        _check_class(kind, source, part)
        return
    classes: Mapping[str, object] = require(
        "diffusers.loaders.single_file_model", "To read a file"
    ).SINGLE_FILE_LOADABLE_CLASSES
    if kind.__name__ not in classes:
        raise ValueError(
            f"model.{part} is the file {source}, but diffusers reads a {kind.__name__} from "
            f"folders alone; leave model.{part} out, and the pipeline's own is taken"
        )
    # With accelerate the model is made empty, so that a weight that the file lacks can be told.
    require("accelerate", f"To read model.{part} from a single file")
    with naming(part, source):
        check_single_file(kind, source, folder / part, blocks)


def _check_class(kind: Any, folder: Path, part: str) -> None:
    """Make sure that a folder holds what it is given for, as far as its settings say."""
    with naming(part, folder):
        found = kind.load_config(folder, local_files_only=True).get("_class_name", kind.__name__)
    if found != kind.__name__:
        raise ValueError(
            f"model.{part}: {folder} holds a {shortened(found)}, not a {kind.__name__}"
        )


def read_vae(kind: Any, source: Path, folder: Path, dtype: torch.dtype) -> Any:
    """Read a VAE, of the pipeline in ``folder``.

    Raises:
        ValueError: It cannot be read.
    """
    return _read(kind, source, "vae", folder, {"torch_dtype": dtype}, ())


def read_transformer(
    kind: Any, source: Path, folder: Path, weights: str, blocks: Sequence[str]
) -> Any:
    """Read a transformer on the CPU (int8 and nf4: on the GPU).

    Args:
        kind: Class in diffusers.
        source: Folder or file.
        folder: The pipeline, whose settings a file needs.
        weights: A key of :data:`~..kept_weights.WEIGHTS`.
        blocks: Names of its lists of blocks: ``fp8`` is for attention and MLPs in there, and for
            modulations of files that have them so.

    Raises:
        ValueError: It cannot be read.
    """
    options: dict[str, Any] = {"torch_dtype": WEIGHTS[weights]}
    quantised = bitsandbytes_config(weights)
    if weights == "gguf":
        kinds = require("diffusers", "To read a GGUF file")
        quantised = kinds.GGUFQuantizationConfig(compute_dtype=WEIGHTS[weights])
    if quantised is not None:
        options["quantization_config"] = quantised
    model = _read(kind, source, "transformer", folder, options, blocks)
    if weights == "fp8":
        inside, every = re.compile(rf"({'|'.join(blocks)})\.\d+\..+"), _has_all_in_fp8(source)
        keep_in_fp8(
            model,
            lambda name: bool(inside.fullmatch(name)) and (every or not _MODULATION.search(name)),
        )
    return model


def _has_all_in_fp8(source: Path) -> bool:
    """Whether it is a file in which modulations are in 8 bits, too."""
    if source.is_dir():
        return False
    dtypes = read_header(source).dtypes.items()
    return any(kind.startswith("F8") and _MODULATION.search(name) for name, kind in dtypes)


def _read(
    kind: Any,
    source: Path,
    part: str,
    folder: Path,
    options: dict[str, Any],
    blocks: Sequence[str],
) -> Any:
    """Read a part from its folder, or from one file with the help of the pipeline's settings."""
    options = {**options, "local_files_only": True}
    with naming(part, source):
        if source.is_dir():
            model, report = kind.from_pretrained(source, output_loading_info=True, **options)
            check_complete(report["missing_keys"])
            check_places(report["unexpected_keys"], blocks)
            return model
        given = single_file_state(kind, source, folder / part, options["torch_dtype"], blocks)
        return kind.from_single_file(given, config=str(folder / part), **options)


@contextmanager
def naming(part: str, source: Path) -> Iterator[None]:
    """Inside, what diffusers says of unreadable files names the key and the file."""
    try:
        yield
    except _UNREADABLE as error:
        reason = re.sub(r"\s+", " ", str(error)) or type(error).__name__
        if not reason.startswith(str(source)):
            reason = f"{source} cannot be read as what it is given for: {reason}"
        raise ValueError(f"model.{part}: {reason:.600}") from error
