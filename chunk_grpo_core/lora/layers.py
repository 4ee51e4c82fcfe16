"""A LoRA file taken apart into layers, and put together again.

Two layouts are in use for transformers:

- *native*: ``diffusion_model.<module>.lora_A.weight``, ``.lora_B.weight`` and ``.alpha``, with
  ComfyUI's module names. ComfyUI's loaders take it for every architecture.
- *diffusers*: ``transformer.<module>.lora_A.weight`` and ``.lora_B.weight``, with diffusers' module
  names and the scale folded into B, because diffusers writes no alpha.

Both are read with ``lora_down`` and ``lora_up`` for A and B too. Without an alpha the scale is 1,
as it is for ComfyUI and diffusers.

Legend: r rank.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

__all__ = ["Layout", "LoraLayer", "layer_tensors", "parse_lora"]

Layout = Literal["native", "diffusers"]

_PREFIXES: dict[Layout, str] = {"native": "diffusion_model.", "diffusers": "transformer."}
_PARTS = {
    ".lora_A.weight": "a",
    ".lora_B.weight": "b",
    ".lora_down.weight": "a",
    ".lora_up.weight": "b",
    ".alpha": "alpha",
}
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraLayer:
    """The update (alpha / r) B A of one linear layer."""

    a: Tensor
    """A, shape (r, in)."""
    b: Tensor
    """B, shape (out, r)."""
    alpha: float

    @property
    def rank(self) -> int:
        """r."""
        return self.a.shape[0]

    @property
    def scale(self) -> float:
        """alpha / r."""
        return self.alpha / self.rank

    def folded(self) -> LoraLayer:
        """The same update with the scale moved into B, which then is float32."""
        if self.scale == 1.0:
            return self
        return LoraLayer(a=self.a, b=self.b.float() * self.scale, alpha=self.rank)


def parse_lora(tensors: Mapping[str, Tensor]) -> tuple[Layout, dict[str, LoraLayer]]:
    """Take a LoRA file apart.

    Args:
        tensors: Contents of a file, or a LORA_MODEL of ComfyUI.

    Returns:
        The layout, and module name (without prefix) -> layer.

    Raises:
        ValueError: It is in neither layout, or holds more than plain LoRA factors.
    """
    layout = _layout_of(tensors)
    by_module: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        suffix = next((suffix for suffix in _PARTS if name.endswith(suffix)), None)
        if suffix is None:
            raise ValueError(
                f"this LoRA holds {name}, which is no plain LoRA factor; only lora_A, lora_B (or "
                "lora_down, lora_up) and alpha can be read"
            )
        module = name.removeprefix(_PREFIXES[layout]).removesuffix(suffix)
        by_module.setdefault(module, {})[_PARTS[suffix]] = tensor
    return layout, {module: _layer(module, sides) for module, sides in by_module.items()}


def layer_tensors(layers: Mapping[str, LoraLayer], layout: Layout) -> dict[str, Tensor]:
    """Put a LoRA file together.

    Args:
        layers: Module name in this layout -> layer.
        layout: Of the file.

    Returns:
        Contiguous CPU tensors that share no memory.
    """
    out: dict[str, Tensor] = {}
    for module, layer in layers.items():
        name = _PREFIXES[layout] + module
        written = layer.folded() if layout == "diffusers" else layer
        out[f"{name}.lora_A.weight"] = _plain(written.a)
        out[f"{name}.lora_B.weight"] = _plain(written.b)
        if layout == "native":
            out[f"{name}.alpha"] = torch.tensor(float(layer.alpha))
    return out


def _layout_of(tensors: Mapping[str, Tensor]) -> Layout:
    """Return the layout that all names share."""
    for layout, prefix in _PREFIXES.items():
        if tensors and all(name.startswith(prefix) for name in tensors):
            return layout
    strange = [name for name in tensors if not name.startswith(tuple(_PREFIXES.values()))]
    some = ", ".join((strange or list(tensors))[:3]) or "nothing"
    raise ValueError(
        "this is neither a native LoRA (all names begin with diffusion_model.) nor one of "
        f"diffusers (all names begin with transformer.); it holds {some}"
    )


def _layer(module: str, sides: Mapping[str, Tensor]) -> LoraLayer:
    if "a" not in sides or "b" not in sides:
        raise ValueError(f"this LoRA has only {', '.join(sides)} of {module}; a and b are needed")
    a, b = (_readable(sides[side]) for side in "ab")
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1]:
        raise ValueError(
            f"the factors of {module} have shapes {tuple(a.shape)} and {tuple(b.shape)}; they must "
            "be (r, in) and (out, r)"
        )
    alpha = float(sides["alpha"]) if "alpha" in sides else float(a.shape[0])
    return LoraLayer(a=a, b=b, alpha=alpha)


def _readable(tensor: Tensor) -> Tensor:
    """Turn types that torch cannot compute in on a CPU (float8) into float32; exact."""
    return tensor if tensor.dtype in _DTYPES else tensor.float()


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu").contiguous().clone()
