"""A toy training from its beginning, or from its newest checkpoint, to its end."""

from __future__ import annotations

from fakes import PROMPTS, Brightness, ToyPolicy

from chunk_grpo_core.train.events import IterationEnd
from chunk_grpo_core.train.trainer import Trainer


def trained(config, policy=None, **options):
    """Rows of metrics without timings, and the weights."""
    rows, policy = [], policy or ToyPolicy()

    def listen(event):
        if isinstance(event, IterationEnd):
            rows.append({k: v for k, v in event.metrics.items() if k != "seconds"})

    trainer = Trainer(policy, Brightness(), PROMPTS, config, listener=listen, **options)
    trainer.resume()
    trainer.train()
    return rows, policy.adapter.state_dict()
