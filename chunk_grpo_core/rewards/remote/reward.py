"""A reward that another process or machine computes: ``chunk-grpo serve-reward`` or any server that
speaks the same (``rewards/remote/wire.py``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ...method.reward import Fingerprint, RewardBatch, RewardFailed, checked_inputs
from ...prompts.example import Prompt
from ...settings.declared import shortened
from .http import JsonServer
from .wire import parse_answer, to_question

__all__ = ["RemoteReward"]


class RemoteReward:
    """Sends pictures, prompts and their metadata to a reward server.

    Pictures travel as 8-bit PNG, so the score is that of the saved picture. A picture has no valid
    score if it is not finite, if the server says so, or if its request failed for good.
    """

    name = "remote_http"
    is_remote = True

    def __init__(self, server: JsonServer, *, batch_size: int = 8) -> None:
        """Ask ``server``, up to ``batch_size`` pictures in one request (1 to 1024)."""
        if not 1 <= batch_size <= 1024:
            raise ValueError(f"batch_size is {batch_size}; it must be 1 to 1024")
        self.server, self.batch_size = server, batch_size

    @property
    def fingerprint(self) -> Fingerprint:
        """Name and fingerprint of the reward behind the server, which is asked each time.

        Raises:
            RewardFailed: The server does not answer ``GET /health``, or states what is no record.
        """
        health = self.server.get("/health")
        health = health if isinstance(health, dict) else {}
        stated = health.get("fingerprint")
        facts = {"reward": health.get("name"), **(stated if isinstance(stated, dict) else {})}
        facts = {k: v for k, v in facts.items() if isinstance(v, (str, int, float))}
        if len(facts) > 64 or not all(map(_can_be_recorded, (*facts, *facts.values()))):
            raise RewardFailed(
                f"{self.server.url} states the fingerprint {shortened(facts)}; a record can hold "
                "64 finite numbers and texts of one line"
            )
        return {f"server/{key}": value for key, value in facts.items()}

    def score(self, images: Tensor, examples: Sequence[Prompt]) -> RewardBatch:
        """See :class:`~chunk_grpo_core.method.reward.Reward`.

        Raises:
            ValueError: Shapes or lengths do not match.
            RewardFailed: No request was answered.
        """
        images, examples = checked_inputs(images, examples)
        usable: list[int] = images.isfinite().flatten(1).all(1).nonzero()[:, 0].tolist()
        chunks = [usable[i : i + self.batch_size] for i in range(0, len(usable), self.batch_size)]
        questions = [to_question(images[chunk], [examples[i] for i in chunk]) for chunk in chunks]
        values = torch.full((len(images),), math.nan)
        extras: dict[str, Tensor] = {}
        answers = self.server.post("/compute", questions, parse_answer)
        for chunk, answer in zip(chunks, answers, strict=True):
            if answer is not None:
                values[chunk] = answer.known
                for name, row in answer.extras.items():
                    extras.setdefault(name, torch.full_like(values, math.nan))[chunk] = row
        return RewardBatch(values, values.isfinite(), extras)


def _can_be_recorded(fact: str | float) -> bool:
    if isinstance(fact, str):
        return len(fact) <= 1000 and fact.isprintable()
    return abs(fact) < 2**63
