"""Golden curves of offline preferences: a refactor reproduces them.

Run as a script, from the repository root, to write them anew; say so in CHANGELOG.md.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fakes import Brightness, ToyPolicy
from offline_picks import config_of, world

from chunk_grpo_core.algorithms.preference import JudgedLatents, Preference
from chunk_grpo_core.method.preference import OBJECTIVES
from chunk_grpo_core.train.events import IterationEnd
from chunk_grpo_core.train.trainer import Trainer

GOLDEN = Path(__file__).parent.parent / "golden" / "preference_run.json"
COLUMNS = ("preference_loss", "implicit_reward_better", "implicit_reward_worse", "grad_norm")


def curves(objective):
    """Columns of 12 iterations on the toy model."""
    config, rows = config_of(objective, iterations=12), []
    examples, latents = world()
    trainer = Trainer(
        ToyPolicy(),
        Brightness(),
        examples,
        config,
        algorithm=Preference(config, JudgedLatents(latents)),
        listener=lambda event: rows.append(event) if isinstance(event, IterationEnd) else None,
    )
    trainer.train()
    return {name: [row.metrics[name] for row in rows] for name in COLUMNS}


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_training_on_picks_reproduces_the_golden_curves(objective):
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))[objective]
    for name, values in curves(objective).items():
        assert values == pytest.approx(golden[name], rel=1e-4, abs=1e-6), name
    loss = golden["preference_loss"]
    assert loss[0] == pytest.approx(0.6931 if objective == "dpo" else 0.5, abs=1e-3)
    assert sum(loss[-3:]) < 3 * loss[0]


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps({name: curves(name) for name in OBJECTIVES}, indent=1) + "\n")
