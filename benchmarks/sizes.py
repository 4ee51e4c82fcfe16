"""Memory that training FLUX.1 needs, computed; nothing is measured here.

python -m benchmarks.sizes

Counted: weights, LoRA with gradient and two moments (16 bytes for each parameter), what
checkpoints keep (the input of every block), one block's own activations (20 tensors of tokens x
width, as the tiny FLUX has, and as many again for float32 copies that LoRA layers keep), all in 16
bits; VAE; 1 GiB for CUDA and its
libraries. Pictures are decoded when no activations are held: three tensors of 256 channels at full
size. Main memory holds the trajectories in float32.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from functools import cache

import torch
from torch import nn

from chunk_grpo_core.lora.adapter import LoraConfig
from chunk_grpo_core.lora.targets import target_pattern
from chunk_grpo_core.optional import require

from .random_flux import FLUX

__all__ = ["Memory", "lora_parameters", "memory", "parameters", "table"]

GIB = 2**30
_VAE, _CUDA = 0.16, 1.0
_BLOCK = 40


@dataclass(frozen=True, kw_only=True)
class Memory:
    """GiB."""

    weights: float
    lora: float
    activations: float
    decoding: float
    trajectories: float
    """In main memory, for one iteration."""

    @property
    def total(self) -> float:
        """On the card."""
        return self.weights + self.lora + max(self.activations, self.decoding) + _VAE + _CUDA


@cache
def _linears() -> dict[str, tuple[int, int]]:
    """Name -> inputs and outputs of every linear layer of FLUX.1-dev."""
    with torch.device("meta"):
        model = require("diffusers", "To count FLUX").FluxTransformer2DModel(**FLUX.config)
    return {
        name: (child.in_features, child.out_features)
        for name, child in model.named_modules()
        if isinstance(child, nn.Linear)
    }


def parameters(names: str = "") -> int:
    """Weights of the linear layers whose names hold a word; biases and norms are 0.01 %."""
    return sum(a * b for name, (a, b) in _linears().items() if names in name)


def lora_parameters(config: LoraConfig) -> int:
    """Of both factors of every layer."""
    pattern = target_pattern(config.targets)
    return sum(
        config.rank * (a + b) for name, (a, b) in _linears().items() if pattern.fullmatch(name)
    )


def _weights(precision: str) -> float:
    in_8_bits = sum(
        a * b for name, (a, b) in _linears().items() if "blocks." in name and "norm" not in name
    )
    total = parameters()
    bytes_in = {
        "bf16": 2.0 * total,
        "fp8": in_8_bits + 2.0 * (total - in_8_bits),
        "nf4": (0.5 + 4 / 64) * total,  # and a float32 for each 64 weights
    }
    return bytes_in[precision] / GIB


def memory(
    precision: str,
    pixels: int,
    batch: int,
    lora: LoraConfig,
    *,
    group: int = 12,
    prompts: int = 4,
    steps: int = 17,
) -> Memory:
    """What a training needs, with checkpointing.

    Args:
        precision: bf16, fp8 or nf4.
        pixels: Width and height.
        batch: Sample-steps in one call with gradients.
        lora: The adapter.
        group: Samples of a prompt.
        prompts: Groups of an iteration.
        steps: Of the rollout.
    """
    tokens = (pixels // 16) ** 2 + FLUX.text
    blocks = FLUX.config["num_layers"] + FLUX.config["num_single_layers"]
    one = batch * tokens * FLUX.width * 2
    latents = FLUX.channels * (pixels // 8) ** 2 * 4
    return Memory(
        weights=_weights(precision),
        lora=16 * lora_parameters(lora) / GIB,
        activations=(blocks + _BLOCK) * one / GIB,
        decoding=batch * 3 * 256 * pixels**2 * 2 / GIB,
        trajectories=(steps + 1) * group * prompts * latents / GIB,
    )


def table(rank: int) -> str:
    """Every precision and size."""
    lora = LoraConfig(rank=rank, alpha=2.0 * rank)
    head = (
        "| weights | pixels | weights, GiB | LoRA | activations, 1 / 4 samples | decoding, 1 / 4 | "
        "card in all, 1 / 4 | main memory, group 12 / 24 |"
    )
    rows = []
    for precision in ("bf16", "fp8", "nf4"):
        for pixels in (512, 720, 1024):
            one, four = (memory(precision, pixels, batch, lora) for batch in (1, 4))
            large = memory(precision, pixels, 1, lora, group=24)
            rows.append(
                f"| {precision} | {pixels} | {one.weights:.1f} | {one.lora:.1f} | "
                f"{one.activations:.1f} / {four.activations:.1f} | "
                f"{one.decoding:.1f} / {four.decoding:.1f} | "
                f"{one.total:.0f} / {four.total:.0f} | "
                f"{one.trajectories:.1f} / {large.trajectories:.1f} |"
            )
    return "\n".join([head, "|---" * 8 + "|", *rows])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.sizes",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rank", type=int, default=64, help="of the LoRA")
    options = parser.parse_args()
    print(table(options.rank))
    lora = lora_parameters(LoraConfig(rank=options.rank))
    print(f"{parameters() / 1e9:.2f} billion weights, {lora / 1e6:.0f} million in the LoRA")


if __name__ == "__main__":
    main()
