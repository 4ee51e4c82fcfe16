"""Networks and tokenizers of reward models, small enough to make in a test: random weights."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from chunk_grpo_core.rewards.networks.clip import ClipShape

WORDS = ("cat", "dog", "red", "blue", "photo", "of", "a", "it's")
PROMPTS = ("a photo of a cat", "red dog", "a blue cat")


def byte_letters() -> list[str]:
    """The 256 printable letters that stand for bytes in byte-level vocabularies (GPT-2's order)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in plain]
    return [chr(b) for b in plain] + [chr(256 + i) for i in range(len(others))]


def write_clip_tokenizer(folder: Path) -> int:
    """Write vocab.json and merges.txt of a small CLIP tokenizer; return its size."""
    letters = byte_letters()
    entries = [*letters, *(f"{letter}</w>" for letter in letters)]
    merges = []
    for word in ("cat", "dog", "red"):
        left = word[0]
        for place, letter in enumerate(word[1:], 2):
            right = letter + ("</w>" if place == len(word) else "")
            merges.append((left, right))
            left += right
            entries.append(left)
    entries = [*dict.fromkeys(entries), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    table = {entry: number for number, entry in enumerate(entries)}
    (folder / "vocab.json").write_text(json.dumps(table), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return len(entries)


def write_bert_tokenizer(folder: Path) -> int:
    """Write vocab.txt of a small uncased BERT tokenizer; return its size."""
    entries = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[", "]", "'", "!", "sep", "cls"]
    entries += [*"abcdefghijklmnopqrstuvwxyz", *(f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz")]
    entries += ["cat", "dog", "red", "blue", "photo", "of", "##s"]
    entries = list(dict.fromkeys(entries))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(entries) + "\n", encoding="utf-8")
    return len(entries)


def clip_shape(vocabulary: int) -> ClipShape:
    """Two layers in each tower."""
    return ClipShape(
        text=(32, 2, 2),
        vision=(48, 2, 3),
        features=24,
        activation="gelu",
        vocabulary=vocabulary,
        image=28,
    )


def reference_clip(shape: ClipShape, seed: int = 7):
    """Make the same network as ``clip_network`` would, by transformers alone, random weights."""
    from transformers import CLIPConfig, CLIPModel

    def tower(width, layers, heads):
        return {
            "hidden_size": width,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "intermediate_size": 4 * width,
            "hidden_act": shape.activation,
            "projection_dim": shape.features,
        }

    config = CLIPConfig(
        text_config={
            **tower(*shape.text),
            "vocab_size": shape.vocabulary,
            "max_position_embeddings": shape.tokens,
            "bos_token_id": shape.vocabulary - 2,
            "eos_token_id": shape.vocabulary - 1,
            "pad_token_id": shape.vocabulary - 1,
        },
        vision_config={
            **tower(*shape.vision),
            "image_size": shape.image,
            "patch_size": shape.patch,
        },
        projection_dim=shape.features,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = CLIPModel(config).eval()
        for parameter in network.parameters():
            if parameter.ndim:  # larger than the usual start, so that prompts and pictures count
                parameter.data += 0.1 * torch.randn_like(parameter)
    return network


def write_clip(folder: Path, network, name: str = "model.safetensors") -> Path:
    """Write the weights as PickScore_v1 and OpenAI's repository have them."""
    tensors = {key: tensor.contiguous() for key, tensor in network.state_dict().items()}
    tensors["text_model.embeddings.position_ids"] = torch.arange(77)[None]  # old files have it
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / name)
    return folder / name


def pictures(count: int, height: int = 40, width: int = 56, seed: int = 0) -> torch.Tensor:
    """Random pictures in 8 bits, (B, H, W, 3) in 0..1: smooth blots, no two alike."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 5, 7, generator=generator)
    fine = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    return (fine.permute(0, 2, 3, 1) * 255).round() / 255
