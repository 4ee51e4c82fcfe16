"""A reward that another process or machine computes: ``chunk-grpo serve-reward`` or any server that
speaks the same (``rewards/remote/wire.py``).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ...method.reward import Fingerprint, RewardBatch, RewardFailed, checked_inputs
from ...prompts.example import Prompt
from ...settings.declared import shortened
from .http import HttpFailed, JsonServer
from .wire import parse_answer, to_question

__all__ = ["RemoteReward", "raise_if_all_failed"]

log = logging.getLogger(__name__)


class RemoteReward:
    """Sends pictures, prompts and their metadata to a reward server.

    Pictures travel as 8-bit PNG, so the score is that of the saved picture. A picture has no valid
    score if it is not finite, if the server says so, or if its request failed for good.
    """

    def __init__(self, server: JsonServer, *, batch_size: int = 8) -> None:
        """Ask ``server``, up to ``batch_size`` pictures in one request (1 to 1024)."""
        if not 1 <= batch_size <= 1024:
            raise ValueError(f"batch_size is {batch_size}; it must be 1 to 1024")
        self.server, self.batch_size = server, batch_size

    @property
    def name(self) -> str:
        """``"remote_http"``."""
        return "remote_http"

    @property
    def fingerprint(self) -> Fingerprint:
        """Name and fingerprint of the reward behind the server, which is asked each time.

        Raises:
            RewardFailed: The server does not answer ``GET /health``, or states what is no record.
        """
        try:
            health = self.server.get("/health")
        except HttpFailed as error:
            raise RewardFailed(str(error)) from error
        health = health if isinstance(health, dict) else {}
        stated = health.get("fingerprint")
        facts = {"reward": health.get("name"), **(stated if isinstance(stated, dict) else {})}
        facts = {k: v for k, v in facts.items() if isinstance(v, (str, int, float))}
        texts = [str(text) for pair in facts.items() for text in pair]
        numbers = [value for value in facts.values() if isinstance(value, (int, float))]
        if (
            len(facts) > 64
            or not all(text.isprintable() and len(text) <= 1000 for text in texts)
            or not all(abs(number) < 2**63 for number in numbers)
        ):
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
        failures = []
        for chunk, answer in zip(chunks, self.server.post("/compute", questions), strict=True):
            try:
                if isinstance(answer, HttpFailed):
                    raise answer
                batch = parse_answer(answer, len(chunk))
            except HttpFailed as error:
                failures.append(error)
                continue
            except ValueError as error:
                failures.append(HttpFailed(f"{self.server.url}: {error}"))
                continue
            values[chunk] = batch.known
            for name, numbers in batch.extras.items():
                extras.setdefault(name, torch.full_like(values, math.nan))[chunk] = numbers
        raise_if_all_failed(failures, len(chunks))
        return RewardBatch(values, values.isfinite(), extras)


def raise_if_all_failed(failures: Sequence[Exception], requests: int) -> None:
    """Log what failed of ``requests`` requests.

    Raises:
        RewardFailed: All of them did.
    """
    if failures and len(failures) == requests:
        raise RewardFailed(str(failures[0])) from failures[0]
    if failures:
        log.warning("%d of %d requests failed: %s", len(failures), requests, failures[0])
