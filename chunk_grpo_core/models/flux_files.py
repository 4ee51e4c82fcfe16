"""What is in a model file? Read from its header: names, shapes and types, no weights.

People's folders hold dozens of files that look alike. A file that is not what it was given for is
refused here, by what it is, before anything large is read. ComfyUI's whole checkpoints hold all
parts in one file, each under a prefix.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..optional import require

__all__ = [
    "PARTS",
    "SCALE",
    "ModelFile",
    "Part",
    "find_part",
    "identify",
    "read_header",
    "read_tensors",
]

#: Ending of a layer's fp8 scale: its weight is ``weight * scale``.
SCALE = ".scale_weight"
_OTHER_SCALE = ".weight_scale"
#: Beside fp8 weights; their inputs are not quantised here.
_IGNORED = (".scale_input", ".input_scale", ".comfy_quant", "scaled_fp8")
_TYPES = {"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"}

Shapes = Mapping[str, tuple[int, ...]]


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


@dataclass(frozen=True)
class Part:
    """One model inside a file."""

    file: ModelFile
    prefix: str
    """What stands before its names, often nothing."""
    layout: str
    """``native`` (Black Forest Labs, ComfyUI) or ``diffusers``; text encoders are ``native``."""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name without the prefix -> shape."""
        return _below(self.file.shapes, self.prefix)


@dataclass(frozen=True)
class PartKind:
    """How to recognise one of the models that FLUX.1 is made of."""

    title: str
    prefixes: tuple[str, ...]
    layouts: Mapping[str, tuple[str, ...]]
    """Layout -> names that only this model has, all of them."""


#: The models FLUX.1 is made of.
PARTS = {
    "transformer": PartKind(
        "a FLUX.1 transformer",
        ("", "model.diffusion_model.", "diffusion_model.", "transformer."),
        {
            "native": (
                "img_in.weight",
                "vector_in.in_layer.weight",
                "double_blocks.0.img_mod.lin.weight",
                "double_blocks.0.img_attn.qkv.weight",
                "single_blocks.0.linear1.weight",
            ),
            "diffusers": (
                "x_embedder.weight",
                "context_embedder.weight",
                "transformer_blocks.0.norm1_context.linear.weight",
                "single_transformer_blocks.0.proj_mlp.weight",
            ),
        },
    ),
    "vae": PartKind(
        "a VAE",
        ("", "vae.", "first_stage_model."),
        {
            "native": ("decoder.conv_in.weight", "decoder.mid.block_1.conv1.weight"),
            "diffusers": ("decoder.conv_in.weight", "decoder.mid_block.resnets.0.conv1.weight"),
        },
    ),
    "clip": PartKind(
        "a CLIP-L text encoder",
        ("", "text_encoders.clip_l.transformer.", "text_encoders.clip_l.", "clip_l."),
        {"native": ("text_model.embeddings.token_embedding.weight",)},
    ),
    "t5": PartKind(
        "a T5 text encoder",
        ("", "text_encoders.t5xxl.transformer.", "text_encoders.t5xxl.", "t5xxl.transformer."),
        {"native": ("shared.weight", "encoder.block.0.layer.0.SelfAttention.q.weight")},
    ),
}


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


def find_part(file: ModelFile, kind: str) -> Part:
    """Find one of :data:`PARTS` in a file.

    Raises:
        ValueError: The file is something else; the message says what.
    """
    wanted = PARTS[kind]
    for prefix in wanted.prefixes:
        for layout, names in wanted.layouts.items():
            if all(prefix + name in file.shapes for name in names):
                return Part(file, prefix, layout)
    raise ValueError(f"{file.path} is {identify(file)}, not {wanted.title}")


def read_tensors(part: Part) -> dict[str, Tensor]:
    """Read the weights of a part.

    Returns:
        Name without the prefix -> tensor, CPU, in the type of the file. Scales of fp8 layers are
        scalars, all with the ending :data:`SCALE`.

    Raises:
        ValueError: They are quantised in a way that is not supported.
    """
    names = [name for name in part.shapes if not name.endswith(_IGNORED)]
    if part.file.is_gguf:
        load = require("diffusers.models.model_loading_utils", "To read a GGUF file")
        tensors: Mapping[str, Any] = load.load_gguf_checkpoint(str(part.file.path))
        return _below(tensors, part.prefix)
    _check_types(part, names)
    safetensors = require("safetensors", "To read a model file")
    with safetensors.safe_open(part.file.path, "pt") as file:
        found = {name: file.get_tensor(part.prefix + name) for name in names}
    return {
        name.removesuffix(_OTHER_SCALE) + SCALE if name.endswith(_OTHER_SCALE) else name: (
            tensor.reshape(()) if name.endswith((SCALE, _OTHER_SCALE)) else tensor
        )
        for name, tensor in found.items()
    }


def identify(file: ModelFile) -> str:
    """Say in a few words what a file is."""
    for start in ("", "model.diffusion_model."):
        shapes = _below(file.shapes, start)
        for title, is_this in _KINDS:
            if is_this(shapes):
                return f"a whole checkpoint with {title}" if start else title
    for part in PARTS.values():
        for names in part.layouts.values():
            if all(name in file.shapes for name in names):
                return part.title
    names = ", ".join(sorted(file.shapes)[:3]) or "none"
    return f"something unknown (its first tensors: {names})"


def _check_types(part: Part, names: Sequence[str]) -> None:
    file = part.file
    for name in names:
        shape, dtype = part.shapes[name], file.dtypes[part.prefix + name]
        has_blocks = name.endswith((SCALE, _OTHER_SCALE)) and math.prod(shape) != 1
        is_index = name.endswith("position_ids")
        if has_blocks or (dtype not in _TYPES and not is_index):
            what = f"{math.prod(shape)} scales in one layer" if has_blocks else f"{dtype} weights"
            raise ValueError(
                f"{file.path} holds {what} ({name}), quantised in a way that is not supported; use "
                "the 16-bit, fp8 or GGUF file of this model"
            )


def _has(*names: str) -> Callable[[Shapes], bool]:
    return lambda shapes: all(name in shapes for name in names)


def _any(*pieces: str) -> Callable[[Shapes], bool]:
    return lambda shapes: any(piece in name for name in shapes for piece in pieces)


def _vae_of(channels: int) -> Callable[[Shapes], bool]:
    return lambda shapes: shapes.get("decoder.conv_in.weight", (0, 0))[1] == channels


def _width(name: str, width: int) -> Callable[[Shapes], bool]:
    return lambda shapes: shapes.get(name, (0,))[-1] == width


_CLIP = "text_model.embeddings.token_embedding.weight"
#: What else people have on their disks; the first that fits.
_KINDS: tuple[tuple[str, Callable[[Shapes], bool]], ...] = (
    ("a LoRA", _any(".lora_A.", ".lora_B.", ".lora_down.", ".lora_up.", ".lora.down.", ".lokr_")),
    ("a ControlNet", _any("controlnet_", "control_model.")),
    ("an SD3 transformer", _has("joint_blocks.0.context_block.attn.qkv.weight")),
    ("an SD3 transformer", _has("pos_embed.proj.weight", "transformer_blocks.0.ff.net.2.weight")),
    ("an SDXL U-Net", _has("input_blocks.0.0.weight", "label_emb.0.0.weight")),
    ("a Stable Diffusion U-Net", _has("input_blocks.0.0.weight")),
    ("a Stable Diffusion U-Net", _has("conv_in.weight", "down_blocks.0.resnets.0.conv1.weight")),
    ("a FLUX.2 transformer", _has("double_stream_modulation_img.lin.weight")),
    ("a FLUX.2 transformer", _has("double_stream_modulation_img.linear.weight")),
    ("a Chroma transformer", _any("distilled_guidance_layer.")),
    ("a HunyuanVideo transformer", _any("individual_token_refiner.")),
    ("a Qwen-Image transformer", _has("transformer_blocks.0.img_mod.1.weight")),
    ("a Z-Image or Lumina transformer", _any("noise_refiner.0.")),
    ("a Wan transformer", _has("patch_embedding.weight", "blocks.0.cross_attn.k.weight")),
    ("a FLUX.1 transformer", _has(*PARTS["transformer"].layouts["native"])),
    ("a FLUX.1 transformer", _has(*PARTS["transformer"].layouts["diffusers"])),
    ("a FLUX.1 or SD3 VAE", _vae_of(16)),
    ("a Stable Diffusion VAE", _vae_of(4)),
    ("a T5 text encoder", _has("encoder.block.0.layer.0.SelfAttention.q.weight")),
    ("a CLIP-L text encoder", _width(_CLIP, 768)),
    ("a CLIP-G text encoder", _width(_CLIP, 1280)),
    ("a CLIP vision model", _any("vision_model.")),
    ("a language model", _has("model.layers.0.self_attn.q_proj.weight")),
)


def _below(items: Mapping[str, Any], prefix: str) -> dict[str, Any]:
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
