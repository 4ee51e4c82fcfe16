"""Prompts as FLUX.1 reads them: T5 features and CLIP's pooled features, computed once and kept.

The encoders are larger than many cards. They are loaded only when a prompt is new, before the
transformer, and let go at once.

Legend: L text tokens, D P widths of the two encoders.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...optional import require
from ...prompts.example import Prompt, examples_of
from ..encoded_prompts import encoded_prompts
from ..kept_weights import to_type
from ..tensor_cache import TensorCache
from ..weight_file import read_header, read_tensors
from .files import find_part
from .transformer import check_same_names

__all__ = ["TextSource", "encode_prompts", "load_clip", "load_t5"]

_CLIP_HEAD = 64


@dataclass(frozen=True, kw_only=True)
class TextSource:
    """Where the text encoders are: folders of diffusers, or files."""

    clip: Path
    t5: Path
    clip_tokenizer: Path
    """A folder with vocab.json and merges.txt, or tokenizer.json."""
    t5_tokenizer: Path
    """A folder with tokenizer.json or spiece.model."""
    max_tokens: int
    """L; longer prompts are cut, shorter ones padded."""

    def fingerprint(self) -> list[object]:
        """Names, sizes and times of everything that the features depend on."""
        sources = (self.clip, self.t5, self.clip_tokenizer, self.t5_tokenizer)
        files = (
            file
            for source in sources
            for file in (sorted(source.iterdir()) if source.is_dir() else [source])
        )
        return [self.max_tokens, *([f.name, f.stat().st_size, f.stat().st_mtime_ns] for f in files)]


def encode_prompts(
    prompts: Sequence[Prompt],
    source: TextSource,
    cache: TensorCache,
    dtype: torch.dtype,
    device: torch.device,
) -> Callable[[str], tuple[Tensor, Tensor]]:
    """Encode the texts of all prompts that the cache lacks, each text once.

    Args:
        prompts: All that will be asked for.
        source: The encoders.
        cache: Where features are kept; what it has no room for stays in memory.
        dtype: Type to compute in and to keep.
        device: Where encoders compute, and where features are returned.

    Returns:
        Text -> features (1, L, D) and pooled features (1, P). It raises a ValueError for a text
        that was not among those of ``prompts``.

    Raises:
        FileNotFoundError: An encoder or tokenizer is missing; only when a prompt is new.
        ValueError: A file is not the encoder it was given for.
    """
    texts = list(dict.fromkeys(example.text for example in examples_of(prompts)))
    facts = json.dumps([source.fingerprint(), str(dtype)])
    return encoded_prompts(texts, facts, cache, lambda: _encoders(source, dtype, device), device)


def load_clip(source: Path, dtype: torch.dtype, end_of_text: int) -> nn.Module:
    """Load CLIP-L's text encoder, on the CPU.

    Args:
        source: A folder of transformers, or a .safetensors file.
        dtype: Type of the weights.
        end_of_text: The tokenizer's last token, where pooled features are read.
    """
    transformers = require("transformers", "To encode prompts")
    if source.is_dir():
        return transformers.CLIPTextModel.from_pretrained(
            source, dtype=dtype, local_files_only=True
        )
    state = _text_weights(source, "clip", dtype)
    words, width = state["text_model.embeddings.token_embedding.weight"].shape
    config = transformers.CLIPTextConfig(
        vocab_size=words,
        hidden_size=width,
        projection_dim=width,
        intermediate_size=len(state["text_model.encoder.layers.0.mlp.fc1.weight"]),
        num_hidden_layers=_layers(state, "text_model.encoder.layers."),
        num_attention_heads=width // _CLIP_HEAD,
        max_position_embeddings=len(state["text_model.embeddings.position_embedding.weight"]),
        hidden_act="quick_gelu",
        eos_token_id=end_of_text,
    )
    model = transformers.CLIPTextModel(config)
    # transformers 5 has dropped the first part of these names.
    start = "" if "text_model.final_layer_norm.weight" in model.state_dict() else "text_model."
    prefixes = ("text_model.encoder.", "text_model.embeddings.", "text_model.final_layer_norm.")
    weights = {
        name.removeprefix(start): tensor
        for name, tensor in state.items()
        if name.startswith(prefixes) and not name.endswith("position_ids")
    }
    return _fill(model, weights, source, dtype)


def load_t5(source: Path, dtype: torch.dtype) -> nn.Module:
    """Load T5's encoder from a folder or a .safetensors file, on the CPU."""
    transformers = require("transformers", "To encode prompts")
    if source.is_dir():
        return transformers.T5EncoderModel.from_pretrained(
            source, dtype=dtype, local_files_only=True
        )
    state = _text_weights(source, "t5", dtype)
    first = "encoder.block.0.layer."
    words, width = state["shared.weight"].shape
    buckets, heads = state[f"{first}0.SelfAttention.relative_attention_bias.weight"].shape
    config = transformers.T5Config(
        vocab_size=words,
        d_model=width,
        d_kv=len(state[f"{first}0.SelfAttention.q.weight"]) // heads,
        d_ff=len(state[f"{first}1.DenseReluDense.wi_0.weight"]),
        num_layers=_layers(state, "encoder.block."),
        num_heads=heads,
        relative_attention_num_buckets=buckets,
        feed_forward_proj="gated-gelu",
    )
    weights = {name: t for name, t in state.items() if name.startswith(("shared.", "encoder."))}
    weights["encoder.embed_tokens.weight"] = state["shared.weight"]
    with torch.device("meta"):
        model = transformers.T5EncoderModel(config)
    return _fill(model, weights, source, dtype)


def _fill(model: nn.Module, state: dict[str, Tensor], path: Path, dtype: torch.dtype) -> nn.Module:
    check_same_names(state, model, path)
    model.load_state_dict(state, assign=True)
    return model.to(dtype)


def _text_weights(path: Path, kind: str, dtype: torch.dtype) -> dict[str, Tensor]:
    file = read_header(path)
    if file.is_gguf:
        raise ValueError(f"{path} is a GGUF file; text encoders are read from .safetensors files")
    part = find_part(file, kind)
    return to_type(read_tensors(part.file, part.prefix), dtype)


def _layers(state: Mapping[str, Tensor], start: str) -> int:
    return 1 + max(int(n[len(start) :].split(".")[0]) for n in state if n.startswith(start))


def _encoders(
    source: TextSource, dtype: torch.dtype, device: torch.device
) -> Callable[[str], tuple[Tensor, Tensor]]:
    """Load encoders and tokenizers; they live as long as the function that is returned."""
    transformers = require("transformers", "To encode prompts")
    clip_words = _tokenizer(
        transformers.CLIPTokenizer, source.clip_tokenizer, "CLIP", ("vocab.json", "tokenizer.json")
    )
    t5_words = _tokenizer(
        transformers.T5TokenizerFast, source.t5_tokenizer, "T5", ("tokenizer.json", "spiece.model")
    )
    clip: Any = load_clip(source.clip, dtype, clip_words.eos_token_id).train(False).to(device)
    t5 = load_t5(source.t5, dtype).train(False).to(device)

    def ids(tokenizer: Any, prompt: str, length: int) -> Tensor:
        options = {"padding": "max_length", "max_length": length, "truncation": True}
        return tokenizer([prompt], return_tensors="pt", **options).input_ids.to(device)

    @torch.no_grad()
    def encode(prompt: str) -> tuple[Tensor, Tensor]:
        length = clip.config.max_position_embeddings
        pooled = clip(ids(clip_words, prompt, length)).pooler_output
        features = t5(ids(t5_words, prompt, source.max_tokens))[0]
        return features.to("cpu", dtype), pooled.to("cpu", dtype)

    return encode


def _tokenizer(kind: Any, folder: Path, title: str, files: tuple[str, ...]) -> Any:
    if not any((folder / name).is_file() for name in files):
        raise FileNotFoundError(
            f"{folder} holds no {title} tokenizer ({' or '.join(files)}). Take the folder from a "
            "FLUX.1 pipeline (tokenizer, tokenizer_2), or from ComfyUI (comfy/sd1_tokenizer, "
            "comfy/text_encoders/t5_tokenizer)"
        )
    return kind.from_pretrained(folder, local_files_only=True)
