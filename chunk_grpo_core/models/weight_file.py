"""A model file: its header (names, shapes and types, no weights), and its weights.

fp8 files keep a scale beside each layer, under one of two names; here all have one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..optional import require

__all__ = [
    "SCALE",
    "ModelFile",
    "Shapes",
    "below",
    "check_types",
    "read_header",
    "read_tensors",
    "weight_shapes",
]

Shapes = Mapping[str, tuple[int, ...]]

#: Ending of a layer's fp8 scale: its weight is ``weight * scale``.
SCALE = ".scale_weight"
_OTHER_SCALE = ".weight_scale"
_MARKS = (".comfy_quant", "scaled_fp8")
#: Beside fp8 weights; their inputs are not quantised here.
_IGNORED = (".scale_input", ".input_scale", *_MARKS)
_TYPES = {"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"}


@dataclass(frozen=True)
class ModelFile:
    """The header of a file."""

    path: Path
    shapes: Shapes
    """Name -> shape; of GGUF files, that of the weights before quantisation."""
    dtypes: Mapping[str, str]
    """Name -> type, as safetensors or GGUF call it: ``BF16``, ``F8_E4M3``, ``Q8_0``."""

    @property
    def is_gguf(self) -> bool:
        """Whether it is a GGUF file."""
        return self.path.suffix.lower() == ".gguf"

    @property
    def has_scales(self) -> bool:
        """Whether it is an fp8 file whose weights have scales beside them."""
        return any(name.endswith((SCALE, _OTHER_SCALE, *_MARKS)) for name in self.shapes)


def read_header(path: str | Path) -> ModelFile:
    """Read the header of a .safetensors or .gguf file.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is another kind of file, or it is cut short or damaged.
        ImportError: It is a GGUF file and the package ``gguf`` is not installed.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    suffix = path.suffix.lower()
    if suffix == ".gguf":
        return _gguf_header(path)
    if suffix != ".safetensors":
        raise ValueError(f"{path} must be a .safetensors or .gguf file; nothing else is read")
    safetensors = require("safetensors", "To read a model file")
    shapes, dtypes = {}, {}
    try:
        with safetensors.safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a dict
                part = file.get_slice(name)
                shapes[name], dtypes[name] = tuple(part.get_shape()), part.get_dtype()
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"{path} is no complete safetensors file: cut short in a download, or damaged ({error})"
        ) from error
    return ModelFile(path, shapes, dtypes)


def read_tensors(file: ModelFile, prefix: str = "") -> dict[str, Tensor]:
    """Read the weights below a prefix.

    Returns:
        Name without the prefix -> tensor, CPU, in the type of the file. Scales of fp8 layers are
        scalars, all with the ending :data:`SCALE`.

    Raises:
        ValueError: They are quantised in a way that is not supported.
    """
    if file.is_gguf:
        load = require("diffusers.models.model_loading_utils", "To read a GGUF file")
        tensors: Mapping[str, Any] = load.load_gguf_checkpoint(str(file.path))
        return below(tensors, prefix)
    check_types(file, prefix)
    names = [name for name in below(file.shapes, prefix) if not name.endswith(_IGNORED)]
    safetensors = require("safetensors", "To read a model file")
    with safetensors.safe_open(file.path, "pt") as opened:
        stored = {name: opened.get_tensor(prefix + name) for name in names}
    return {
        name.removesuffix(_OTHER_SCALE) + SCALE if name.endswith(_OTHER_SCALE) else name: (
            tensor.reshape(()) if name.endswith((SCALE, _OTHER_SCALE)) else tensor
        )
        for name, tensor in stored.items()
    }


def check_types(file: ModelFile, prefix: str = "") -> None:
    """Make sure that the weights below a prefix are of types that are read; nothing is.

    Raises:
        ValueError: They are quantised in a way that is not supported.
    """
    if file.is_gguf:
        return
    for name, shape in below(file.shapes, prefix).items():
        dtype = file.dtypes[prefix + name]
        if name.endswith(_IGNORED):
            continue
        has_blocks = name.endswith((SCALE, _OTHER_SCALE)) and math.prod(shape) != 1
        is_index = name.endswith("position_ids")
        if has_blocks or (dtype not in _TYPES and not is_index):
            what = f"{math.prod(shape)} scales in one layer" if has_blocks else f"{dtype} weights"
            raise ValueError(
                f"{file.path} holds {what} ({name}), quantised in a way that is not supported; use "
                "the 16-bit, fp8 or GGUF file of this model"
            )


def weight_shapes(file: ModelFile, prefix: str = "") -> dict[str, tuple[int, ...]]:
    """Shapes of the weights below a prefix, without scales and marks."""
    beside = (SCALE, _OTHER_SCALE, *_IGNORED)
    shapes = below(file.shapes, prefix)
    return {name: shape for name, shape in shapes.items() if not name.endswith(beside)}


def below(items: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Take what stands below a prefix, without the prefix."""
    return {k.removeprefix(prefix): v for k, v in items.items() if k.startswith(prefix)}


def _gguf_header(path: Path) -> ModelFile:
    reader = require("gguf", "To read a GGUF file").GGUFReader
    try:
        tensors = reader(str(path)).tensors
    except (ValueError, IndexError, OSError) as error:
        raise ValueError(
            f"{path} is no complete GGUF file: cut short in a download, or damaged ({error})"
        ) from error
    return ModelFile(
        path,
        {tensor.name: tuple(int(n) for n in reversed(tensor.shape)) for tensor in tensors},
        {tensor.name: tensor.tensor_type.name for tensor in tensors},
    )
