"""LoRA files that load everywhere: written, read and converted.

The native file serves ComfyUI, for every architecture. For the families of ``lora/name_tables.py``
there is the diffusers file too, which diffusers' ``load_lora_weights`` takes, and most of them
ComfyUI's loaders too. ``lora/layers.py`` defines both layouts; ``lora/contents.py`` reads those of
other programs too.

Legend: r rank.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from ..disk.atomic import write_whole
from ..disk.tensors import tensor_bytes
from ..optional import require
from ..settings.blaming import blaming
from .contents import read_lora
from .layers import Layout, LoraLayer, layer_tensors
from .naming import in_layout
from .peft_scale import PEFT_HEADER, peft_alphas

__all__ = [
    "convert_lora",
    "diffusers_lora",
    "load_lora",
    "native_lora",
    "save_lora",
]


def native_lora(adapter: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """Name an adapter's weights as ComfyUI does.

    Args:
        adapter: ``<native module>.lora_A.weight`` (r, in) and ``.lora_B.weight`` (out, r).
        alpha: Numerator of the scale alpha / r, see :attr:`~.adapter.LoraConfig.file_alpha`.

    Returns:
        Contiguous CPU tensors; one scalar ``.alpha`` for each module.
    """
    return layer_tensors(_adapter_layers(adapter, alpha), "native")


def diffusers_lora(adapter: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """Name a diffusers adapter's weights for diffusers and ComfyUI, scale folded into B.

    Args:
        adapter: ``<diffusers module>.lora_A.weight`` and ``.lora_B.weight``.
        alpha: Numerator of the scale alpha / r, see :attr:`~.adapter.LoraConfig.file_alpha`.
    """
    return layer_tensors(_adapter_layers(adapter, alpha), "diffusers")


def convert_lora(
    lora: Mapping[str, Tensor], to: Layout, family: str | None = None
) -> dict[str, Tensor]:
    """Write a LoRA in another layout; the function of the image model is the same.

    Tensors keep their type and, when the scale is 1, their bits. Folding a scale other than 1 into
    B gives float32. Layers of text encoders are left out.

    Args:
        lora: A file's tensors, in any layout that :func:`~.contents.read_lora` reads.
        to: Layout wanted.
        family: The model it is for, one of :data:`~.name_tables.FAMILIES`; None to tell it by names
            and shapes.

    Raises:
        ValueError: It is not a plain LoRA, its layers have no names in this layout, or could be
            those of two families.
    """
    return layer_tensors(in_layout(read_lora(lora), to, family), to)


def save_lora(tensors: Mapping[str, Tensor], path: str | Path, metadata: Mapping[str, str]) -> Path:
    """Write a LoRA file (safetensors), never half written; the same every time.

    Args:
        tensors: From one of the functions above.
        path: Ends in .safetensors; its folder is made if needed.
        metadata: Facts to keep in the file's header, text only.

    Raises:
        ValueError: The path has another ending.
        CannotWrite: The disk is full, or something else is in the way.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"a LoRA file must end in .safetensors, got {path.name!r}")
    write_whole(path, tensor_bytes(tensors, metadata))
    return path


def load_lora(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a LoRA file.

    diffusers keeps the scale in the header, and peft in a file beside it, where other programs do
    not look; it becomes alpha tensors here.

    Returns:
        Tensors and metadata.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not a safetensors file, or its scales cannot be read.
    """
    path = Path(path)
    safetensors = require("safetensors", "To read a LoRA file")
    if not path.is_file():
        kind = "is no file" if path.exists() else "does not exist"
        raise FileNotFoundError(f"{path} {kind}; name a .safetensors file")
    try:
        with safetensors.safe_open(path, "pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"{path} is not a whole safetensors file ({error}); other kinds (.pt, .ckpt, .bin) are "
            "not read"
        ) from error
    with blaming(path):
        tensors |= peft_alphas(tensors, metadata.pop(PEFT_HEADER, None), path.parent)
    return tensors, metadata


def _adapter_layers(adapter: Mapping[str, Tensor], alpha: float) -> dict[str, LoraLayer]:
    a, b = ".lora_A.weight", ".lora_B.weight"
    return {
        name.removesuffix(a): LoraLayer(
            a=tensor.float(), b=adapter[name.replace(a, b)].float(), alpha=alpha
        )
        for name, tensor in adapter.items()
        if name.endswith(a)
    }
