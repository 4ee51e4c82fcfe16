"""Every gate through which an input comes in, and a maker of cases for each.

A gate is a function of a seeded source of chance, an empty folder and the material: it writes the
input into the folder and says which command line takes it, and what is known of it.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

from ..material import Material
from ..outcomes import Case
from . import (
    configurations,
    flags,
    folders,
    loras,
    pictures,
    plans,
    prompts,
    records,
    rewards,
    servers,
    wildcards,
)

__all__ = ["GATES", "Gate"]

Gate = Callable[[random.Random, Path, Material], Case]

GATES: dict[str, tuple[int, Gate]] = {
    "configuration": (250, configurations.values),
    "configuration text": (100, configurations.texts),
    "[model]": (60, configurations.models),
    "--set": (120, configurations.changes),
    "run.toml": (120, records.records),
    "prompt file": (200, prompts.prompt_files),
    "wildcards": (140, wildcards.wildcards),
    "LoRA file": (220, loras.lora_files),
    "picture": (150, pictures.picture_files),
    "--setting": (110, rewards.settings),
    "sigmas": (80, plans.sigmas),
    "plan": (110, plans.plans),
    "flags": (60, flags.flags),
    "run folder": (180, folders.folders),
    "reward server": (110, servers.servers),
}
"""Name -> its share of the inputs, and what makes them."""
