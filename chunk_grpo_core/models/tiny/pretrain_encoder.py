"""Train the tiny world's picture encoder and write its file: about two minutes on one core.

python -m chunk_grpo_core.models.tiny.pretrain_encoder [--out FILE] [--seed 0] [--steps 800]

It learns to name the five attributes of a rendered scene, also where colours are off the palette
and the picture is tinted, blurred or noisy. The same seed gives the same weights.

Legend: B pictures in a batch.
"""

from __future__ import annotations

import argparse
import logging
import math
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...optional import require
from .encoder import ENCODER_ASSET, TinyEncoderNetwork
from .render import palette, render_indices
from .world import HELD_OUT, TRAIN, indices_of

__all__ = ["faulty_pictures", "named_right", "train_encoder"]

_LOG = logging.getLogger(__name__)
_BATCH = 64


def faulty_pictures(indices: Tensor, dice: torch.Generator, amount: float = 1.0) -> Tensor:
    """Draw scenes with tints, blur and noise, (B, 3, 64, 64) in 0..1.

    Args:
        indices: (B, 5).
        dice: Source of everything that is drawn.
        amount: Of the faults; 0 leaves clean pictures.
    """
    count = len(indices)
    colours = palette()[indices[:, [2, 4]]]
    jitter = 0.1 * amount * torch.randn(count, 2, 3, generator=dice)
    pictures = render_indices(indices, dice, (colours + jitter).clamp(0, 1)).movedim(-1, 1)
    blurred = functional.avg_pool2d(pictures, 5, 1, 2, count_include_pad=False)
    blur = amount * torch.rand(count, 1, 1, 1, generator=dice)
    pictures = pictures + blur * (blurred - pictures)
    tint = 1 + 0.2 * amount * torch.randn(count, 3, 1, 1, generator=dice)
    shift = 0.08 * amount * torch.randn(count, 1, 1, 1, generator=dice)
    grain = 0.08 * amount * torch.rand(count, 1, 1, 1, generator=dice)
    noise = torch.randn(pictures.shape, generator=dice)
    return (pictures * tint + shift + grain * noise).clamp(0, 1)


def train_encoder(steps: int, seed: int) -> TinyEncoderNetwork:
    """Train the network (AdamW, cosine schedule)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = TinyEncoderNetwork()
    dice = torch.Generator().manual_seed(seed)
    table = indices_of(TRAIN)
    optimiser = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=1e-3)
    for step in range(steps):
        ramp = min(1.0, (step + 1) / 50)
        cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
        optimiser.param_groups[0]["lr"] = 3e-3 * ramp * (0.02 + 0.98 * cosine)
        wanted = table[torch.randint(len(table), (_BATCH,), generator=dice)]
        pixels = faulty_pictures(wanted, dice)
        logits = network.attributes(pixels)
        losses = [functional.cross_entropy(row, wanted[:, i]) for i, row in enumerate(logits)]
        loss = torch.stack(losses).sum()
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        if (step + 1) % 100 == 0:
            _LOG.info("step %d loss %.4f", step + 1, loss.item())
    return network.train(False).requires_grad_(False)


@torch.no_grad()
def named_right(network: TinyEncoderNetwork, amount: float, seed: int = 1) -> list[float]:
    """Share of unseen scenes of which it names each of the five attributes."""
    dice = torch.Generator().manual_seed(seed)
    wanted = indices_of(HELD_OUT).repeat(4, 1)
    logits = network.attributes(faulty_pictures(wanted, dice, amount))
    return [float((row.argmax(1) == wanted[:, i]).float().mean()) for i, row in enumerate(logits)]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=ENCODER_ASSET)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=800)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    files = require("safetensors.torch", "To write the encoder of the tiny world")
    network = train_encoder(options.steps, options.seed)
    tensors = {k: v.half().contiguous() for k, v in network.state_dict().items()}
    files.save_file(tensors, str(options.out), metadata={"version": "1"})
    for amount in (0.0, 1.0):
        _LOG.info("named right, faults %.0f: %s", amount, named_right(network, amount))


if __name__ == "__main__":
    main()
