"""Named settings, every value with its source.

Here: recipes as data, and ``preset_config("safe-lora", seed=1)``, which builds one. Not here: what
a setting means.

``docs/paper_index.md`` shows them as tables.
"""

from __future__ import annotations

import difflib

from ..method.dynamics import DynamicsCurve
from ..train.config import TrainConfig
from .few_step import FEW_STEP
from .gcpo import GCPO_SCRIPT, GCPO_V3
from .quick import QUICK
from .recipe import NOT_IN_THE_SOURCE, Preset, Setting
from .safe_lora import SAFE_LORA
from .step_level import DANCE_GRPO, FLOW_GRPO, MIX_GRPO

__all__ = [
    "NOT_IN_THE_SOURCE",
    "PRESETS",
    "Preset",
    "Setting",
    "preset_config",
    "preset_values",
]

PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        QUICK,
        SAFE_LORA,
        FEW_STEP,
        GCPO_SCRIPT,
        GCPO_V3,
        FLOW_GRPO,
        DANCE_GRPO,
        MIX_GRPO,
    )
}


def preset_config(
    name: str, *, curve: DynamicsCurve | None = None, **overrides: object
) -> TrainConfig:
    """Build the settings of a run from a preset.

    Args:
        name: A key of :data:`PRESETS`.
        curve: Relative-L1 curve, measured with the grid and the rule of the preset; needed where
            the plan is adaptive (``gcpo-v3``).
        overrides: Dotted keys of ``TrainConfig`` and other values for them, such as
            ``iterations=20, **{"optimizer.learning_rate": 1e-4}``; see :meth:`TrainConfig.of`.

    Raises:
        ValueError: The name or a key is unknown (the message names the nearest known one), a value
            is out of range, or the plan needs a curve.
    """
    return TrainConfig.of(preset_values(name) | overrides, curve)


def preset_values(name: str) -> dict[str, object]:
    """Dotted keys of ``TrainConfig`` and the values of a preset for them.

    Raises:
        ValueError: There is no such preset.
    """
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ValueError(f"there is no preset {name!r}; {hint}Known: {', '.join(PRESETS)}")
    return {setting.key: setting.value for setting in PRESETS[name].values}
