"""Prompts that were made of picks, as Train LoRA takes them."""

from __future__ import annotations

from dataclasses import replace

from ...chunk_grpo_core.configfile.record import read_record
from ...chunk_grpo_core.prompts.judged import Judged
from ...chunk_grpo_core.runs.folder import RunFolder
from ..types import PromptSet

__all__ = ["as_recorded", "check_judged"]


def check_judged(prompts: PromptSet) -> None:
    """Make sure that prompts come from picks.

    Raises:
        ValueError: They do not.
    """
    try:
        Judged.of(prompts.train[0])
    except ValueError as error:
        raise ValueError(
            "prompts: these prompts carry no picks; connect the output prompts of Preference "
            "Objective (Prompt Set goes into its input prompts)"
        ) from error


def as_recorded(prompts: PromptSet, folder: RunFolder) -> PromptSet:
    """The clicks and held-out prompts that a run began with: picks that were added later, or taken
    back, do not change a run that goes on.

    Args:
        prompts: Those of now, with their conditioning.
        folder: Of the run.

    Raises:
        ValueError: A prompt of the run is encoded no more.
    """
    record = read_record(folder.path)
    for example in (*record.train, *record.held_out):
        if example.text not in prompts.conditioning:
            raise ValueError(
                f"prompts: the run {folder.path.name} trains or measures on {example.text!r:.200}, "
                "which is not among the prompts of the picks any more; connect the taste and the "
                "Prompt Set that it began with, or start a new run"
            )
    return replace(prompts, train=tuple(record.train), held_out=tuple(record.held_out))
