"""How much of an iteration is spent outside the model: host work between its calls.

python -m benchmarks.outside --json benchmarks/results/outside.json

The tiny FLUX, one thread, processor time; inside are the transformer's forward and autograd's
backward. For FLUX.1 at true size the same host work is set against the seconds that as many calls
of one sample take on an H100 (``results/flux_size``). Decoding and scoring are counted apart: they
are work, and belong to the reward.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from chunk_grpo_core.models.tiny.world import TRAIN, caption
from chunk_grpo_core.presets import preset_config
from chunk_grpo_core.rewards import load_reward
from chunk_grpo_core.train.trainer import Trainer

from .chunk_vs_step.measure import write_json
from .machine import facts
from .memory import load_policy

__all__ = ["measure"]

RECIPES = ("quick", "gcpo-script")
_PROMPTS = 4
_RESULTS = Path(__file__).resolve().parent / "results" / "flux_size" / "bf16.json"


class _Clock:
    """Seconds inside something, never counted twice."""

    def __init__(self) -> None:
        self.seconds, self.calls, self._depth = 0.0, 0, 0

    @contextmanager
    def running(self) -> Iterator[None]:
        self._depth += 1
        self.calls += self._depth == 1
        start = time.process_time()
        try:
            yield
        finally:
            self._depth -= 1
            if not self._depth:
                self.seconds += time.process_time() - start

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, timed."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.running():
                return function(*args, **kwargs)

        return timed


def measure(recipe: str) -> dict[str, Any]:
    """One iteration after one that warms up."""
    torch.set_num_threads(1)
    policy, _ = load_policy("cpu")
    config = preset_config(
        recipe, prompts_per_iteration=_PROMPTS, iterations=2, self_test=False, group_size=12
    )
    forward, backward, scoring = _Clock(), _Clock(), _Clock()
    reward = load_reward("tiny_world")
    reward.score = scoring.around(reward.score)  # type: ignore[method-assign]
    policy.decode = scoring.around(policy.decode)  # type: ignore[method-assign]
    policy.transformer.forward = forward.around(policy.transformer.forward)
    before = torch.autograd.backward, torch.autograd.grad
    torch.autograd.backward, torch.autograd.grad = map(backward.around, before)
    texts = [caption(scene) for scene in TRAIN[:_PROMPTS]]
    trainer = Trainer(policy, reward, texts, config)
    try:
        trainer._iterate()
        for clock in (forward, backward, scoring):
            clock.seconds, clock.calls = 0.0, 0
        start = time.process_time()
        trainer._iterate()
        total = time.process_time() - start
    finally:
        torch.autograd.backward, torch.autograd.grad = before
    outside = total - forward.seconds - backward.seconds - scoring.seconds
    calls = forward.calls + backward.calls
    true = _true_seconds(forward.calls - backward.calls, backward.calls)
    return {
        "recipe": recipe,
        "seconds": round(total, 3),
        "model": round(forward.seconds + backward.seconds, 3),
        "decode_and_score": round(scoring.seconds, 3),
        "outside": round(outside, 3),
        "share_outside": round(outside / (total - scoring.seconds), 4),
        "outside_of_a_call": round(outside / calls, 5),
        "share_outside_at_true_size": round(outside / (outside + true), 4),
    }


def _true_seconds(without: int, trained: int) -> float:
    """What as many calls of one sample take at FLUX.1's size."""
    cases = json.loads(_RESULTS.read_text(encoding="utf-8"))["cases"]
    step, update = (
        next(c["seconds"] for c in cases if (c["what"], c["pixels"], c["batch"]) == (what, 512, 1))
        for what in ("rollout step", "update micro-batch")
    )
    return without * step + trained * update


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = [measure(recipe) for recipe in RECIPES]
    for row in rows:
        print(json.dumps(row))
    if options.json:
        write_json(options.json, {"machine": facts(), "rows": rows})


if __name__ == "__main__":
    main()
