"""LoRA files that load everywhere: names of ComfyUI's native FLUX and of diffusers.

Two layouts of the same adapter:

- *native*: ``diffusion_model.<module>.lora_A.weight``, ``.lora_B.weight``, ``.alpha``; fused
  modules (qkv, linear1). ComfyUI's loaders take it for every architecture.
- *diffusers*: ``transformer.<module>.lora_A.weight``, ``.lora_B.weight``, the scale alpha / rank
  folded into B, because diffusers drops alpha; split modules (to_q, to_k, to_v). Both diffusers'
  ``load_lora_weights`` and ComfyUI's loaders take it for FLUX.1.

The name table is our own: inverting ComfyUI's would name some weights twice, and ComfyUI would
then apply them twice without a word.

Legend: r rank, h hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from .optional import require

__all__ = [
    "adapter_of_native",
    "diffusers_lora",
    "native_lora",
    "native_to_diffusers",
    "save_lora",
]

#: Native leaf -> [(diffusers leaf, first row, number of rows)], rows in units of h.
_DOUBLE = {
    "img_mod.lin": [("norm1.linear", 0, 6)],
    "txt_mod.lin": [("norm1_context.linear", 0, 6)],
    "img_attn.qkv": [("attn.to_q", 0, 1), ("attn.to_k", 1, 1), ("attn.to_v", 2, 1)],
    "txt_attn.qkv": [
        ("attn.add_q_proj", 0, 1),
        ("attn.add_k_proj", 1, 1),
        ("attn.add_v_proj", 2, 1),
    ],
    "img_attn.proj": [("attn.to_out.0", 0, 1)],
    "txt_attn.proj": [("attn.to_add_out", 0, 1)],
    "img_mlp.0": [("ff.net.0.proj", 0, 4)],
    "img_mlp.2": [("ff.net.2", 0, 1)],
    "txt_mlp.0": [("ff_context.net.0.proj", 0, 4)],
    "txt_mlp.2": [("ff_context.net.2", 0, 1)],
}
_SINGLE = {
    "modulation.lin": [("norm.linear", 0, 3)],
    "linear1": [
        ("attn.to_q", 0, 1),
        ("attn.to_k", 1, 1),
        ("attn.to_v", 2, 1),
        ("proj_mlp", 3, 4),
    ],
    "linear2": [("proj_out", 0, 1)],
}
#: Width of a layer's input in units of h, where it is not 1.
_INPUTS = {"img_mlp.2": 4, "txt_mlp.2": 4, "linear2": 5}
_BLOCKS = {
    "double_blocks": ("transformer_blocks", _DOUBLE),
    "single_blocks": ("single_transformer_blocks", _SINGLE),
}


def native_lora(adapter: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """Name a native adapter's weights as ComfyUI does.

    Args:
        adapter: ``<native module>.lora_A.weight`` (r, in) and ``.lora_B.weight`` (out, r).
        alpha: Numerator of the scale.

    Returns:
        Contiguous CPU float32 tensors; one scalar ``.alpha`` for each module.
    """
    out = {f"diffusion_model.{name}": _plain(tensor) for name, tensor in adapter.items()}
    for name in adapter:
        if name.endswith(".lora_A.weight"):
            module = name.removesuffix(".lora_A.weight")
            out[f"diffusion_model.{module}.alpha"] = torch.tensor(float(alpha))
    return out


def adapter_of_native(lora: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], float]:
    """Take apart what :func:`native_lora` made.

    Returns:
        The adapter's weights by module, and its scale alpha / rank.

    Raises:
        ValueError: There is no such LoRA in it, or its modules have different scales.
    """
    prefix = "diffusion_model."
    adapter = {
        name.removeprefix(prefix): tensor
        for name, tensor in lora.items()
        if name.startswith(prefix) and name.endswith((".lora_A.weight", ".lora_B.weight"))
    }
    alphas = {
        name: lora.get(f"{prefix}{name.removesuffix('.lora_A.weight')}.alpha")
        for name in adapter
        if name.endswith(".lora_A.weight")
    }
    scales = {
        None if alpha is None else float(alpha) / adapter[name].shape[0]
        for name, alpha in alphas.items()
    }
    scale = scales.pop() if len(scales) == 1 else None
    if scale is None:
        raise ValueError(
            "this LORA_MODEL was not made by Train LoRA (Chunk-GRPO), or mixes several scales"
        )
    return adapter, scale


def diffusers_lora(adapter: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """Name a diffusers adapter's weights for diffusers and ComfyUI, scale folded into B.

    Args:
        adapter: ``<diffusers module>.lora_A.weight`` and ``.lora_B.weight``.
        scale: alpha / rank.
    """
    return {
        f"transformer.{name}": _plain(tensor * scale if ".lora_B." in name else tensor)
        for name, tensor in adapter.items()
    }


def native_to_diffusers(adapter: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """Rename a native FLUX.1 adapter for diffusers: A is shared, the rows of B are cut.

    Args:
        adapter: ``<native module>.lora_A.weight`` and ``.lora_B.weight``, FLUX.1 only.
        scale: alpha / rank.

    Raises:
        ValueError: A module is not one of FLUX.1's block layers.
    """
    split: dict[str, Tensor] = {}
    for name, a in adapter.items():
        if not name.endswith(".lora_A.weight"):
            continue
        module = name.removesuffix(".lora_A.weight")
        b = adapter[f"{module}.lora_B.weight"]
        kind, index, leaf = (module.split(".", 2) + ["", ""])[:3]
        if kind not in _BLOCKS or leaf not in _BLOCKS[kind][1]:
            raise ValueError(f"{module} is not a block layer of FLUX.1 and has no diffusers name")
        blocks, table = _BLOCKS[kind]
        pieces = table[leaf]
        unit = b.shape[0] // sum(rows for _, _, rows in pieces)
        if a.shape[1] != unit * _INPUTS.get(leaf, 1):
            raise ValueError(
                f"{module} maps {a.shape[1]} to {b.shape[0]} numbers, which is not FLUX.1's shape; "
                "only FLUX.1 LoRAs can be renamed for diffusers"
            )
        for piece, first, rows in pieces:
            target = f"{blocks}.{index}.{piece}"
            split[f"{target}.lora_A.weight"] = a
            split[f"{target}.lora_B.weight"] = b[first * unit : (first + rows) * unit]
    return diffusers_lora(split, scale)


def save_lora(tensors: Mapping[str, Tensor], path: str | Path, metadata: Mapping[str, str]) -> Path:
    """Write a LoRA file (safetensors), never half written.

    Args:
        tensors: From one of the functions above.
        path: Ends in .safetensors; its folder is made if needed.
        metadata: Facts to keep in the file's header, text only.

    Raises:
        ValueError: The path has another ending.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"a LoRA file must end in .safetensors, got {path.name!r}")
    save_file = require("safetensors.torch", "To write a LoRA file").save_file
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.partial")
    save_file(dict(tensors), temporary, metadata=dict(metadata))
    temporary.replace(path)
    return path


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float32).contiguous().clone()
