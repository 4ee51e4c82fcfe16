"""The weights of a part of a pipeline from one file, under the names of diffusers' class.

diffusers renames them. What it would not say is checked here: which weights the file lacks, which
have another shape, and which the model has no place for.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...optional import require
from ..kept_weights import to_type
from ..weight_file import ModelFile, check_types, read_header, read_tensors, weight_shapes

__all__ = ["check_complete", "check_places", "check_single_file", "single_file_state"]

logger = logging.getLogger(__name__)

_CHECKPOINT = "model.diffusion_model."
"""Before a transformer's names in whole checkpoints, and in some files of a transformer alone."""
_STRANGE = (RuntimeError, LookupError, TypeError, AttributeError)
"""What diffusers raises for names and shapes of another model."""


def check_single_file(kind: Any, source: Path, settings: Path, blocks: Sequence[str]) -> None:
    """Make sure that a file holds the weights of a model, by its header alone.

    Args:
        kind: Class in diffusers.
        source: The file.
        settings: Folder of the settings of this part.
        blocks: Names of the model's lists of blocks.

    Raises:
        ValueError: It does not.
    """
    file = read_header(source)
    check_types(file)
    empty = {n: torch.empty(shape, device="meta") for n, shape in _weights(file).items()}
    try:
        _fitted(kind, empty, settings, blocks)
    except NotImplementedError:  # it renames by what weights are; then reading them tells
        return


def single_file_state(
    kind: Any, source: Path, settings: Path, dtype: torch.dtype, blocks: Sequence[str]
) -> dict[str, Any]:
    """Read one file and rename its weights.

    Args:
        kind: See :func:`check_single_file`, as all others but ``dtype``.
        source: The file.
        settings: Folder of the settings.
        dtype: For fp8 files with scales, whose weights are multiplied by them.
        blocks: Names of the model's lists of blocks.

    Returns:
        As the class wants them: name -> tensor, none missing, none left over.

    Raises:
        ValueError: They are not the weights of this model.
    """
    file = read_header(source)
    tensors: Mapping[str, Any] = read_tensors(file, _prefix(file))
    if file.has_scales and not file.is_gguf:
        tensors = to_type(tensors, dtype)
    state, others = _fitted(kind, tensors, settings, blocks)
    if others:
        logger.warning("%d tensors of %s are left out, such as %s", len(others), source, others[0])
    return state


def _fitted(
    kind: Any, given: Mapping[str, Any], settings: Path, blocks: Sequence[str]
) -> tuple[dict[str, Any], list[str]]:
    """Weights as the class wants them, and names of those that it has no place for."""
    config = kind.load_config(settings, local_files_only=True)
    with require("accelerate", "To read a single file").init_empty_weights():
        empty = kind.from_config(config)
    wanted: dict[str, Tensor] = empty.state_dict()
    needed = {name for name, _ in empty.named_parameters()}
    state = given if wanted.keys() <= given.keys() else _renamed(kind, config, given, wanted.keys())
    check_complete(needed - state.keys())
    if apart := sorted(n for n in wanted.keys() & state.keys() if _differ(state[n], wanted[n])):
        first = apart[0]
        raise ValueError(
            f"{len(apart)} of its weights have another shape than those of this model, for example "
            f"{first}: {tuple(state[first].shape)}, not {tuple(wanted[first].shape)}; it is "
            "damaged, or belongs to another model"
        )
    others = sorted(state.keys() - wanted.keys())
    check_places(others, blocks)
    return {name: state.get(name, tensor) for name, tensor in wanted.items()}, others


def check_complete(missing: Iterable[str]) -> None:
    """Make sure that no weight is missing.

    Raises:
        ValueError: Some are.
    """
    if names := sorted(missing):
        raise ValueError(
            f"it lacks {len(names)} weights of this model, for example {names[0]}; it is damaged, "
            "or belongs to another model"
        )


def check_places(unknown: Iterable[str], blocks: Sequence[str]) -> None:
    """Make sure that no weight of a block is without a place in the model.

    What stands outside of the blocks (marks of other programs, parts that other models use) may be
    there.

    Raises:
        ValueError: The file belongs to a model with more, or with larger blocks.
    """
    inside = re.compile(rf"({'|'.join(blocks)})\.\d+\..+") if blocks else None
    if names := sorted(name for name in unknown if inside and inside.fullmatch(name)):
        raise ValueError(
            f"it has {len(names)} weights for which this model has no place, for example "
            f"{names[0]}; the pipeline that model.path names is of another model, or of another "
            "size"
        )


def _prefix(file: ModelFile) -> str:
    return _CHECKPOINT if any(name.startswith(_CHECKPOINT) for name in file.shapes) else ""


def _weights(file: ModelFile) -> dict[str, tuple[int, ...]]:
    return weight_shapes(file, _prefix(file))


def _renamed(
    kind: Any, config: Mapping[str, Any], state: Mapping[str, Any], wanted: Set[str]
) -> Mapping[str, Any]:
    classes = require("diffusers.loaders.single_file_model", "To read a single file")
    rename = classes.SINGLE_FILE_LOADABLE_CLASSES[kind.__name__]["checkpoint_mapping_fn"]
    try:
        return rename(config=config, checkpoint=dict(state))
    except KeyError as error:
        raise ValueError(
            f"it lacks {error.args[0]}; it is damaged, or belongs to another model"
        ) from error
    except NotImplementedError:
        raise
    except _STRANGE as error:
        lacking = wanted - state.keys()
        if 2 * len(lacking) < len(wanted):
            check_complete(lacking)  # it has diffusers' names already
        raise ValueError(f"its weights have names or shapes of another model ({error})") from error


def _differ(given: Any, wanted: Tensor) -> bool:
    """Whether shapes differ; those of GGUF's weights say how these are packed."""
    return not hasattr(given, "quant_type") and given.shape != wanted.shape
