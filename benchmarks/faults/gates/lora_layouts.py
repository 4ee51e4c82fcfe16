"""The layouts in which programs write LoRA files; each is the function of the finished run."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from ..material import Material
from ..outcomes import Expected

__all__ = ["LAYOUTS", "Layout", "Tensors", "read_tensors", "text_encoder", "with_alphas"]

Tensors = dict[str, Tensor]


def read_tensors(path: Path) -> Tensors:
    """The tensors of a file."""
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def _renamed(tensors: Tensors, change: Callable[[str], str]) -> Tensors:
    return {change(name): tensor for name, tensor in tensors.items()}


def _kohya(prefix: str, strip: str) -> Callable[[str], str]:
    def change(name: str) -> str:
        match = re.fullmatch(
            rf"{re.escape(strip)}(.*)\.(lora_A\.weight|lora_B\.weight|alpha)", name
        )
        assert match, name
        ends = {"lora_A.weight": "lora_down.weight", "lora_B.weight": "lora_up.weight"}
        return f"{prefix}{match[1].replace('.', '_')}.{ends.get(match[2], match[2])}"

    return change


def _native(material: Material) -> Tensors:
    return read_tensors(material.finished.parent / "native.safetensors")


def with_alphas(tensors: Tensors) -> Tensors:
    """Alpha 1 in the file, its inverse in B."""
    out = dict(tensors)
    for name, a in tensors.items():
        if name.endswith(".lora_A.weight"):
            module = name.removesuffix(".lora_A.weight")
            out[f"{module}.lora_B.weight"] = tensors[f"{module}.lora_B.weight"] * a.shape[0]
            out[f"{module}.alpha"] = torch.tensor(1.0)
    return out


def text_encoder() -> Tensors:
    """Layers of a text encoder, which change nothing."""
    name = "lora_te1_text_model_encoder_layers_0_self_attn_q_proj"
    return {
        f"{name}.lora_down.weight": torch.zeros(2, 768),
        f"{name}.lora_up.weight": torch.zeros(768, 2),
        f"{name}.alpha": torch.tensor(2.0),
    }


_YES, _NO, _ANY = Expected.accepted, Expected.refused, Expected.either
_STRIP = "transformer."
Layout = Callable[[Tensors, Material], tuple[Tensors, Expected]]
LAYOUTS: dict[str, Layout] = {
    "diffusers": lambda t, m: (t, _YES),
    "diffusers in half precision": lambda t, m: ({k: v.half() for k, v in t.items()}, _YES),
    "diffusers in bfloat16": lambda t, m: ({k: v.bfloat16() for k, v in t.items()}, _YES),
    "diffusers in double precision": lambda t, m: ({k: v.double() for k, v in t.items()}, _ANY),
    "diffusers with alphas": lambda t, m: (with_alphas(t), _YES),
    "native": lambda t, m: (_native(m), _YES),
    "native in bfloat16": lambda t, m: ({k: v.bfloat16() for k, v in _native(m).items()}, _YES),
    "kohya": lambda t, m: (_renamed(_native(m), _kohya("lora_unet_", "diffusion_model.")), _YES),
    "kohya with a text encoder": lambda t, m: (
        {**_renamed(_native(m), _kohya("lora_unet_", "diffusion_model.")), **text_encoder()},
        _ANY,
    ),
    "OneTrainer": lambda t, m: (
        _renamed(with_alphas(t), _kohya("lora_transformer_", _STRIP)),
        _YES,
    ),
    "PEFT": lambda t, m: (_renamed(t, lambda n: "base_model.model." + n[len(_STRIP) :]), _YES),
    "PEFT with default": lambda t, m: (
        _renamed(
            t,
            lambda n: "base_model.model." + n[len(_STRIP) :].replace(".weight", ".default.weight"),
        ),
        _YES,
    ),
    "SimpleTuner": lambda t, m: (
        _renamed(t, lambda n: n.replace(_STRIP, "transformer.base_model.model.", 1)),
        _ANY,
    ),
    "bare diffusers names": lambda t, m: (_renamed(t, lambda n: n[len(_STRIP) :]), _ANY),
    "bare native names": lambda t, m: (
        _renamed(_native(m), lambda n: n.removeprefix("diffusion_model.")),
        _ANY,
    ),
    "lora_down and lora_up": lambda t, m: (
        _renamed(t, lambda n: n.replace("lora_A", "lora_down").replace("lora_B", "lora_up")),
        _YES,
    ),
}
