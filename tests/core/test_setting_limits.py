"""Every setting has a type and finite limits, declared with its field, and keeps to them."""

from __future__ import annotations

import math

import pytest
from fakes import toy_config

from chunk_grpo_core.configfile.run_config import RunTable
from chunk_grpo_core.configfile.toml import parse_toml
from chunk_grpo_core.method.chunks import ChunkPlan
from chunk_grpo_core.method.schedule import shifted_grid
from chunk_grpo_core.settings.declared import OneOf, Range, limits_of
from chunk_grpo_core.train.config import PARTS, TrainConfig, setting_keys

HUGE, MILLIONS_OF_DIGITS = 10**30, 10**5000
NO_NUMBERS = ("fast", "1", True, [1], {"a": 1}, object(), b"1")
OUT_OF_EVERY_RANGE = (math.nan, math.inf, -math.inf, -1, -1e308, 1e308, HUGE, MILLIONS_OF_DIGITS)
WHOLE = ("grid", "plan")
"""Settings that are no single value."""
COMPANIONS = {
    "optimizer.updates_per_rollout": {"prompts_per_iteration": 1024},
    "advantage.keep": {"group_size": 1024},
    "window.stride": {"window.chunks": 1000},
}
"""What else must be set for a value at its limit to fit."""
RULED_BY_TWO = {"prompts_per_iteration": {"optimizer.updates_per_rollout": 1}}


def limits(key):
    part, _, name = key.rpartition(".")
    return limits_of(PARTS[part] if part else TrainConfig)[name]


def config_of(key, value):
    others = COMPANIONS.get(key, RULED_BY_TWO.get(key, {}))
    return TrainConfig.of({**toy_config().flat(), **others, key: value})


def wrong_values(key):
    """Values of other types, and numbers out of every range."""
    kind, none = limits(key).kind, () if limits(key).can_be_none else (None,)
    if kind in (int, float):
        return (*NO_NUMBERS, *OUT_OF_EVERY_RANGE, *none, *((2.5,) if kind is int else ()))
    if kind is bool:
        return ("on", 1, 0.0, math.nan, [], *none)
    if kind is str:
        return (1, math.nan, True, ["a"], {}, *none)
    return ("?", 1, math.nan, {"a": 1}, [math.nan], True)


@pytest.mark.parametrize("key", setting_keys())
def test_a_setting_refuses_other_types_and_numbers_out_of_range_by_its_key(key):
    for value in wrong_values(key):
        with pytest.raises(ValueError, match=key.replace(".", r"\.")) as caught:
            config_of(key, value)
        assert len(str(caught.value)) < 600


@pytest.mark.parametrize("key", [key for key in setting_keys() if key not in WHOLE])
def test_a_setting_takes_every_value_at_its_limits_and_none_beyond(key):
    bounds = limits(key).bounds
    if isinstance(bounds, OneOf):
        for choice in bounds.choices:
            assert config_of(key, choice).flat()[key] == choice
    elif isinstance(bounds, Range):
        for value in (bounds.least, bounds.most):
            assert config_of(key, value).flat()[key] == value
        step = 1 if limits(key).kind is int else 1e-3 * abs(bounds.most)
        for value in (bounds.least - step, bounds.most + step):
            with pytest.raises(ValueError, match=key):
                config_of(key, value)


def test_every_number_has_a_range():
    numbers = [key for key in setting_keys() if limits(key).kind in (int, float)]
    assert all(isinstance(limits(key).bounds, Range) for key in numbers) and len(numbers) > 25


@pytest.mark.parametrize("value", [0, HUGE, "4", 1.5, None])
def test_pictures_of_a_run_have_limits_too(value):
    with pytest.raises(ValueError, match=r"run\.pictures is .*; it must be a whole number from 1"):
        RunTable(pictures=value)


@pytest.mark.parametrize(
    "data",
    [
        {"sizes": "2, 3"},
        {"sizes": [2.0, 3]},
        {"sizes": [True, 4]},
        {"sizes": [HUGE, 1]},
        {"sizes": [2, 3], "weights": [math.inf, 1]},
        {"sizes": [2, 3], "weights": [1e308, 1e308]},
        {"sizes": [2, 3], "weights": [1e-320, 1e-320]},
        {"sizes": [2, 3], "weights": ["a", 1]},
        {"sizes": [2, 3], "weights": 1},
        {"sizes": [2, 3], "source": 5},
        {"sizes": [2, 3], "source": {"rule": "flow"}},
        {"weights": [1, 1]},
        {},
    ],
)
def test_plans_of_wrong_numbers_are_refused(data):
    with pytest.raises(ValueError, match="plan"):
        TrainConfig.of({**toy_config().flat(), "plan": data})


@pytest.mark.parametrize("weights", [(math.inf, 1), (1e308, 1e308), (1e-320, 1e-320)])
def test_weights_that_float32_cannot_hold_are_refused(weights):
    with pytest.raises(ValueError, match="only their proportions matter"):
        ChunkPlan((2, 3), weights)


@pytest.mark.parametrize("shift", [1e-300, 1e300, math.nan, math.inf, 0, -1])
def test_a_shift_that_makes_levels_equal_is_refused(shift):
    with pytest.raises(ValueError, match="shift is"):
        shifted_grid(8, shift)


def test_a_grid_of_endless_steps_is_refused():
    with pytest.raises(ValueError, match="steps is 9200000000000000000; it must be 2 or more"):
        shifted_grid(9_200_000_000_000_000_000)


def test_a_file_of_brackets_is_refused():
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_toml("x = " + 20_000 * "[" + 20_000 * "]")
