"""Edits of ``run.toml`` while a program or ComfyUI brings settings of its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..train.config import TrainConfig
from ..train.may_change import differences, short
from .facts import loaded_facts
from .record import RUN_FILE, read_document, settings_are_edited, settings_in_record
from .toml import parse_toml
from .writing import settings_text

__all__ = ["check_edits"]


def check_edits(folder: Path, settings: TrainConfig, tables: Mapping[str, Any]) -> None:
    """Make sure that what somebody wrote into ``run.toml`` is what the run will go on with.

    Args:
        folder: Run folder.
        settings: What the run will go on with.
        tables: See :func:`~.writing.settings_text`.

    Raises:
        ValueError: The file was edited, and says something else; the message names it.
    """
    document = read_document(folder)
    if not settings_are_edited(document):
        return
    says = {**settings_in_record(document, folder).flat(), **_facts_of(document, folder)}
    will = {**settings.flat(), **_facts_of(parse_toml(settings_text(settings, tables)), folder)}
    unset = dict.fromkeys((*says, *will))
    if edits := differences({**unset, **will}, {**unset, **says}):
        said = " and ".join(f"{key} = {short(new)}" for key, _, new in edits)
        wanted = " and ".join(short(old) for _, old, _ in edits)
        raise ValueError(
            f"{folder / RUN_FILE} was edited and says {said}, but this training has {wanted}; give "
            "the training what the file says, or set the file back"
        )


def _facts_of(document: Mapping[str, Any], folder: Path) -> dict[str, object]:
    """What a document says beside the settings; a plan is one of these."""
    rewards = document.get("reward", [])
    rewards = rewards if isinstance(rewards, list) else [rewards]
    if not all(isinstance(reward, dict) for reward in rewards):
        raise ValueError(
            f"{folder / RUN_FILE}: reward is {short(rewards)}; it must be a table: [reward]"
        )
    facts = loaded_facts({**document, "reward": rewards})
    return {key: value for key, value in facts.items() if not key.startswith("plan.")}
