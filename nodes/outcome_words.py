"""What a training gained, in words."""

from __future__ import annotations

from statistics import fmean
from typing import Any

from ..chunk_grpo_core.method.plan_mismatches import plan_mismatches
from ..chunk_grpo_core.method.sampler import OWN_WALK
from ..chunk_grpo_core.runs.outcome import Outcome
from .types import TrainingLog

__all__ = ["LINE_END", "describe"]

LINE_END = "  \n"
"""Ends a line of text that a page may read as Markdown, where a line break alone is a space."""

_MEMORY = "Memory ran out, so the batch was halved: set batch_size {} in GRPO Settings."


def describe(log: TrainingLog) -> str:
    """Say in words what a training gained."""
    outcome = log.outcome
    config = outcome.config
    mismatches = plan_mismatches(config.plan, config.grid, config.sde, outcome.model)
    fitted = outcome.rows[-1].get("batch_size") if outcome.rows else None
    done, wished = outcome.iterations, config.iterations
    error = outcome.ratio_error_first_update
    lines = [
        *([f"Stopped after {done} of {wished} iterations."] if done < wished else []),
        f"{done} iterations. {_gained(outcome)}",
        *_preferred(outcome.rows),
        *([] if error is None else [f"Ratio error at the first update: {error:.1e}."]),
        f"Run folder: {log.run_folder}",
        *([] if fitted in (None, config.batch_size) else [_MEMORY.format(fitted)]),
        *([] if outcome.sampler == OWN_WALK else [f"Sampler: {outcome.sampler}."]),
        *(f"Warning: {warning}" for warning in (*outcome.warnings, *mismatches)),
    ]
    return LINE_END.join(lines)


def _gained(outcome: Outcome) -> str:
    if not outcome.is_measured:
        return "Nothing was measured, since no reward is connected: look at before_after."
    gain, before, after = outcome.gain, outcome.before.mean, outcome.after.mean
    digits = gain.digits
    return (
        f"Held-out reward {before:.{digits}f} -> {after:.{digits}f}, gain "
        f"{gain.mean:+.{digits}f} ({gain.interval()}) on {len(outcome.before.prompts)} prompts."
    )


def _preferred(rows: list[dict[str, Any]]) -> list[str]:
    """What a training on picks has learnt of them."""
    shares = [row["preference_accuracy"] for row in rows if "preference_accuracy" in row]
    if not shares:
        return []
    last = shares[-10:]
    return [
        f"In the last {len(last)} iterations the LoRA agrees with {100 * fmean(last):.0f} % of the "
        "clicks that it trained on; that says nothing about new pictures."
    ]
