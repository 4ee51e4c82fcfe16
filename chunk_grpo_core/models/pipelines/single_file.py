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
from ..weight_file import read_header, read_tensors

__all__ = ["check_complete", "check_places", "single_file_state"]

logger = logging.getLogger(__name__)

_CHECKPOINT = "model.diffusion_model."
"""Before a transformer's names in whole checkpoints, and in some files of a transformer alone."""
_STRANGE = (RuntimeError, LookupError, TypeError, AttributeError)
"""What diffusers raises for names and shapes of another model."""


def single_file_state(
    kind: Any, source: Path, settings: Path, dtype: torch.dtype, blocks: Sequence[str]
) -> dict[str, Any]:
    """Read one file and rename its weights.

    Args:
        kind: Class in diffusers.
        source: The file.
        settings: Folder of the settings of this part.
        dtype: For fp8 files with scales, whose weights are multiplied by them.
        blocks: Names of the model's lists of blocks.

    Returns:
        As the class wants them: name -> tensor, none missing, none left over.

    Raises:
        ValueError: They are not the weights of this model.
    """
    config = kind.load_config(settings, local_files_only=True)
    with require("accelerate", "To read a single file").init_empty_weights():
        empty = kind.from_config(config)
    wanted: dict[str, Tensor] = empty.state_dict()
    needed = {name for name, _ in empty.named_parameters()}
    state = _stored(source, dtype)
    if not wanted.keys() <= state.keys():
        state = _renamed(kind, config, state, wanted.keys())
    check_complete(needed - state.keys())
    if apart := sorted(n for n in wanted.keys() & state.keys() if _differ(state[n], wanted[n])):
        first = apart[0]
        raise ValueError(
            f"{len(apart)} of its weights have another shape than those of this model, for example "
            f"{first}: {tuple(state[first].shape)}, not {tuple(wanted[first].shape)}; it is "
            "damaged, or belongs to another model"
        )
    check_places(state.keys() - wanted.keys(), blocks)
    if others := sorted(state.keys() - wanted.keys()):
        logger.warning("%d tensors of %s are left out, such as %s", len(others), source, others[0])
    return {name: state.get(name, tensor) for name, tensor in wanted.items()}


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


def _stored(source: Path, dtype: torch.dtype) -> Mapping[str, Any]:
    file = read_header(source)
    prefix = _CHECKPOINT if any(name.startswith(_CHECKPOINT) for name in file.shapes) else ""
    tensors = read_tensors(file, prefix)
    return to_type(tensors, dtype) if file.has_scales and not file.is_gguf else tensors


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
    except _STRANGE as error:
        lacking = wanted - state.keys()
        if 2 * len(lacking) < len(wanted):
            check_complete(lacking)  # it has diffusers' names already
        raise ValueError(f"its weights have names or shapes of another model ({error})") from error


def _differ(given: Any, wanted: Tensor) -> bool:
    """Whether shapes differ; those of GGUF's weights say how these are packed."""
    return not hasattr(given, "quant_type") and given.shape != wanted.shape
