"""Make the taste that comes with the pack: picks of a simulated person who likes vivid colours.

    python tools/example_taste.py

64 times the best of four pictures of the tiny FLUX, of captions that it is trained on; the person
takes the one with the highest reward ``saturation``, and in one case of ten another one.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).resolve().parents[1]))

from chunk_grpo_core.models.tiny.model import load_tiny_flux, sample_images
from chunk_grpo_core.models.tiny.world import TRAIN, caption
from chunk_grpo_core.rewards import load_reward
from chunk_grpo_core.rewards.taste.events import new_pick
from chunk_grpo_core.rewards.taste.picks import Taste

FOLDER = Path(__file__).resolve().parents[1] / "example_workflows" / "example_taste"
GROUPS, SIZE, WRONG, STEPS = 64, 4, 0.1, 5


def main() -> None:
    shutil.rmtree(FOLDER, ignore_errors=True)
    taste, vivid = Taste(FOLDER), load_reward("saturation")
    places = torch.randperm(len(TRAIN), generator=torch.Generator().manual_seed(1))[:GROUPS]
    texts = [caption(TRAIN[place]) for place in places.tolist() for _ in range(SIZE)]
    pictures, seeds = draw(texts)
    scores = vivid.score(pictures, texts).values.split(SIZE)
    dice = torch.Generator().manual_seed(2)
    picks = []
    for start, of_group in zip(range(0, len(texts), SIZE), scores, strict=True):
        is_wrong = bool(torch.rand((), generator=dice) < WRONG)
        shown = [
            taste.keep(pictures[i], prompt=texts[i], seed=seeds[i][0], index=seeds[i][1])
            for i in range(start, start + SIZE)
        ]
        picks.append(new_pick("best", shown, (int(of_group.argmax()) + is_wrong) % SIZE))
    taste.extend(picks)


def draw(texts: list[str], batch: int = 32) -> tuple[torch.Tensor, list[tuple[int, int]]]:
    """Pictures of the tiny FLUX, and of each the seed of its batch and its place there."""
    flux, drawn, seeds = load_tiny_flux(), [], []
    for seed in range(0, len(texts), batch):
        some = texts[seed : seed + batch]
        drawn.append(sample_images(flux, some, seed, STEPS))
        seeds += [(seed, index) for index in range(len(some))]
    return torch.cat(drawn), seeds


if __name__ == "__main__":
    main()
