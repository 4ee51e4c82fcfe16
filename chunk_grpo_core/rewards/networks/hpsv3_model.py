"""The network of HPSv3: Qwen2-VL without its word head, and a score head on one token.

Two things differ from Qwen2-VL as transformers runs it:

1. Positions count tokens, 0 .. L - 1, also inside the picture. The authors trained with a version
   of transformers that did this when nobody passed positions; today's would number rows and
   columns of the picture (M-RoPE), and the scores would be wrong.
2. The score head runs in float32, and on the reward token alone.

Legend: B pictures, N patches of all pictures together, P numbers per patch, L tokens, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...optional import require
from ..files import build_empty, check_fit, strict_load
from .hpsv3_input import SpecialTokens

__all__ = ["QWEN2_VL_7B", "HPSv3Network", "QwenShape", "load_network"]

_TEXT_THETA, _VISION_THETA = 1e6, 1e4


@dataclass(frozen=True, kw_only=True)
class QwenShape:
    """Sizes of Qwen2-VL."""

    text: tuple[int, int, int, int, int]
    """Width D, inner width, layers, attention heads, heads of keys and values."""
    vision: tuple[int, int, int]
    """Width, layers, attention heads."""
    rope_sections: tuple[int, int, int]
    """Frequencies that time, row and column get; half a head's width together."""
    vocabulary: int
    """Rows of the embeddings."""
    norm_eps: float = 1e-6
    """Of the norms of the language model."""


QWEN2_VL_7B = QwenShape(
    text=(3584, 18944, 28, 28, 4),
    vision=(1280, 32, 16),
    rope_sections=(16, 24, 24),
    vocabulary=151658,
)
"""7.74 billion parameters without the word head; one row more than Qwen2-VL's tokenizer."""


def _config(shape: QwenShape, special: SpecialTokens) -> Any:
    transformers = require("transformers", "To judge with HPSv3")
    width, inner, layers, heads, kv_heads = shape.text
    vision_width, depth, vision_heads = shape.vision
    text = {
        "vocab_size": shape.vocabulary,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "rms_norm_eps": shape.norm_eps,
        "rope_theta": _TEXT_THETA,
        "rope_scaling": {"rope_type": "default", "mrope_section": list(shape.rope_sections)},
        "bos_token_id": special.padding,
        "eos_token_id": special.turn_end,
    }
    vision = {
        "embed_dim": vision_width,
        "hidden_size": width,
        "depth": depth,
        "num_heads": vision_heads,
    }
    return transformers.Qwen2VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=special.image,
        video_token_id=special.video,
        vision_start_token_id=special.vision_start,
        vision_end_token_id=special.vision_end,
        tie_word_embeddings=False,
    )


class HPSv3Network(nn.Module):
    """Qwen2-VL and the score head."""

    def __init__(self, shape: QwenShape, special: SpecialTokens) -> None:
        """Build with random weights; see :func:`load_network`."""
        super().__init__()
        transformers = require("transformers", "To judge with HPSv3")
        self.backbone = transformers.Qwen2VLModel(_config(shape, special))
        self.rm_head = nn.Sequential(
            nn.Linear(shape.text[0], 1024),
            nn.ReLU(),
            nn.Dropout(0.05),
            nn.Linear(1024, 16),
            nn.ReLU(),
            nn.Linear(16, 2),
        )
        self.reward_token = special.reward

    def forward(self, ids: Tensor, mask: Tensor, patches: Tensor, grids: Tensor) -> Tensor:
        """Judge B pictures.

        Args:
            ids: (B, L), one reward token in each row.
            mask: (B, L), 0 on padding, which is on the right.
            patches: (N, P), of one picture after the other.
            grids: (B, 3), each 1, rows and columns of patches.

        Returns:
            (B, 2), float32: mean of the score, and what its spread is computed from.
        """
        count, length = ids.shape
        hidden = self.backbone(
            input_ids=ids,
            attention_mask=mask,
            position_ids=torch.arange(length, device=ids.device).expand(3, count, length),
            pixel_values=patches,
            image_grid_thw=grids,
            use_cache=False,
        ).last_hidden_state
        return self.rm_head(hidden[ids == self.reward_token].float())


def _own_name(name: str) -> str | None:
    """Name here of a tensor of the file, in either layout of transformers; None: not needed."""
    if name.startswith("lm_head."):
        return None
    if name.startswith(("model.visual.", "model.language_model.")):
        return f"backbone.{name.removeprefix('model.')}"
    if name.startswith("visual."):
        return f"backbone.{name}"
    if name.startswith("model."):
        return f"backbone.language_model.{name.removeprefix('model.')}"
    return name


def load_network(
    path: str | Path,
    shape: QwenShape,
    special: SpecialTokens,
    *,
    device: str,
    dtype: torch.dtype,
) -> HPSv3Network:
    """Read the network tensor by tensor to where it will run.

    Names, shapes and free memory are checked before anything large is read. Besides the weights, no
    more than one tensor is held at a time.

    Args:
        path: A ``.safetensors`` file with names as transformers before or since 4.52 has them.
        shape: Sizes it must have.
        special: Ids of the special tokens.
        device: Where the network is put.
        dtype: Of the backbone; the score head is float32.

    Raises:
        ValueError: The file is damaged, or its names or shapes do not fit.
        MemoryError: The device has not enough free memory.
    """
    safetensors = require("safetensors", "To read weights")
    network = build_empty(lambda: HPSv3Network(shape, special))
    _fill_frequencies(network.backbone)

    def stored_as(name: str) -> torch.dtype:
        return torch.float32 if name.startswith("rm_head.") else dtype

    try:
        with safetensors.safe_open(path, "pt") as file:
            names = {ours: name for name in file.keys() if (ours := _own_name(name))}  # noqa: SIM118
            shapes = {ours: file.get_slice(name).get_shape() for ours, name in names.items()}
            check_fit(network, shapes, path)
            sizes = (t.numel() * stored_as(n).itemsize for n, t in network.state_dict().items())
            _check_memory(sum(sizes), device)
            tensors = {
                ours: file.get_tensor(name).to(device, stored_as(ours), copy=True)
                for ours, name in names.items()
            }
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is no whole .safetensors file: {error}") from error
    strict_load(network, tensors, path)
    network.backbone.to(device, dtype)  # the frequencies too, as in the authors' code
    return network


def _fill_frequencies(backbone: nn.Module) -> None:
    """Give the rotary frequencies, which no file holds, their values."""
    for path, module in backbone.named_modules():
        theta = _VISION_THETA if path.startswith("visual.") else _TEXT_THETA
        for name, buffer in list(module.named_buffers(recurse=False)):
            if name.endswith("inv_freq"):
                count = len(buffer)
                frequencies = 1.0 / theta ** (torch.arange(count, dtype=torch.float) / count)
                module.register_buffer(name, frequencies, persistent=False)


def _check_memory(needed: int, device: str) -> None:
    if torch.device(device).type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
    elif torch.device(device).type == "cpu":
        free = require("psutil", "To see whether HPSv3 fits").virtual_memory().available
    else:
        return
    if free < needed:
        raise MemoryError(
            f"HPSv3 needs {needed / 1e9:.1f} GB on {device}, and {free / 1e9:.1f} GB are free; "
            "close something, choose another device, or let another machine score"
        )
