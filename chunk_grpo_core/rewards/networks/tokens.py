"""From prompts to token ids, offline: CLIP's byte pairs and BERT's word pieces.

A prompt is data: no text in it becomes a special token. Start, end and padding are put around it
here, and nowhere else, so that nothing depends on the version of transformers.

Legend: B prompts, L tokens a model reads.
"""

from __future__ import annotations

import hashlib
import html
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...optional import require
from ..files import digest

__all__ = [
    "BERT_FILES",
    "CLIP_FILES",
    "Tokens",
    "bert_tokens",
    "clip_tokens",
    "folder_with",
    "web_text",
]

log = logging.getLogger(__name__)

CLIP_FILES = ("vocab.json", "merges.txt")
BERT_FILES = ("vocab.txt",)

_START, _END = "<|startoftext|>", "<|endoftext|>"
# What OpenAI's CLIP cuts a text into before pairs are merged, less its special tokens.
_CLIP_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_CURLY = str.maketrans({"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"'})


@dataclass(frozen=True)
class Tokens:
    """A tokenizer and the frame it puts around every prompt."""

    encode: Callable[[str], list[int]]
    """A text -> its ids, without special tokens."""
    start: int
    end: int
    padding: int
    length: int
    """L; longer prompts are cut, with a warning, and still end in ``end``."""
    size: int
    """Entries of the vocabulary."""
    digest: str
    """Fingerprint of the files."""

    def __call__(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Ids and mask of B prompts, both int64 of shape (B, L); the mask is 0 on padding."""
        ids = torch.full((len(prompts), self.length), self.padding)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            body = self.encode(prompt)
            if (cut := len(body) + 2 - self.length) > 0:
                log.warning("the last %d tokens of a prompt are not read: %.60s...", cut, prompt)
            framed = [self.start, *body[: self.length - 2], self.end]
            ids[row, : len(framed)] = torch.tensor(framed)
            mask[row, : len(framed)] = 1
        return ids, mask


def web_text(prompt: str) -> str:
    """Clean a prompt as open_clip does: HTML entities undone, twice; straight quotes.

    open_clip also repairs wrongly decoded text with ftfy, which is left out: a score must not
    depend on which packages are installed.
    """
    return html.unescape(html.unescape(prompt)).translate(_CURLY)


def clip_tokens(
    folders: Sequence[str | Path],
    *,
    clean: Callable[[str], str] = lambda prompt: prompt,
    length: int = 77,
) -> Tokens:
    """Load CLIP's tokenizer: lower case, byte pairs.

    Args:
        folders: The first that holds ``vocab.json`` and ``merges.txt`` is taken.
        clean: Applied to every prompt first.
        length: L.

    Raises:
        FileNotFoundError: No folder holds the files.
        ValueError: They are not those of a CLIP tokenizer.
    """
    folder = folder_with(CLIP_FILES, folders, "CLIP's tokenizer", "openai/clip-vit-large-patch14")
    tokenizers = require("tokenizers", "To read prompts")
    rules, cuts = tokenizers.normalizers, tokenizers.pre_tokenizers
    pairs = tokenizers.models.BPE
    vocabulary, merges = pairs.read_file(*(str(folder / name) for name in CLIP_FILES))
    special = _special(vocabulary, (_START, _END), folder)
    model = pairs(vocabulary, merges, end_of_word_suffix="</w>", unk_token=_END)
    backend = tokenizers.Tokenizer(model)
    spaces = rules.Replace(tokenizers.Regex(r"\s+"), " ")
    backend.normalizer = rules.Sequence([rules.NFC(), spaces, rules.Lowercase()])
    words = cuts.Split(tokenizers.Regex(_CLIP_WORDS), behavior="removed", invert=True)
    backend.pre_tokenizer = cuts.Sequence([words, cuts.ByteLevel(add_prefix_space=False)])
    start, end = special
    return _tokens(backend, clean, (start, end, end), length, folder, CLIP_FILES)


def bert_tokens(folders: Sequence[str | Path], *, length: int) -> Tokens:
    """Load the tokenizer of uncased BERT: lower case, word pieces.

    Args:
        folders: The first that holds ``vocab.txt`` is taken.
        length: L.

    Raises:
        FileNotFoundError: No folder holds the file.
        ValueError: It is not that of a BERT tokenizer.
    """
    folder = folder_with(BERT_FILES, folders, "BERT's tokenizer", "google-bert/bert-base-uncased")
    tokenizers = require("tokenizers", "To read prompts")
    pieces = tokenizers.models.WordPiece
    vocabulary = pieces.read_file(str(folder / BERT_FILES[0]))
    padding, _, start, end = _special(vocabulary, ("[PAD]", "[UNK]", "[CLS]", "[SEP]"), folder)
    backend = tokenizers.Tokenizer(pieces(vocabulary, unk_token="[UNK]"))
    backend.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    return _tokens(backend, str, (start, end, padding), length, folder, BERT_FILES)


def _tokens(
    backend: Any,
    clean: Callable[[str], str],
    special: tuple[int, int, int],
    length: int,
    folder: Path,
    files: Sequence[str],
) -> Tokens:
    both = "".join(digest(folder / name) for name in files)
    return Tokens(
        lambda prompt: backend.encode(clean(prompt), add_special_tokens=False).ids,
        *special,
        length=length,
        size=backend.get_vocab_size(),
        digest=hashlib.sha256(both.encode()).hexdigest(),
    )


def folder_with(files: Sequence[str], folders: Sequence[str | Path], what: str, repo: str) -> Path:
    """The first folder that holds all files.

    Args:
        files: File names.
        folders: Where to look.
        what: What is looked for, for the message.
        repo: Repository on the Hugging Face hub that has the files, for the message.

    Raises:
        FileNotFoundError: No folder holds them.
    """
    for folder in map(Path, folders):
        if all((folder / name).is_file() for name in files):
            return folder
    raise FileNotFoundError(
        f"{what} was not found: put {' and '.join(files)} from https://huggingface.co/{repo} "
        f"beside the weights; looked in: {', '.join(map(str, folders))}"
    )


def _special(vocabulary: dict[str, int], names: Sequence[str], folder: Path) -> list[int]:
    if missing := [name for name in names if name not in vocabulary]:
        raise ValueError(f"the vocabulary in {folder} lacks {', '.join(missing)}")
    return [vocabulary[name] for name in names]
