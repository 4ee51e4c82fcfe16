"""Presets: complete, buildable, sourced, and refused politely."""

from __future__ import annotations

from dataclasses import fields, is_dataclass

import pytest
from fakes import PROMPTS, Brightness, ToyPolicy

from chunk_grpo_core.method.chunks import ChunkPlan
from chunk_grpo_core.method.dynamics import DynamicsCurve
from chunk_grpo_core.method.schedule import shifted_grid
from chunk_grpo_core.presets import NOT_IN_THE_SOURCE, PRESETS, preset_config
from chunk_grpo_core.train.config import TrainConfig, setting_keys
from chunk_grpo_core.train.events import IterationEnd
from chunk_grpo_core.train.trainer import Trainer

# What the machine decides, or the user; not the method.
FREE = {"seed", "checkpoint_every", "batch_size", "self_test"}
FREE |= {"evaluate_every", "update_batch_size", "score_while_sampling"}
FREE |= {"optimizer.recompute_log_p", "optimizer.name", "optimizer.fused"}
every_preset = pytest.mark.parametrize("name", PRESETS)


def curve(grid):
    """A falling curve with a jump after the second step."""
    return DynamicsCurve(
        mean=tuple((2.0 if i < 2 else 1.0) - 0.01 * i for i in range(grid.steps)),
        std=(0.0,) * grid.steps,
        prompts=1,
        samples=1,
        sigmas=grid.sigmas,
        rule="flow",
        eta=0.7,
        model="none",
    )


def config_of(name, **overrides):
    grid = next(setting.value for setting in PRESETS[name].values if setting.key == "grid")
    return preset_config(name, curve=curve(grid), **overrides)


def leaves(config, prefix=""):
    """Dotted keys and values of nested settings; grid and plan are one value each."""
    for field in fields(config):
        value, key = getattr(config, field.name), prefix + field.name
        if is_dataclass(value) and key not in ("grid", "plan"):
            yield from leaves(value, f"{key}.")
        else:
            yield key, value


@every_preset
def test_every_setting_of_a_run_has_a_value_and_a_source(name):
    preset = PRESETS[name]
    keys = [setting.key for setting in preset.values]
    assert len(keys) == len(set(keys))
    values = {setting.key: setting.value for setting in preset.values}
    without_use = set()
    if values["algorithm"] == "forward":
        without_use |= {key for key in setting_keys() if key.startswith(("objective.", "window."))}
        without_use |= {"noise", "chunk_fraction"}
        without_use |= {f"forward.{key}" for key in ("beta", "clip", "old_decay", "rank_steps")}
    elif values["window.kind"] == "all":
        without_use |= {f"window.{part}" for part in ("chunks", "start", "stride", "every")}
    elif values["window.kind"] == "fixed":
        without_use |= {"window.stride", "window.every"}
    if values.get("objective.trust_region") == "clip":
        without_use.add("objective.kl_threshold")
    if values.get("objective.kl_ref") == 0:
        without_use.add("objective.kl_type")
    without_use |= {key for key in setting_keys() if key.startswith("run.")}  # no training depends
    without_use |= {key for key in setting_keys() if key.startswith(("preference.", "ask."))}
    if values["algorithm"] == "chunk_grpo":
        without_use |= {key for key in setting_keys() if key.startswith("forward.")}
    wanted = {key for key, _ in leaves(config_of(name))} - FREE - without_use
    assert wanted - set(keys) == set()
    assert all(setting.source.strip() for setting in preset.values)
    assert preset.title and preset.departures and preset.shorter_runs in preset.notes


@every_preset
def test_the_run_has_the_values_of_the_preset(name):
    built = dict(leaves(config_of(name)))
    stated = {setting.key: setting.value for setting in PRESETS[name].values}
    plan = stated.pop("plan")
    assert {key: built[key] for key in stated} == stated
    if plan is None:
        assert built["plan"] is None
        return
    assert built["plan"].steps == built["grid"].trainable_steps
    if plan == "step":
        assert set(built["plan"].sizes) == {1}


@every_preset
def test_a_preset_survives_json(name):
    config = config_of(name)
    assert TrainConfig.of(config.flat()) == config


@every_preset
def test_what_the_source_does_not_have_is_off(name):
    neutral = {0.0, None, "all", "euler", "rewards", "clip", "equal"}
    off = {s.value for s in PRESETS[name].values if s.source == NOT_IN_THE_SOURCE}
    assert off <= neutral


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        ("quick", 2),
        ("safe-lora", 2),
        ("few-step", 1),
        ("flow-grpo", int(6 * 0.99)),
        ("dance-grpo", int((16 - 1) * 0.6)),
        ("mix-grpo", 4),
    ],
)
def test_a_run_trains_as_many_steps_of_each_sample_as_the_source(name, steps):
    row = first_iteration(name)
    assert row["trained_passes"] == 4 * 4 * steps
    assert row.get("ratio_error_first_update", 0.0) == 0.0


@pytest.mark.parametrize(("name", "sizes"), [("gcpo-script", (2, 3, 4, 7)), ("gcpo-v3", (4,) * 4)])
def test_a_chunk_run_trains_two_chunks_of_each_sample(name, sizes):
    assert config_of(name).plan.sizes == sizes
    row = first_iteration(name)
    low, high = sum(sorted(sizes)[:2]), sum(sorted(sizes)[-2:])
    assert 4 * 4 * low <= row["trained_passes"] <= 4 * 4 * high
    assert row["ratio_error_first_update"] == 0.0


def first_iteration(name):
    """Metrics of one iteration on the toy: 4 groups of 4."""
    rows = []

    def listen(event):
        if isinstance(event, IterationEnd):
            rows.append(event.metrics)

    config = config_of(name, iterations=1, prompts_per_iteration=4, group_size=4)
    Trainer(ToyPolicy(), Brightness(), PROMPTS, config, listener=listen).train()
    return rows[0]


def test_other_values_take_the_place_of_the_preset_s():
    config = preset_config(
        "gcpo-script", iterations=5, seed=3, **{"optimizer.learning_rate": 1e-4, "plan": "size 4"}
    )
    assert (config.iterations, config.seed) == (5, 3)
    assert config.optimizer.learning_rate == 1e-4
    assert config.optimizer.max_grad_norm == 0.01
    assert config.plan == ChunkPlan((4, 4, 4, 4))
    short = preset_config("dance-grpo", grid=shifted_grid(5))
    assert short.plan == ChunkPlan((1, 1, 1, 1))


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("gcpo", {}, r"no preset 'gcpo'; did you mean gcpo-v3\? Known: quick, safe-lora"),
        ("gcpo-scrpt", {}, r"did you mean gcpo-script\?"),
        ("gcpo-v3", {}, "the plan 'adaptive' is read off a curve"),
        ("gcpo-script", {"optimizer.learning_rte": 1}, "did you mean optimizer.learning_rate"),
        ("gcpo-script", {"optimizer": 1}, "optimizer has parts; override one of them"),
        ("gcpo-script", {"grid": 17}, "grid is 17; it must be a TimeGrid"),
        ("gcpo-script", {"grid": shifted_grid(9)}, "cover 16 steps, but there are 8"),
        ("gcpo-script", {"group_size": 1}, "group_size is 1"),
    ],
)
def test_wrong_names_and_values_are_refused(name, overrides, message):
    with pytest.raises(ValueError, match=message):
        preset_config(name, **overrides)
