"""Text encoder of the tiny world: a word tokenizer with 21 words and one embedding layer.

Legend: B captions, L = 8 tokens each, 96 token features, 64 pooled features.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ...settings.declared import shortened
from .world import ATTRIBUTES, HELD_OUT, TRAIN, caption, words_of

__all__ = ["POOLED_DIM", "TEXT_DIM", "TEXT_LENGTH", "VOCABULARY", "TinyTextEncoder", "tokenize"]

#: Tokens of every caption; shorter ones are padded at the end with token 0.
TEXT_LENGTH = 8
TEXT_DIM = 96
POOLED_DIM = 64


def _vocabulary() -> tuple[str, ...]:
    """Padding, then all words of all captions, attribute values first."""
    values = [value for values in ATTRIBUTES.values() for value in values]
    spoken = sorted({word for scene in (*TRAIN, *HELD_OUT) for word in caption(scene).split()})
    return tuple(dict.fromkeys(["", *values, *spoken]))


#: Known words; the position of a word is its token. Token 0 is padding.
VOCABULARY: tuple[str, ...] = _vocabulary()
_TOKENS = {word: token for token, word in enumerate(VOCABULARY)}


def tokenize(texts: Sequence[str]) -> Tensor:
    """Tokens of B texts, int64, shape (B, L). Empty texts are all padding.

    Raises:
        ValueError: A word is unknown (the message lists the known ones), or a text has more than
            L words.
    """
    rows = []
    for text in texts:
        words = words_of(text)
        unknown = next((word for word in words if word not in _TOKENS), None)
        if unknown is not None:
            vocabulary = ", ".join(VOCABULARY[1:])
            raise ValueError(
                f"the prompt {shortened(text)} has the unknown word {shortened(unknown)}; known "
                f"words: {vocabulary}"
            )
        if len(words) > TEXT_LENGTH:
            raise ValueError(
                f"the prompt {shortened(text)} has {len(words)} words; at most {TEXT_LENGTH} are "
                "possible"
            )
        rows.append([_TOKENS[word] for word in words] + [0] * (TEXT_LENGTH - len(words)))
    return torch.tensor(rows, dtype=torch.long).reshape(-1, TEXT_LENGTH)


class TinyTextEncoder(nn.Module):
    """Token embedding plus learned positions; pooled is one linear layer over all tokens.

    The positions are needed here because FLUX itself gives text tokens no position
    (its ``txt_ids`` are zero).
    """

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(len(VOCABULARY), TEXT_DIM)
        self.positions = nn.Parameter(0.5 * torch.randn(TEXT_LENGTH, TEXT_DIM))
        self.pool = nn.Linear(TEXT_DIM * TEXT_LENGTH, POOLED_DIM)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Features of B captions.

        Args:
            tokens: int64, shape (B, L), from :func:`tokenize`.

        Returns:
            Token features (B, L, 96) and pooled features (B, 64).
        """
        features = self.tokens(tokens) + self.positions
        return features, self.pool(features.flatten(1))

    def encode(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """:func:`tokenize` and :meth:`forward` in one call.

        Raises:
            ValueError: See :func:`tokenize`.
        """
        return self(tokenize(texts).to(self.positions.device))
