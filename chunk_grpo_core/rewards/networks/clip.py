"""CLIP as a judge: how well does a picture match a prompt?

CLIPScore, PickScore and HPSv2 are one formula, f(cosine(image features, text features)), with
other weights, other preprocessing and another f.

Legend: B pictures, b pictures at once, H W picture size, D features.

References:
    Learning Transferable Visual Models From Natural Language Supervision (Radford et al., 2021),
    arXiv 2103.00020.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...method.reward import Fingerprint, RewardBatch
from ...optional import require
from ...prompts.example import Prompt
from ..files import WeightFile, build_empty, digest, find_file, read_weights, strict_load
from ..pixels import Square, normalised
from .network import LoadOptions, PromptCache, judging, score_pictures
from .open_clip_names import transformers_names
from .tokens import Tokens, clip_tokens

__all__ = [
    "CLIP_H",
    "CLIP_L",
    "ClipShape",
    "CosineReward",
    "clip_config",
    "clip_network",
    "image_features",
    "load_cosine_reward",
    "text_features",
    "vision_network",
]


@dataclass(frozen=True, kw_only=True)
class ClipShape:
    """Sizes of the two towers."""

    text: tuple[int, int, int]
    """Width, layers, attention heads."""
    vision: tuple[int, int, int]
    """Width, layers, attention heads."""
    features: int
    """D."""
    activation: str
    """``"quick_gelu"`` (OpenAI) or ``"gelu"`` (LAION)."""
    vocabulary: int = 49408
    """Token ids; the largest one ends a prompt."""
    tokens: int = 77
    """Longest prompt."""
    image: int = 224
    """Side of the picture."""
    patch: int = 14
    """Side of a patch."""


CLIP_L = ClipShape(text=(768, 12, 12), vision=(1024, 24, 16), features=768, activation="quick_gelu")
"""ViT-L/14 of OpenAI, 428 million parameters."""
CLIP_H = ClipShape(text=(1024, 24, 16), vision=(1280, 32, 16), features=1024, activation="gelu")
"""ViT-H/14 of LAION, 986 million parameters."""


def clip_config(shape: ClipShape) -> Any:
    """Settings of both towers, as transformers takes them."""
    transformers = require("transformers", "To judge with CLIP")

    def tower(width: int, layers: int, heads: int) -> dict[str, Any]:
        return {
            "hidden_size": width,
            "intermediate_size": 4 * width,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "hidden_act": shape.activation,
            "projection_dim": shape.features,
        }

    text = {
        **tower(*shape.text),
        "vocab_size": shape.vocabulary,
        "max_position_embeddings": shape.tokens,
        "bos_token_id": shape.vocabulary - 2,
        "eos_token_id": shape.vocabulary - 1,
        "pad_token_id": shape.vocabulary - 1,
    }
    vision = {**tower(*shape.vision), "image_size": shape.image, "patch_size": shape.patch}
    return transformers.CLIPConfig(
        text_config=text, vision_config=vision, projection_dim=shape.features
    )


def clip_network(shape: ClipShape, tensors: Mapping[str, Tensor], source: str | Path) -> nn.Module:
    """Build both towers (``CLIPModel`` of transformers) around the tensors of a file.

    Args:
        shape: Sizes the file must have.
        tensors: In the layout of transformers or of open_clip.
        source: The file, for messages.

    Raises:
        ValueError: Names or shapes do not fit.
    """
    transformers = require("transformers", "To judge with CLIP")
    network = build_empty(lambda: transformers.CLIPModel(clip_config(shape)))
    return strict_load(network, transformers_names(tensors), source)


def vision_network(
    shape: ClipShape, tensors: Mapping[str, Tensor], source: str | Path
) -> nn.Module:
    """Build the image tower and its projection alone; a text tower in the file is left out.

    Arguments and errors: see :func:`clip_network`.
    """
    transformers = require("transformers", "To judge with CLIP")
    config = clip_config(shape).vision_config
    network = build_empty(lambda: transformers.CLIPVisionModelWithProjection(config))
    named = transformers_names(tensors)
    kept = {k: t for k, t in named.items() if not k.startswith("text_") and k != "logit_scale"}
    return strict_load(network, kept, source)


def image_features(network: Any, levels: Tensor, square: Square) -> Tensor:
    """Normalised features (b, D), float32, of pictures (b, H, W, 3) in 8 bits."""
    size = network.vision_model.config.image_size
    pictures = torch.stack([normalised(square(picture, size)) for picture in levels])
    with judging(network) as device:
        pictures = pictures.to(device, network.visual_projection.weight.dtype)
        pooled = network.vision_model(pixel_values=pictures).pooler_output
        return functional.normalize(network.visual_projection(pooled).float(), dim=-1)


def text_features(network: Any, ids: Tensor) -> Tensor:
    """Normalised features (B, D), float32, of token ids (B, L)."""
    with judging(network) as device:
        pooled = network.text_model(input_ids=ids.to(device)).pooler_output
        return functional.normalize(network.text_projection(pooled).float(), dim=-1)


class CosineReward:
    """A function of the cosine between a picture and its prompt. Implements ``NetworkReward``."""

    def __init__(
        self,
        *,
        name: str,
        network: Any,
        tokens: Tokens,
        square: Square,
        value: Callable[[Tensor], Tensor],
        facts: Fingerprint,
        batch_size: int = 16,
    ) -> None:
        """Judge with a network.

        Args:
            name: For records.
            network: From :func:`clip_network`.
            tokens: Its tokenizer.
            square: How a picture becomes a square.
            value: Cosines (b,) in -1..1 -> scores (b,).
            facts: What belongs into the fingerprint besides tokenizer and dtype.
            batch_size: Pictures in one call of the network.

        Raises:
            ValueError: The tokenizer is not that of the network.
        """
        rows = network.text_model.embeddings.token_embedding.num_embeddings
        if tokens.end != rows - 1 or tokens.size != rows:
            raise ValueError(
                f"the tokenizer has {tokens.size} entries and ends prompts with {tokens.end}; "
                f"the network of {name} needs {rows} entries and {rows - 1}"
            )
        self.name, self.network, self.batch_size = name, network, batch_size
        self._square, self._value = square, value
        self._facts = {**facts, "tokenizer": tokens.digest}
        self._texts = PromptCache(lambda texts: text_features(network, tokens(texts)[0]).cpu())

    @property
    def fingerprint(self) -> Fingerprint:
        """See :class:`~chunk_grpo_core.method.reward.Reward`."""
        return {**self._facts, "dtype": str(next(self.network.parameters()).dtype)}

    def score(self, images: Tensor, examples: Sequence[Prompt]) -> RewardBatch:
        """See :class:`~chunk_grpo_core.method.reward.Reward`."""
        return score_pictures(images, examples, self._judge, self.batch_size)

    def _judge(self, levels: Tensor, prompts: list[str]) -> Tensor:
        pictures = image_features(self.network, levels, self._square).cpu()
        return self._value((pictures * self._texts(prompts)).sum(-1))


def load_cosine_reward(
    options: LoadOptions,
    weights: WeightFile,
    shape: ClipShape,
    *,
    square: Square,
    pixels: str,
    value: Callable[[Mapping[str, Tensor]], Callable[[Tensor], Tensor]],
    clean: Callable[[str], str] = lambda prompt: prompt,
    facts: Fingerprint,
) -> CosineReward:
    """Find the files of a CLIP-like reward, read them and put it together.

    Args:
        options: Where the files are and how the network runs.
        weights: The file.
        shape: Sizes it must have.
        square: How a picture becomes a square.
        pixels: Name and version of that, for the fingerprint.
        value: Tensors of the file -> function from cosines to scores.
        clean: Applied to prompts before they are cut into tokens.
        facts: Further entries of the fingerprint.

    Raises:
        FileNotFoundError: Weights or tokenizer are not on this machine.
        ValueError: They are those of something else.
    """
    path = find_file(weights, options.path, options.folders)
    tokens = clip_tokens((path.parent, *options.tokenizers), clean=clean, length=shape.tokens)
    tensors = read_weights(path)
    network = clip_network(shape, tensors, path).to(options.device, options.torch_dtype)
    return CosineReward(
        name=weights.folder,
        network=network,
        tokens=tokens,
        square=square,
        value=value(tensors),
        facts={**facts, "weights": digest(path), "pixels": pixels},
        batch_size=options.batch_size,
    )
