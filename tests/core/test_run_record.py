"""The one record of a run: what it holds, and what may change when the run goes on."""

from __future__ import annotations

import inspect
import json
import shutil
from dataclasses import fields

import numpy as np
import pytest
import torch
from fakes import PROMPTS, Brightness, ToyPolicy, curve_of, toy_config

from chunk_grpo_core.configfile.keys import keys
from chunk_grpo_core.configfile.reading import read_config
from chunk_grpo_core.configfile.record import (
    COMFYUI,
    PYTHON,
    Record,
    read_document,
    read_record,
    read_run,
    read_settings,
    write_run,
)
from chunk_grpo_core.configfile.toml import parse_toml
from chunk_grpo_core.configfile.writing import write_config
from chunk_grpo_core.disk.atomic import whole_file, write_whole
from chunk_grpo_core.method.objective import ObjectiveConfig
from chunk_grpo_core.models.registry import FAMILIES
from chunk_grpo_core.prompts.example import Example, examples_of
from chunk_grpo_core.rewards import REWARDS
from chunk_grpo_core.rewards.geneval.load import load_geneval
from chunk_grpo_core.rewards.networks.aesthetic import load_aesthetic
from chunk_grpo_core.rewards.networks.network import LoadOptions
from chunk_grpo_core.rewards.remote.http import JsonServer
from chunk_grpo_core.runs.experiment import run_experiment
from chunk_grpo_core.runs.folder import RunFolder
from chunk_grpo_core.train.config import OptimizerConfig, TrainConfig
from chunk_grpo_core.train.may_change import MAY_CHANGE, Change, check_keys, may_change
from chunk_grpo_core.watch.history import read_metrics


def settings_of(reward):
    """Names of the settings of a reward; those that are passed on are fields of these two."""
    parameters = inspect.signature(reward).parameters.values()
    passed_on = {field.name for kind in (LoadOptions, JsonServer) for field in fields(kind)}
    loaders = (load_aesthetic, load_geneval)
    further = {name for loader in loaders for name in inspect.signature(loader).parameters}
    is_open = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    return {parameter.name for parameter in parameters} | (
        passed_on | further if is_open else set()
    )


HELD_OUT = ("new", "newer")
TINY = {"model": {"type": "tiny"}, "grid": {"steps": 5, "shift": 2.0}, "plan": {"chunks": "cut 2"}}


def experiment(path, resume=False, policy=None, held_out=HELD_OUT, tables=PYTHON, **settings):
    config = toy_config(**{"iterations": 2, "checkpoint_every": 1, "self_test": False, **settings})
    return run_experiment(
        policy or ToyPolicy(),
        Brightness(),
        PROMPTS,
        held_out,
        config,
        RunFolder(path),
        resume=resume,
        evaluation_seeds=1,
        tables=tables,
    )


def faster(**settings):
    return {"optimizer": OptimizerConfig(learning_rate=0.5, **settings)}


# What it holds


def test_a_run_of_the_nodes_and_one_of_a_program_write_the_same_record(tmp_path):
    outcome = experiment(tmp_path / "node", tables={**COMFYUI, "run": {"pictures": 1}})
    experiment(tmp_path / "program")
    node, program = (read_document(tmp_path / name) for name in ("node", "program"))
    assert node.pop("model") == {"type": "comfyui"} and program.pop("model") == {"type": "python"}
    assert node["run"].pop("pictures") == 1
    assert node["record"].pop("id") != program["record"].pop("id")
    assert node["record"].pop("digests") != program["record"].pop("digests")
    assert node == program
    settings = [name for name in outcome.config.flat() if name not in ("grid", "plan")]
    for name in settings:
        table, _, key = name.rpartition(".")
        assert key in (node[table] if table else node), name
    record = read_record(tmp_path / "node")
    assert (record.model, record.reward, record.reward_fingerprint) == ("toy", "brightness", {})
    assert (record.train, record.held_out) == (examples_of(PROMPTS), examples_of(HELD_OUT))
    assert not (tmp_path / "node" / "config.json").exists()


def test_prompts_come_back_from_the_record_as_they_went_in(tmp_path):
    prompts = (
        Example("plain"),
        Example("a sign", {"target_text": "null", "boxes": [[0, 1.5], []], "nothing": None}),
        Example('"quoted" \u2028 text', {"count": 3}, tmp_path / "picture.png"),
    )
    names = {"model": "toy", "reward": "any", "reward_fingerprint": {}}
    write_run(tmp_path, toy_config(), PYTHON, Record(**names, train=prompts, held_out=prompts[1:]))
    record = read_record(tmp_path)
    assert [example.key for example in record.train] == [example.key for example in prompts]
    assert record.held_out == prompts[1:]


def test_a_run_of_another_program_is_refused_with_the_way_to_go_on(tmp_path):
    experiment(tmp_path / "mine", tables=COMFYUI)
    with pytest.raises(ValueError, match="is a run of ComfyUI.* run_name mine and resume on"):
        read_run(tmp_path / "mine")
    experiment(tmp_path / "other")
    with pytest.raises(ValueError, match="is a run of a Python program"):
        read_run(tmp_path / "other")


def test_every_key_of_the_record_is_explained_and_read_again(tmp_path):
    config = read_config(TINY, tmp_path, "mine")
    assert read_config(parse_toml(write_config(config)), tmp_path, "mine") == config


def test_a_plan_read_off_a_curve_is_kept_and_measured_anew_only_when_it_is_edited(tmp_path):
    config = read_config(TINY, tmp_path, "mine")
    assert config.needs_curve
    grid = config.settings.grid
    settings = config.train_config(curve_of(0.7, 0.2, 0.2, 0.1, sigmas=grid.sigmas))
    names = {"model": "tiny", "reward": "tiny_world", "reward_fingerprint": {}}
    record = Record(**names, train=examples_of(["a"]), held_out=examples_of(["b"]))
    write_run(tmp_path, settings, config.tables(), record)
    again = read_run(tmp_path)
    assert not again.needs_curve and again.settings == settings
    assert again.settings.plan.source == settings.plan.source is not None
    write_run(tmp_path, settings, COMFYUI, record)  # sizes and weights stand in [plan]
    assert read_settings(tmp_path).plan.source == settings.plan.source
    write_run(tmp_path, settings, config.tables(), record)
    assert read_run(tmp_path, ["plan.chunks=cut 3"]).needs_curve
    assert read_run(tmp_path, ["plan.chunks=1, 3"]).settings.plan.sizes == (1, 3)


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "folder" / "run.toml"
    write_whole(path, "old")
    with pytest.raises(KeyboardInterrupt), whole_file(path) as temporary:
        temporary.write_text("ne")
        raise KeyboardInterrupt
    assert path.read_text() == "old" and list(path.parent.iterdir()) == [path]


# What may change


def test_the_table_holds_keys_of_files_and_all_places_of_the_model():
    known = {
        key.dotted: key
        for family in FAMILIES.values()
        for table in keys(family.table).values()
        for key in table.values()
    }
    of_rewards = {f"reward.{name}" for reward in REWARDS.values() for name in settings_of(reward)}
    assert MAY_CHANGE.keys() <= known.keys() | of_rewards
    assert all(may_change(f"reward.2.{key}") == may_change(f"reward.{key}") for key in ("url", "x"))
    places = {dotted for dotted, key in known.items() if key.table == "model" and key.is_path}
    assert places <= MAY_CHANGE.keys()
    with pytest.raises(ValueError, match="lora.alpha may not change when a run goes on; these may"):
        check_keys(["iterations", "lora.alpha"])


@pytest.mark.slow
def test_a_change_is_honoured_recorded_and_told_by_the_lora(tmp_path):
    experiment(tmp_path)
    outcome = experiment(tmp_path, resume=True, iterations=4, **faster())
    old = toy_config().optimizer.learning_rate
    changes = {
        Change(2, "iterations", 2, 4),
        Change(2, "optimizer.learning_rate", old, 0.5),
    }
    assert set(read_record(tmp_path).changes) == changes == set(outcome.changes)
    assert read_document(tmp_path)["optimizer"]["learning_rate"] == 0.5
    metadata = outcome.lora_metadata()
    recipe = json.loads(metadata["chunk_grpo_recipe"])
    assert recipe["optimizer.learning_rate"] == 0.5 and TrainConfig.of(recipe) == outcome.config
    assert {Change(**change) for change in json.loads(metadata["chunk_grpo_changes"])} == changes
    # Later changes are added; what is resumed from the same checkpoint is recorded once.
    for _ in range(2):
        last = experiment(tmp_path, resume=True, iterations=5, **faster())
        shutil.rmtree(tmp_path / "checkpoints" / "step_000005")
    assert last.changes == (*outcome.changes, Change(4, "iterations", 4, 5))


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        faster(),
        {"objective": ObjectiveConfig(clip_low=1e-7, clip_high=5e-4)},
        {"objective": ObjectiveConfig(clip_low=5e-4, clip_high=1e-7)},
        {"objective": ObjectiveConfig(clip_low=5e-4, clip_high=5e-4, kl_ref=50.0)},
    ],
    ids=["learning_rate", "clip_low", "clip_high", "kl_ref"],
)
def test_a_changed_number_takes_effect_behind_the_restored_optimiser(tmp_path, change):
    start = {"objective": ObjectiveConfig(clip_low=5e-4, clip_high=5e-4)}
    experiment(tmp_path / "same", **start)
    shutil.copytree(tmp_path / "same", tmp_path / "changed")
    experiment(tmp_path / "same", resume=True, iterations=3, **start)
    experiment(tmp_path / "changed", resume=True, iterations=3, **{**start, **change})
    same, changed = (
        RunFolder(tmp_path / name).checkpoints.load().adapter for name in ("same", "changed")
    )
    assert any(not torch.equal(same[name], changed[name]) for name in same)


def test_other_held_out_prompts_are_refused(tmp_path):
    experiment(tmp_path)
    with pytest.raises(ValueError, match="held_out = .* but iterations 1 to 2 were trained with"):
        experiment(tmp_path, resume=True, held_out=("new", "old"))
    assert read_record(tmp_path).held_out == examples_of(HELD_OUT)


def test_stale_checkpoints_of_another_run_are_refused(tmp_path):
    experiment(tmp_path, seed=1)
    (tmp_path / "run.toml").unlink()
    with pytest.raises(FileExistsError, match="holds checkpoints of another run"):
        experiment(tmp_path, seed=2)
    experiment(tmp_path / "new", seed=2)
    shutil.rmtree(tmp_path / "new" / "checkpoints")
    shutil.copytree(tmp_path / "checkpoints", tmp_path / "new" / "checkpoints")
    with pytest.raises(ValueError, match="no checkpoint in .* can be used .*another run"):
        experiment(tmp_path / "new", resume=True, seed=2)


def test_a_run_that_trained_nothing_yet_goes_on_as_its_record_says(tmp_path):
    experiment(tmp_path)
    shutil.rmtree(tmp_path / "checkpoints")
    outcome = experiment(tmp_path, resume=True, seed=3)
    assert outcome.changes == () and read_document(tmp_path)["seed"] == 3


def test_a_lora_knows_its_iterations_when_the_metrics_are_lost(tmp_path):
    experiment(tmp_path)
    (tmp_path / "metrics.jsonl").unlink()
    outcome = experiment(tmp_path, resume=True, iterations=3)
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 1
    assert outcome.iterations == 3 and outcome.lora_metadata()["iterations"] == "3"


def test_odd_keys_and_numbers_of_numpy_are_read_as_they_were_written(tmp_path):
    metadata = {"mood \U0001f600": 1, "two words": "x", 'quo"te': 2.5, "plain": None}
    record = Record(
        model="m",
        reward="r",
        reward_fingerprint={"a/b \U0001f600": np.float64(0.5), "n": np.int64(3)},
        train=(Example("a", metadata),),
        held_out=(Example("b"), Example("c")),
    )
    rate = np.float64(3e-4)
    config = toml_ready = toy_config(iterations=1, optimizer=OptimizerConfig(learning_rate=rate))
    write_run(tmp_path, config, PYTHON, record)
    assert read_settings(tmp_path).flat() == toml_ready.flat()
    read = read_record(tmp_path)
    assert read.reward_fingerprint == {"a/b \U0001f600": 0.5, "n": 3}
    assert read.train[0].metadata.keys() == metadata.keys()


def test_what_toml_has_not_is_refused_before_anything_is_written(tmp_path):
    record = Record(
        model="m",
        reward="r",
        reward_fingerprint={"path": tmp_path},
        train=(Example("a"),),
        held_out=(Example("b"), Example("c")),
    )
    with pytest.raises(ValueError, match="cannot be written"):
        write_run(tmp_path, toy_config(iterations=1), PYTHON, record)
    assert not (tmp_path / "run.toml").exists()


def test_a_change_after_the_last_iteration_trained_nothing_and_is_not_in_the_lora(tmp_path):
    experiment(tmp_path, iterations=2)
    late = experiment(
        tmp_path, resume=True, iterations=2, optimizer=OptimizerConfig(learning_rate=0.5)
    )
    header = late.lora_metadata()
    assert json.loads(header["chunk_grpo_recipe"])["optimizer.learning_rate"] != 0.5
    assert json.loads(header["chunk_grpo_changes"]) == []
