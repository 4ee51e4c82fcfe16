"""People who like bright pictures, in the place of the one whom a training asks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from chunk_grpo_core.method.asking import Question
from chunk_grpo_core.rewards.taste.events import new_pick
from chunk_grpo_core.rewards.taste.picking.batches import read_batch
from chunk_grpo_core.rewards.taste.picking.view import act, taste_view
from chunk_grpo_core.rewards.taste.picks import Taste

PICKED = 10
"""Clicks of a taste before it is trained on."""


def brightness(picture: Tensor, prompt: str) -> float:
    return float(picture.mean())


@dataclass
class Voter:
    """Clicks once at each look: the best of a group, or the next duel."""

    likes: Callable[[Tensor, str], float] = brightness
    clicks: int = 0
    questions: list[Question] = field(default_factory=list)

    def __call__(self, question: Question) -> bool:
        self.questions.append(question)
        taste = Taste(question.folder)
        shown = {batch["id"]: batch for batch in taste_view(taste)["batches"]}
        for name in question.batches:
            worth = [self.likes(taste.picture(one), one.prompt) for one in batch_of(taste, name)]
            if question.kind == "best" and shown[name]["best"] is None:
                self.click(taste, do="best", batch=name, place=worth.index(max(worth)))
                return False
            if question.kind == "duels" and (duels := shown[name]["duels"]):
                left, right = duels[0]
                answer = int(worth[right] > worth[left])
                self.click(taste, do="duel", batch=name, places=duels[0], answer=answer)
                return False
        return True

    def click(self, taste: Taste, **said: object) -> None:
        self.clicks += 1
        assert act(taste, said)


def batch_of(taste: Taste, name: str):
    return read_batch(taste, name).shown


def taste_for_bright(folder: Path, clicks: int = PICKED, size: int = 4) -> Taste:
    """Picks of grey pictures, some brighter than others, of one prompt each."""
    taste, dice = Taste(folder), torch.Generator().manual_seed(3)
    for number in range(clicks):
        pair = torch.rand(2, 1, 1, 1, generator=dice).expand(2, size, size, 3).contiguous()
        pair = (pair + 0.05 * torch.randn(pair.shape, generator=dice)).clamp(0, 1)
        shown = [taste.keep(one, prompt=f"grey {number}") for one in pair]
        taste.append(new_pick("duel", shown, int(pair[1].mean() > pair[0].mean())))
    return taste
