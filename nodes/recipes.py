"""Recipes that Train LoRA takes by name, and what lies over them: settings, sockets and numbers.

Whatever nobody says comes from below: the inputs of the node replace the settings that come in,
and these replace the recipe. Without a recipe the defaults of the library are below.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from comfy_api.latest import io

from ..chunk_grpo_core.lora.adapter import LoraConfig
from ..chunk_grpo_core.method.plan_text import needs_curve
from ..chunk_grpo_core.presets import PRESETS, preset_values
from .patch import PRESET, Patch, declared, is_training_setting, span
from .validation import choice

__all__ = [
    "BY_HAND",
    "NUMBERS",
    "RECIPES",
    "check_plan",
    "number_input",
    "recipe_input",
    "training_patch",
]

BY_HAND = "by hand"
"""No recipe: everything comes through sockets, settings and numbers."""


def _has_plan_of_its_own(name: str) -> bool:
    plan = preset_values(name)["plan"]
    return not (isinstance(plan, str) and needs_curve(plan))


RECIPES = tuple(name for name in PRESETS if _has_plan_of_its_own(name))
"""Names of the presets that say everything; the cheapest measured one first."""

NUMBERS = {
    "iterations": "iterations",
    "prompts_per_iteration": "prompts_per_iteration",
    "group_size": "group_size",
    "learning_rate": "optimizer.learning_rate",
    "rank": "lora.rank",
    "alpha": "lora.alpha",
}
"""Input of the node -> the setting that it replaces, unless it is 0."""


def recipe_input() -> Any:
    """The choice of a recipe."""
    return io.Combo.Input(
        "recipe",
        options=[*RECIPES, BY_HAND],
        default=RECIPES[0],
        optional=True,  # prompts saved before it existed still run, and by hand
        tooltip="A tested set of all settings. With one, sampler, sigmas, plan, latent and "
        "settings need not be connected; what you connect or write replaces what it says.\n"
        "quick: start here; the cheapest that was measured, on finished pictures of 8 steps. "
        "safe-lora: Chunk-GRPO for a LoRA on one GPU. few-step: a probability ratio for every "
        "step. The others are published ones, made for 8 to 32 GPUs. by hand: you connect and "
        "write everything. GRPO Preset lists the values of each with their sources.",
    )


def number_input(name: str, tooltip: str, *, default: float = 0, step: float = 1) -> Any:
    """An input of a number that a recipe has, too; 0 leaves it to that."""
    bounds, zero = span(NUMBERS[name]), declared(NUMBERS[name]).limits.kind(0)
    bounds["min"] = zero
    said = f"{tooltip}\n0: as the settings that come in say, or else the recipe."
    if isinstance(zero, int):
        return io.Int.Input(name, default=int(default), **bounds, tooltip=said)
    return io.Float.Input(
        name, default=float(default), **bounds, step=step, round=step, tooltip=said
    )


def training_patch(recipe: str, settings: Patch, numbers: Mapping[str, float]) -> dict[str, object]:
    """Lay settings over a recipe, and the numbers of the node that are not 0 over both.

    Args:
        recipe: One of :data:`RECIPES`, or :data:`BY_HAND`.
        settings: The patch that comes in.
        numbers: Name of an input -> its value. A rank without an alpha keeps the scale of the LoRA.

    Returns:
        Settings of the training alone.

    Raises:
        ValueError: There is no such recipe, a number is out of range, or the settings are for
            another algorithm than the recipe.
    """
    if choice("recipe", recipe) not in (*RECIPES, BY_HAND):
        raise ValueError(
            f"recipe is {recipe!r}; it must be one of {', '.join((*RECIPES, BY_HAND))}"
        )
    stated = {} if recipe == BY_HAND else preset_values(recipe)
    _check_algorithm(recipe, stated, settings)
    patch = {key: v for key, v in {**stated, **settings}.items() if is_training_setting(key)}
    own = {NUMBERS[name]: value for name, value in numbers.items() if value}
    if "lora.rank" in own and "lora.alpha" not in own:
        own["lora.alpha"] = _alpha_of_same_scale(patch, own["lora.rank"])
    return {**patch, **own}


def _alpha_of_same_scale(patch: Patch, rank: float) -> float:
    """The alpha that gives another rank the scale of the LoRA of a patch."""
    below = {key.removeprefix("lora."): v for key, v in patch.items() if key.startswith("lora.")}
    lora = LoraConfig(**below)  # type: ignore[arg-type]
    return lora.scale * (math.sqrt(rank) if lora.rs else rank)


def _check_algorithm(recipe: str, stated: Patch, settings: Patch) -> None:
    """Refuse settings for another algorithm than that of the recipe.

    Raises:
        ValueError: They are.
    """
    asked = settings.get("algorithm")
    if not stated or asked in (None, stated["algorithm"]):
        return
    preset = f", from the preset {settings[PRESET]}" if PRESET in settings else ""
    raise ValueError(
        f"recipe is {recipe}, which trains with the algorithm {stated['algorithm']}, but the "
        f"settings that come in are for the algorithm {asked}{preset}; set recipe to {BY_HAND}, or "
        "take the link to settings off"
    )


def check_plan(plan: object, patch: Patch, algorithm: str, recipe: str) -> None:
    """Refuse a plan that nothing trains, and a training of chunks without one.

    Raises:
        ValueError: There is one of the two.
    """
    if plan is not None and algorithm != "chunk_grpo":
        by = f"the recipe {recipe}" if recipe != BY_HAND else f"{algorithm.title()} Objective"
        other = ", or choose a recipe of Chunk-GRPO" if recipe != BY_HAND else ""
        raise ValueError(
            f"plan is connected, but the algorithm {algorithm}, which {by} sets, trains no chunks "
            f"of steps; take the link off{other}"
        )
    if plan is None and algorithm == "chunk_grpo" and patch.get("plan") is None:
        raise ValueError(
            "plan is not connected; connect Plan Chunks, choose a recipe, or put Forward Objective "
            "in front of settings: the algorithm forward needs no plan"
        )
