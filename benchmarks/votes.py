"""Clicks as the only reward: does the model move towards a person who names the best of each group?

python -m benchmarks.votes [--out FILE] [--seeds 0 1 2 3 4] [--iterations 10]

The tiny FLUX is trained with the recipe ``quick`` (learning rate 1e-3, two updates of each rollout)
on groups of 8 pictures of 4 captions; a simulated person who likes vivid colours clicks on the best
of each group, with 10 % wrong clicks (another picture, at random). So ten iterations are forty
clicks, and no head is fitted.

Protocol: five seeds, each with another initial LoRA, other captions and other wrong clicks. The
outcome is the gain of what that person likes (the reward ``saturation``, of which the training sees
nothing but clicks) on the held-out captions, paired with the base model, and of ``tiny_world``,
which reads the caption; mean over seeds with Student's 95 % interval. Nothing is chosen here.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from chunk_grpo_core.configfile.reading import read_config_file
from chunk_grpo_core.method.asking import Question
from chunk_grpo_core.rewards.analytic import saturation
from chunk_grpo_core.rewards.taste.picking.batches import read_batch
from chunk_grpo_core.rewards.taste.picking.view import act
from chunk_grpo_core.rewards.taste.picks import Taste
from chunk_grpo_core.runs.start import train

from .machine import facts
from .race.outcomes import interval_of

__all__ = ["main"]

WRONG = 0.1
CONFIG = """
preset = "quick"
iterations = {iterations}
prompts_per_iteration = 4
group_size = 8
seed = {seed}
self_test = false
[optimizer]
learning_rate = 1e-3
updates_per_rollout = 2
[model]
type = "tiny"
[run]
pictures = 1
[[reward]]
name = "votes"
picks = "{picks}"
kind = "best"
[[reward]]
name = "saturation"
weight = 0.0
[[reward]]
name = "tiny_world"
weight = 0.0
"""


class Person:
    """Somebody who names the most vivid picture of each group, and misses at times."""

    def __init__(self, seed: int) -> None:
        self._likes, self._dice, self.clicks = saturation(), random.Random(seed), 0

    def __call__(self, question: Question) -> bool:
        """Click on the best of the first batch that is asked about."""
        taste, name = Taste(question.folder), question.batches[0]
        shown = read_batch(taste, name).shown
        pictures = torch.stack([taste.picture(one) for one in shown])
        place = int(self._likes.score(pictures, [one.prompt for one in shown]).values.argmax())
        if self._dice.random() < WRONG:
            place = (place + self._dice.randrange(1, len(shown))) % len(shown)
        act(taste, {"do": "best", "batch": name, "place": place})
        self.clicks += 1
        return False


def perform(seed: int, iterations: int, folder: Path) -> dict[str, Any]:
    """Train once; the gains on held-out captions."""
    file = folder / f"votes-{seed}.toml"
    picks = folder / f"picks-{seed}"
    file.write_text(CONFIG.format(iterations=iterations, seed=seed, picks=picks))
    person, begin = Person(seed), time.perf_counter()
    outcome = train(read_config_file(file), folder / f"run-{seed}", goes_on=person).outcome
    last = outcome.held_out[-1]["rewards"]
    gains = {name: last[name]["gain"] for name in ("saturation", "tiny_world")}
    seconds = round(time.perf_counter() - begin, 1)
    return {"seed": seed, "clicks": person.clicks, **gains, "seconds": seconds}


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.votes", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--iterations", type=int, default=10)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in options.seeds:
            rows.append(perform(seed, options.iterations, Path(folder)))
            print(json.dumps(rows[-1]), flush=True)
    result = {"iterations": options.iterations, "machine": facts(), "runs": rows}
    for name in ("saturation", "tiny_world"):
        interval = interval_of([row[name] for row in rows])
        result[name] = {"mean": interval.mean, "low": interval.low, "high": interval.high}
    print(json.dumps({name: result[name] for name in ("saturation", "tiny_world")}))
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
