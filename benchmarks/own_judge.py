"""Does the model know whether its pictures follow their captions? (the reward ``follows_prompt``)

python -m benchmarks.own_judge [--out FILE]

The tiny FLUX draws 8 pictures of each caption (9 steps), which are decoded, encoded again, noised,
and given back to it with the caption, an empty one and a wrong one. At each level of noise and for
sums of levels:

    correlation  of the score with the five attributes that are really there, inside a caption's
                 pictures, mean over captions
    pairs        share of a caption's pairs that it ranks as the attributes do (those that differ by
                 more than 0.1)
    right        share of pictures whose own caption scores above a wrong one

Protocol: the levels and the form of the score were chosen on the first 36 training captions, with
other noise than here. Both kinds of captions are reported: training captions are what the reward
sees in a training, and the held-out ones were never seen by the model. Nothing is chosen here.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from chunk_grpo_core.method.noise import derive_seed
from chunk_grpo_core.models.tiny.model import LATENT_SHAPE, load_tiny_flux, sample_latents
from chunk_grpo_core.models.tiny.policy import tiny_policy

from .race.judge import TESTING, TRAINING
from .taste_rl.people import PROMPT

__all__ = ["main"]

PICTURES, DRAWS = 8, 2
LEVELS = (0.98, 0.95, 0.9, 0.8, 0.7, 0.5)
SUMS = {
    "0.95, 0.9, 0.8, 0.7 (the default)": ((0.95, 0.9, 0.8, 0.7), 1),
    "the same, draws = 2": ((0.95, 0.9, 0.8, 0.7), 2),
    "0.95, 0.8": ((0.95, 0.8), 1),
    "0.9, 0.7, 0.5, draws = 2": ((0.9, 0.7, 0.5), 2),
}
_CAPTIONS = {"training": TRAINING[96:192], "held out": TESTING}


def errors(x_0: Tensor, own: list[str], asked: list[str]) -> Tensor:
    """Errors of each picture with a caption of its group's, (levels, draws, B).

    Args:
        x_0: Latents (B, *latent), group by group.
        own: The caption of each group.
        asked: What the model is told about each group.
    """
    policy = tiny_policy()
    table = torch.zeros(len(LEVELS), DRAWS, len(x_0))

    def work(velocity: Any) -> None:
        for number, (caption, told) in enumerate(zip(own, asked, strict=True)):
            part = slice(number * PICTURES, (number + 1) * PICTURES)
            for k in range(DRAWS):
                dice = torch.Generator().manual_seed(derive_seed("own judge", caption, k))
                eps = torch.randn(LATENT_SHAPE, generator=dice)
                for row, t in enumerate(LEVELS):
                    x_t = (1 - t) * x_0[part] + t * eps
                    off = velocity(x_t, t, told) - (eps - x_0[part])
                    table[row, k, part] = off.square().flatten(1).mean(1)

    with policy.adapter.disabled(), torch.no_grad():
        policy.run(work)
    return table


def of_captions(captions: list[str]) -> dict[str, dict[str, float]]:
    """What each level and each sum of levels is worth."""
    flux, texts = load_tiny_flux(), [text for text in captions for _ in range(PICTURES)]
    noise = torch.randn(len(texts), *LATENT_SHAPE, generator=torch.Generator().manual_seed(95_000))
    with torch.no_grad():
        images = flux.codec.decode(sample_latents(flux, noise, texts, 9)).clamp(0, 1)
        x_0 = flux.codec.encode(images)
    truth = PROMPT.score(images, texts).values.view(-1, PICTURES)
    with_own = errors(x_0, captions, captions)
    gains = errors(x_0, captions, [""] * len(captions)) - with_own
    wrong = errors(x_0, captions, captions[7:] + captions[:7]) - with_own
    sums = {str(level): ((level,), 1) for level in LEVELS} | SUMS

    def chosen(table: Tensor, levels: tuple[float, ...], draws: int) -> Tensor:
        return table[[LEVELS.index(level) for level in levels], :draws].mean((0, 1))

    return {
        name: {
            "units": 2 * len(levels) * draws,
            **_agreement(chosen(gains, levels, draws).view_as(truth), truth),
            "right": round(float((chosen(wrong, levels, draws) > 0).float().mean()), 3),
        }
        for name, (levels, draws) in sums.items()
    }


def _agreement(scores: Tensor, truth: Tensor) -> dict[str, float]:
    varied = truth.std(1) > 1e-3
    r = torch.tensor(
        [
            float(torch.corrcoef(torch.stack(rows))[0, 1])
            for rows in zip(scores[varied], truth[varied], strict=True)
        ]
    )
    differ = truth[:, :, None] - truth[:, None] > 0.1
    right = (scores[:, :, None] > scores[:, None])[differ]
    return {
        "correlation": round(float(r.mean()), 3),
        "half_interval": round(float(1.96 * r.std() / len(r) ** 0.5), 3),
        "captions": len(r),
        "pairs": round(float(right.float().mean()), 3),
    }


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.own_judge",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    torch.set_num_threads(1)
    begin = time.process_time()
    results = {kind: of_captions(list(captions)) for kind, captions in _CAPTIONS.items()}
    for kind, rows in results.items():
        print(kind)
        for name, row in rows.items():
            print(f"  {name:36} {row}")
    if options.out:
        seconds = round(time.process_time() - begin, 1)
        text = json.dumps({"seconds": seconds, **results}, indent=1) + "\n"
        options.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
