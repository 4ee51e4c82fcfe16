"""A vision-language model as a reward, behind ``/chat/completions`` as OpenAI defined it: vLLM,
SGLang, llama.cpp, Ollama and others speak it.

The questions are data (``vlm_judges.json``, each with its source). Two ways to read the answer::

    scores:    sum_i w_i s_i / (high * sum_i w_i), s_i the last number that pattern i finds
    yes or no: p(yes) / (p(yes) + p(no)) of the first token        VQAScore, arXiv 2404.01291

An answer that says no score is no score: masked, never 0.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...method.reward import Fingerprint, RewardBatch, checked_inputs
from ...prompts.example import Prompt
from ...settings.declared import shortened
from ..png import png_base64
from .http import JsonServer

__all__ = ["Judge", "JudgeScore", "VlmJudge", "load_judge"]

log = logging.getLogger(__name__)

_ALTERNATIVES = 20
"""Tokens whose log-probabilities are asked for: the most that servers give."""


@dataclass(frozen=True, kw_only=True)
class JudgeScore:
    """One number in an answer."""

    name: str
    pattern: str
    """Regular expression whose first group is the number; the last match counts, because a judge
    may quote the caption before it."""
    weight: float = 1.0
    """Above 0."""

    def __post_init__(self) -> None:
        if not 0 < self.weight < math.inf:
            raise ValueError(f"the weight of {self.name} is {self.weight}; it must be above 0")
        if re.compile(self.pattern).groups < 1:
            raise ValueError(f"the pattern of {self.name} must have a group around the number")


@dataclass(frozen=True, kw_only=True)
class Judge:
    """What a model is asked and how its answer is read."""

    name: str
    question: str
    """Text after the picture; ``{prompt}`` stands for the caption."""
    scores: tuple[JudgeScore, ...] = ()
    """Numbers in the answer, all of them needed. Empty: the probability of yes."""
    low: float = 0.0
    """Numbers outside ``low`` to ``high`` are no scores."""
    high: float = 1.0
    """The reward is the weighted mean of the numbers, divided by this; above ``low`` and 0."""
    max_tokens: int = 512
    """Length limit of the answer; one that reaches it has no score (but for yes and no)."""
    source: str = ""

    def __post_init__(self) -> None:
        if "{prompt}" not in self.question:
            raise ValueError(f"the question of judge {self.name} must contain {{prompt}}")
        if not max(self.low, 0.0) < self.high < math.inf:
            raise ValueError(
                f"low {self.low} and high {self.high} of judge {self.name} are no range"
            )
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens is {self.max_tokens}; it must be at least 1")

    def read(self, choice: dict[str, Any]) -> tuple[float, dict[str, float]] | None:
        """Read one element of ``choices``.

        Returns:
            The reward, and each score divided by ``high``; None if the answer says no score.
        """
        if not self.scores:
            probability = _probability(choice)
            return None if probability is None else (probability, {})
        text = (choice.get("message") or {}).get("content")
        if not isinstance(text, str) or choice.get("finish_reason") == "length":
            return None
        numbers: dict[str, float] = {}
        for score in self.scores:
            matches = list(re.finditer(score.pattern, text))
            number = _number(matches[-1][1]) if matches else math.nan
            if not self.low <= number <= self.high:
                return None
            numbers[score.name] = number / self.high
        total = sum(score.weight * numbers[score.name] for score in self.scores)
        return total / sum(score.weight for score in self.scores), numbers


def load_judge(name: str) -> Judge:
    """Load a judge that comes with the package.

    Raises:
        ValueError: There is none of this name.
    """
    text = Path(__file__).with_name("vlm_judges.json").read_text(encoding="utf-8")
    judges = json.loads(text)
    if name not in judges:
        raise ValueError(f"judge is {shortened(name)}; it must be one of {', '.join(judges)}")
    data = judges[name]
    return Judge(
        name=name,
        question="\n".join(data.pop("question")),
        scores=tuple(JudgeScore(**score) for score in data.pop("scores")),
        **data,
    )


class VlmJudge:
    """Asks a model about every picture; one request for each, ``server.concurrency`` at once."""

    is_remote = True

    def __init__(self, server: JsonServer, *, model: str, judge: Judge) -> None:
        """Ask ``model`` (its name on the server) at ``server``, whose URL ends before
        ``/chat/completions``, for example ``http://127.0.0.1:8000/v1``."""
        if not model.strip():
            raise ValueError("model is empty; write the name the server knows the model by")
        self.server, self.model, self.judge = server, model, judge

    @property
    def name(self) -> str:
        """``"vlm_judge"``."""
        return "vlm_judge"

    @property
    def fingerprint(self) -> Fingerprint:
        """Model and judge; a server does not say which weights it runs."""
        digest = hashlib.sha256(json.dumps(asdict(self.judge), sort_keys=True).encode())
        return {"model": self.model, "judge": self.judge.name, "question": digest.hexdigest()}

    def score(self, images: Tensor, examples: Sequence[Prompt]) -> RewardBatch:
        """See :class:`~chunk_grpo_core.method.reward.Reward`; metadata is not looked at.

        Returns:
            Extras: every score of the judge, and ``unparseable``, the share of answers in this
            batch that said no score, the same for every picture.

        Raises:
            ValueError: Shapes or lengths do not match.
            RewardFailed: No request was answered.
        """
        images, examples = checked_inputs(images, examples)
        usable: list[int] = images.isfinite().flatten(1).all(1).nonzero()[:, 0].tolist()
        requests = [
            self._request(picture, examples[index].text)
            for index, picture in zip(usable, png_base64(images[usable]), strict=True)
        ]
        values = torch.full((len(images),), torch.nan)
        extras = {score.name: values.clone() for score in self.judge.scores}
        mute: list[dict[str, Any]] = []
        choices = self.server.post("/chat/completions", requests, _choice)
        for index, choice in zip(usable, choices, strict=True):
            if choice is None:
                continue
            scores = self.judge.read(choice)
            if scores is None:
                mute.append(choice)
                continue
            values[index] = scores[0]
            for name, value in scores[1].items():
                extras[name][index] = value
        if mute:
            log.warning(
                "%d of %d answers of %s hold no score, for example %s",
                len(mute),
                len(requests),
                self.model,
                shortened(mute[0].get("message")),
            )
        share = len(mute) / max(len(choices) - choices.count(None), 1)
        extras["unparseable"] = torch.full_like(values, share)
        return RewardBatch(values, values.isfinite(), extras)

    def _request(self, picture: str, prompt: str) -> dict[str, Any]:
        content = [
            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{picture}"}},
            {"type": "text", "text": self.judge.question.replace("{prompt}", prompt)},
        ]
        request: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": "user", "content": content}],
            "temperature": 0,
            "max_tokens": self.judge.max_tokens,
        }
        if not self.judge.scores:
            request |= {"logprobs": True, "top_logprobs": _ALTERNATIVES}
        return request


def _choice(request: object, answer: Any) -> dict[str, Any]:
    """The first choice of an answer.

    Raises:
        ValueError: There is none.
    """
    choices = answer.get("choices") if isinstance(answer, dict) else None
    first = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(first, dict) or not isinstance(first.get("message", {}), dict):
        raise ValueError(f"the answer has no choices: {shortened(answer)}")
    return first


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _probability(choice: dict[str, Any]) -> float | None:
    """p(yes) / (p(yes) + p(no)) of the first token, spellings of a word added up."""
    try:
        tokens = choice["logprobs"]["content"][0]["top_logprobs"]
        pairs = [(str(token["token"]).strip().lower(), token["logprob"]) for token in tokens]
        mass = {
            word: math.fsum(math.exp(logprob) for name, logprob in pairs if name == word)
            for word in ("yes", "no")
        }
    except (KeyError, IndexError, TypeError, OverflowError):
        return None
    total = mass["yes"] + mass["no"]
    # Probabilities of different tokens cannot add up to more than 1.
    if not 0 < total <= 1 + 1e-3:
        return None
    return mass["yes"] / total
