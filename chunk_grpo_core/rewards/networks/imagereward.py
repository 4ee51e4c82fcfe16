"""ImageReward: BLIP taught with rankings of pictures by people; about -2.3 to 2.

The text tower reads the prompt while it looks at the picture, so nothing of a prompt can be
computed beforehand.

References:
    ImageReward: Learning and Evaluating Human Preferences for Text-to-Image Generation (Xu et al.,
    2023), arXiv 2304.05977.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...method.reward import Fingerprint, RewardBatch
from ...optional import require
from ...prompts.example import Prompt
from ..files import WeightFile, build_empty, digest, find_file, read_weights, strict_load
from ..pixels import cropped, normalised
from .linear_head import linear_head
from .network import LoadOptions, judging, score_pictures
from .tokens import Tokens, bert_tokens

__all__ = [
    "BLIP_LARGE",
    "WEIGHTS",
    "BlipShape",
    "ImageReward",
    "blip_network",
    "blip_scores",
    "load_imagereward",
    "tower_configs",
]

WEIGHTS = WeightFile(
    folder="imagereward",
    name="ImageReward.pt",
    repo="THUDM/ImageReward",
    bytes=1_790_000_000,
    licence="Apache-2.0",
)
_MEAN, _STD = 0.16717362830052426, 1.0333394966054072
"""Of the raw scores on the authors' test set."""


@dataclass(frozen=True, kw_only=True)
class BlipShape:
    """Sizes of the two towers: width, layers, attention heads, inner width."""

    vision: tuple[int, int, int, int]
    text: tuple[int, int, int, int]
    image: int = 224
    patch: int = 16
    vocabulary: int = 30524
    """BERT's 30,522 and two entries that are never used."""
    positions: int = 512
    tokens: int = 35
    """Longest prompt."""


BLIP_LARGE = BlipShape(vision=(1024, 24, 16, 4096), text=(768, 12, 12, 3072))

_VISION_WHOLE = {
    "cls_token": "embeddings.class_embedding",
    "pos_embed": "embeddings.position_embedding",
    "patch_embed.proj.weight": "embeddings.patch_embedding.weight",
    "patch_embed.proj.bias": "embeddings.patch_embedding.bias",
    "norm.weight": "post_layernorm.weight",
    "norm.bias": "post_layernorm.bias",
}
_VISION_PARTS = (
    ("blocks.", "encoder.layers."),
    (".norm1.", ".layer_norm1."),
    (".norm2.", ".layer_norm2."),
    (".attn.qkv.", ".self_attn.qkv."),
    (".attn.proj.", ".self_attn.projection."),
)


def tower_configs(shape: BlipShape) -> tuple[Any, Any]:
    """Settings of the image tower and of the text tower, as transformers takes them."""
    transformers = require("transformers", "To judge with ImageReward")
    vision = transformers.BlipVisionConfig(
        **_sizes(shape.vision),
        image_size=shape.image,
        patch_size=shape.patch,
        hidden_act="gelu",
        layer_norm_eps=1e-6,
    )
    text = transformers.BlipTextConfig(
        **_sizes(shape.text),
        vocab_size=shape.vocabulary,
        encoder_hidden_size=shape.vision[0],
        max_position_embeddings=shape.positions,
        hidden_act="gelu",
        layer_norm_eps=1e-12,
        is_decoder=True,  # makes the layers that look at the picture
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
        sep_token_id=0,
    )
    return vision, text


def blip_network(
    shape: BlipShape, tensors: Mapping[str, Tensor], source: str | Path
) -> nn.ModuleDict:
    """Build the towers ``vision`` and ``text`` and the ``head`` around the tensors of a file.

    Args:
        shape: Sizes the file must have.
        tensors: In the layout of the authors' file.
        source: The file, for messages.

    Raises:
        ValueError: Names or shapes do not fit.
    """
    transformers = require("transformers", "To judge with ImageReward")
    vision, text = tower_configs(shape)
    towers = nn.ModuleDict(
        {
            "vision": build_empty(lambda: transformers.BlipVisionModel(vision)),
            "text": build_empty(lambda: transformers.BlipTextModel(text, add_pooling_layer=False)),
        }
    )
    named, head = _sorted_out(tensors)
    strict_load(towers, named, source)
    towers["head"] = linear_head(head, source)
    return towers


def _sizes(tower: tuple[int, int, int, int]) -> dict[str, int]:
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    return dict(zip(names, tower, strict=True))


def _sorted_out(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Names of the towers as transformers has them, and the layers of the head."""
    named, head = {}, {}
    for name, tensor in tensors.items():
        if name.startswith(("blip.vision_proj.", "blip.text_proj.")):
            continue  # only BLIP's own training used them
        if name.endswith(".position_ids"):
            continue
        if name.startswith("mlp."):
            head[name.removeprefix("mlp.")] = tensor
        elif name.startswith("blip.visual_encoder."):
            inner = name.removeprefix("blip.visual_encoder.")
            for old, new in () if inner in _VISION_WHOLE else _VISION_PARTS:
                inner = inner.replace(old, new)
            named[f"vision.{_VISION_WHOLE.get(inner, inner)}"] = tensor
        else:
            named[name.replace("blip.text_encoder.", "text.")] = tensor
    return named, head


def blip_scores(network: Any, pictures: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    """Scores (b,) of pictures (b, 3, S, S) and token ids and mask (b, L)."""
    with judging(network) as device:
        dtype = next(network["vision"].parameters()).dtype
        seen = network["vision"](pixel_values=pictures.to(device, dtype)).last_hidden_state
        read = network["text"](
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            encoder_hidden_states=seen,
            encoder_attention_mask=torch.ones(seen.shape[:2], dtype=torch.long, device=device),
            is_decoder=False,  # every word sees every word
        ).last_hidden_state
        return (network["head"](read[:, 0].float())[:, 0] - _MEAN) / _STD


class ImageReward:
    """BLIP with a score head. Implements ``NetworkReward``."""

    name = "imagereward"

    def __init__(
        self,
        network: Any,
        tokens: Tokens,
        facts: Fingerprint,
        batch_size: int = 16,
    ) -> None:
        """Judge with a network (:func:`blip_network`) and its tokenizer."""
        self.network, self.batch_size = network, batch_size
        self._tokens = tokens
        self._facts = {**facts, "tokenizer": tokens.digest}

    @property
    def fingerprint(self) -> Fingerprint:
        """See :class:`~chunk_grpo_core.method.reward.Reward`."""
        return {**self._facts, "dtype": str(next(self.network.parameters()).dtype)}

    def score(self, images: Tensor, examples: Sequence[Prompt]) -> RewardBatch:
        """See :class:`~chunk_grpo_core.method.reward.Reward`."""
        return score_pictures(images, examples, self._judge, self.batch_size)

    def _judge(self, levels: Tensor, prompts: list[str]) -> Tensor:
        square, size = cropped("round"), self.network["vision"].config.image_size
        pictures = torch.stack([normalised(square(picture, size)) for picture in levels])
        return blip_scores(self.network, pictures, *self._tokens(prompts))


def load_imagereward(options: LoadOptions) -> ImageReward:
    """Load ImageReward.

    Raises:
        FileNotFoundError: Weights or tokenizer (``vocab.txt`` of uncased BERT) are not on this
            machine.
        ValueError: A file is that of another model.
    """
    path = find_file(WEIGHTS, options.path, options.folders)
    tokens = bert_tokens((path.parent, *options.tokenizers), length=BLIP_LARGE.tokens)
    if tokens.size > BLIP_LARGE.vocabulary:
        raise ValueError(
            f"the tokenizer has {tokens.size} entries, but ImageReward reads uncased BERT's 30522"
        )
    network = blip_network(BLIP_LARGE, read_weights(path), path)
    for tower in ("vision", "text"):
        network[tower].to(options.torch_dtype)
    return ImageReward(
        network.to(options.device),
        tokens,
        {"weights": digest(path), "pixels": "crop-round-1"},
        options.batch_size,
    )
