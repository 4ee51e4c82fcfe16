"""Load a FLUX.1 transformer from a folder or a file, its weights in 32, 16, 8 or 4 bits.

A file is read by name (``files.py``), renamed (``convert.py``) and put into an empty
model that must take every tensor and miss none.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...optional import require
from ..fp8 import replace_linears, to_fp8
from ..kept_weights import WEIGHTS, bitsandbytes_config, check_weights, to_type
from ..weight_file import SCALE, read_header, read_tensors
from .convert import diffusers_state, flux_config
from .files import Part, find_part

__all__ = ["check_same_names", "load_transformer"]

_FP8_TYPES = (torch.float8_e4m3fn, torch.float8_e5m2)
_IN_BLOCK = re.compile(r"(single_)?transformer_blocks\.\d+\..+")


def load_transformer(source: Path, weights: str, device: torch.device) -> nn.Module:
    """Load a FLUX.1 transformer, frozen.

    Args:
        source: A folder with diffusers' config.json and weights, or one file: .safetensors with
            native or diffusers' names, fp8 with and without scales, or .gguf.
        weights: A key of :data:`~..kept_weights.WEIGHTS`. int8 and nf4 need bitsandbytes; gguf is
            for .gguf files and no others, and needs the package ``gguf``.
        device: Where the model goes.

    Returns:
        A FluxTransformer2DModel.

    Raises:
        FileNotFoundError: The source is missing.
        ValueError: It is not a FLUX.1 transformer, or it cannot be kept like this.
        ImportError: A package is missing; the message says how to install it.
    """
    check_weights(weights, device)
    if source.is_dir() and weights == "gguf":
        raise ValueError(f"weights is 'gguf', but {source} is a folder; give the .gguf file itself")
    model = _from_folder(source, weights) if source.is_dir() else _from_file(source, weights)
    model.requires_grad_(False).train(False)
    is_placed = bitsandbytes_config(weights) is not None
    return model if is_placed else model.to(device)


def check_same_names(tensors: Mapping[str, Tensor], model: nn.Module, path: Path) -> None:
    """Make sure that weights fill a model completely.

    Raises:
        ValueError: Names or shapes differ; the message lists some.
    """
    wanted = model.state_dict()
    problems = {
        "missing": sorted(wanted.keys() - tensors.keys()),
        "unknown": sorted(tensors.keys() - wanted.keys()),
        "of another shape": sorted(
            f"{name} {tuple(tensors[name].shape)}, not {tuple(wanted[name].shape)}"
            for name in wanted.keys() & tensors.keys()
            if tensors[name].shape != wanted[name].shape
            and not hasattr(tensors[name], "quant_type")
        ),
    }
    texts = [
        f"{len(names)} tensors are {kind}, for example {names[0]}"
        for kind, names in problems.items()
        if names
    ]
    if texts:
        raise ValueError(f"{path} does not fit its own model: {'; '.join(texts)}")


def _from_folder(folder: Path, weights: str) -> nn.Module:
    diffusers = require("diffusers", "To load FLUX")
    method = bitsandbytes_config(weights)
    extra = {} if method is None else {"quantization_config": method}
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} holds no transformer: config.json is missing")
    kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("_class_name")
    if kind != "FluxTransformer2DModel":
        raise ValueError(f"{folder} holds a {kind}, not a FLUX.1 transformer")
    model = diffusers.FluxTransformer2DModel.from_pretrained(
        folder, torch_dtype=WEIGHTS[weights], local_files_only=True, **extra
    )
    if weights != "fp8":
        return model
    return _filled(dict(model.config), model.state_dict(), weights, folder)


def _from_file(path: Path, weights: str) -> nn.Module:
    file = read_header(path)
    if file.is_gguf != (weights == "gguf"):
        raise ValueError(
            f"weights is {weights!r}; 'gguf' is for .gguf files alone, not {path.name}"
        )
    part = find_part(file, "transformer")
    tensors = read_tensors(part.file, part.prefix)
    try:
        state, config = _renamed(part, tensors)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if weights == "gguf":
        kind = require("diffusers", "To load FLUX").GGUFQuantizationConfig
        return _quantised(config, state, kind(compute_dtype=WEIGHTS[weights]), weights, path)
    if (method := bitsandbytes_config(weights)) is not None:
        state = to_type(state, WEIGHTS[weights])
        return _quantised(config, state, method, weights, path)
    return _filled(config, state, weights, path)


def _renamed(part: Part, tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights under diffusers' names, and the arguments of the model they belong to."""
    shapes = part.shapes
    if part.layout == "native":
        return diffusers_state(tensors), flux_config(shapes)
    native = {
        "img_in.weight": "x_embedder.weight",
        "txt_in.weight": "context_embedder.weight",
        "vector_in.in_layer.weight": "time_text_embed.text_embedder.linear_1.weight",
        "guidance_in.in_layer.weight": "time_text_embed.guidance_embedder.linear_1.weight",
        "final_layer.linear.weight": "proj_out.weight",
        "double_blocks.0.img_attn.norm.query_norm.scale": (
            "transformer_blocks.0.attn.norm_q.weight"
        ),
    }
    sizes = {name: shapes[other] for name, other in native.items() if other in shapes}
    for name in shapes:
        if name.startswith("transformer_blocks."):
            sizes["double_blocks." + name.partition(".")[2]] = ()
        elif name.startswith("single_transformer_blocks."):
            sizes["single_blocks." + name.partition(".")[2]] = ()
    return tensors, flux_config(sizes)


def _filled(config: Mapping[str, Any], state: dict[str, Tensor], weights: str, path: Path) -> Any:
    """Put weights into an empty model without a second copy."""
    dtype = WEIGHTS[weights]
    with torch.device("meta"):
        model = require("diffusers", "To load FLUX").FluxTransformer2DModel.from_config(config)

    def in_fp8(name: str) -> bool:
        """Attention and MLPs; modulations only if the file has them so already."""
        stored = state.get(f"{name}.weight")
        is_fp8 = stored is not None and stored.dtype in _FP8_TYPES
        return bool(_IN_BLOCK.fullmatch(name)) and (is_fp8 or "norm" not in name)

    names = replace_linears(model, in_fp8) if weights == "fp8" else set()
    kept = {f"{name}{end}" for name in names for end in (".weight", SCALE)}
    rest = to_type({k: v for k, v in state.items() if k not in kept}, dtype)
    check = {**rest, **{name: state[name] for name in kept if name in state}}
    missing_scales = {f"{name}{SCALE}": torch.ones(()) for name in names}
    check_same_names(missing_scales | check, model, path)
    for name in names:
        weight, scale = state[f"{name}.weight"], state.get(name + SCALE)
        if weight.dtype not in _FP8_TYPES:
            weight, scale = to_fp8(weight)
        rest[f"{name}.weight"] = weight
        rest[name + SCALE] = torch.ones(()) if scale is None else scale.float()
    model.load_state_dict(rest, strict=True, assign=True)
    return model


def _quantised(
    config: Mapping[str, Any], state: dict[str, Tensor], method: Any, weights: str, path: Path
) -> Any:
    """Let one of diffusers' quantisation back ends fill the model."""
    kind = require("diffusers", "To load FLUX").FluxTransformer2DModel
    with torch.device("meta"):
        check_same_names(state, kind.from_config(config), path)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "config.json"
        file.write_text(json.dumps({"_class_name": kind.__name__, **config}), encoding="utf-8")
        return kind.from_single_file(
            state,
            config=folder,
            torch_dtype=WEIGHTS[weights],
            quantization_config=method,
            local_files_only=True,
        )
