"""Vision models of transformers as encoders: SigLIP, CLIP, DINOv2 and the like, from a folder.

``tiny`` is the encoder of the tiny world, which needs no file.

A picture is squeezed to the square that the model takes, so that all of it is seen; mean and
deviation come from the model's own ``preprocessor_config.json``. Nothing is downloaded, and no code
of the folder is run.

Legend: B pictures, S side of the square.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...models.tiny.encoder import load_tiny_encoder
from ...optional import require
from ...settings.declared import shortened
from ..files import digest
from ..networks.network import judging
from ..pixels import normalised, to_levels
from .features import Encoder

__all__ = ["TINY", "VisionEncoder", "encoder_without_file", "load_encoder", "named_encoder"]

TINY = "tiny"
"""Name of the encoder that comes with the package."""

_PIXELS = "squeeze-bicubic-1"
"""How a picture becomes a square; part of the digest."""
_CONFIG, _PREPROCESSOR = "config.json", "preprocessor_config.json"


class VisionEncoder:
    """Pooled features of an image tower. Implements ``features.Encoder``."""

    def __init__(
        self,
        network: Any,
        *,
        name: str,
        digest: str,
        size: int,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
        batch_size: int = 16,
    ) -> None:
        """Encode with an image tower of transformers.

        Args:
            network: Called with ``pixel_values`` (B, 3, S, S); what it pools is taken, or the mean
                of its last hidden states.
            name: For people.
            digest: Of its weights.
            size: S.
            mean: Of each channel.
            std: Of each channel.
            batch_size: Pictures in one call.
        """
        self.network: nn.Module = network
        self.name, self.digest = name, digest
        self.dims = int(network.config.hidden_size)
        self._size, self._mean, self._std, self._batch_size = size, mean, std, batch_size

    def embed(self, images: Tensor) -> Tensor:
        """See :class:`~chunk_grpo_core.rewards.taste.features.Encoder`."""
        if not len(images):
            return torch.zeros(0, self.dims)
        parts = [self._embed(to_levels(part)) for part in images.split(self._batch_size)]
        return torch.cat(parts)

    def _embed(self, levels: Tensor) -> Tensor:
        pictures = levels.movedim(-1, 1).float() / 255.0
        size = (self._size, self._size)
        square = functional.interpolate(pictures, size, mode="bicubic", antialias=True)
        with judging(self.network) as device:
            dtype = next(self.network.parameters()).dtype
            values = normalised(square.clamp(0, 1), self._mean, self._std).to(device, dtype)
            out = self.network(pixel_values=values)
            pooled = getattr(out, "pooler_output", None)
            return (out.last_hidden_state.mean(1) if pooled is None else pooled).float().cpu()


def named_encoder(name: str | Path, *, device: str = "cpu") -> Encoder:
    """Load the encoder of the tiny world (``tiny``), or a vision model from a folder.

    Args:
        name: ``tiny``, or the folder (``./tiny`` for one of that name).
        device: See :func:`load_encoder`.

    Raises:
        FileNotFoundError: See :func:`load_encoder`.
        ValueError: See :func:`load_encoder`.
    """
    return load_tiny_encoder() if str(name) == TINY else load_encoder(name, device=device)


def encoder_without_file(encoder: str, encoder_digest: str) -> Encoder | None:
    """The encoder that a head was fitted on, if it is one that comes with the package.

    Args:
        encoder: Its name, from the head.
        encoder_digest: Its digest, from the head; another version of it is another encoder.
    """
    tiny = load_tiny_encoder() if encoder == TINY else None
    return tiny if tiny and tiny.digest == encoder_digest else None


def load_encoder(
    folder: str | Path, *, device: str = "cpu", dtype: torch.dtype = torch.float32,
    batch_size: int = 16,
) -> VisionEncoder:  # fmt: skip
    """Load a vision model from a folder in the layout of transformers.

    Args:
        folder: With ``config.json``, ``preprocessor_config.json`` and ``.safetensors`` weights.
        device: Where it is put.
        dtype: What it runs in.
        batch_size: Pictures in one call.

    Raises:
        FileNotFoundError: The folder or one of its files is not there.
        ValueError: A file is something else, or the model has no image tower.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"encoder: there is no folder {folder}; name one with a vision model of transformers "
            f"({_CONFIG}, {_PREPROCESSOR}, model.safetensors), or {TINY}"
        )
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise FileNotFoundError(
            f"encoder: {folder} holds no .safetensors file; get the weights of that format"
        )
    config, preparation = (_json(folder / name) for name in (_CONFIG, _PREPROCESSOR))
    mean, std = (_channels(preparation, key, folder) for key in ("image_mean", "image_std"))
    network = _network(folder).to(device, dtype)
    size = getattr(network.config, "image_size", None)
    if not isinstance(size, int) or not 1 <= size <= 4096:
        raise ValueError(f"encoder: image_size of {folder / _CONFIG} is {shortened(size)}")
    hashed = hashlib.sha256(f"{_PIXELS} {size} {mean} {std} {dtype}".encode())
    hashed.update(json.dumps(config, sort_keys=True).encode())
    for file in weights:
        hashed.update(digest(file).encode())
    return VisionEncoder(
        network, name=folder.resolve().name, digest=hashed.hexdigest(), size=size, mean=mean,
        std=std, batch_size=batch_size,
    )  # fmt: skip


def _network(folder: Path) -> Any:
    """The image tower alone."""
    transformers = require("transformers", "To encode pictures")
    damaged = require("safetensors", "To encode pictures").SafetensorError
    try:
        model = transformers.AutoModel.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError, RuntimeError, damaged) as error:
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(
            f"encoder: {folder} is no model that transformers can load: {shortened(first, 300)}"
        ) from error
    tower = getattr(model, "vision_model", model)
    if getattr(tower, "main_input_name", "") != "pixel_values" or not hasattr(
        tower.config, "hidden_size"
    ):
        raise ValueError(
            f"encoder: {folder} holds a {type(model).__name__}, which has no image tower; take "
            "SigLIP, CLIP or DINOv2"
        )
    return tower.requires_grad_(False).train(False)


def _json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise FileNotFoundError(f"encoder: there is no {file}; it comes with the model")
    try:
        content = json.loads(file.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"encoder: {file} is not JSON") from error
    if not isinstance(content, dict):
        raise ValueError(f"encoder: {file} holds no JSON object")
    return content


def _channels(preparation: dict[str, Any], key: str, folder: Path) -> tuple[float, float, float]:
    values = preparation.get(key)
    if (
        isinstance(values, list)
        and len(values) == 3
        and all(isinstance(value, (int, float)) for value in values)
        and (key != "image_std" or all(value > 0 for value in values))
    ):
        return (float(values[0]), float(values[1]), float(values[2]))
    raise ValueError(
        f"encoder: {key} in {folder / _PREPROCESSOR} is {shortened(values)}; it must be three "
        "numbers"
    )
