"""Whoever edits the record of a run is honoured, or refused by name; never half of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fakes import PROMPTS, Brightness, ToyPolicy, toy_config
from records import DONE, FILES, all_keys, edited, save_run, write_document

from chunk_grpo_core.configfile.facts import loaded_facts
from chunk_grpo_core.configfile.keys import keys
from chunk_grpo_core.configfile.reading import read_config_file
from chunk_grpo_core.configfile.record import PYTHON, Record, read_document, write_run
from chunk_grpo_core.models.registry import FAMILIES
from chunk_grpo_core.prompts.example import Example
from chunk_grpo_core.runs.experiment import run_experiment
from chunk_grpo_core.runs.folder import RunFolder
from chunk_grpo_core.runs.recorded import open_to_look, open_to_resume
from chunk_grpo_core.train.may_change import changes_since, may_change

OTHER = {
    "advantage.centre": "median",
    "advantage.combine": "advantages",
    "advantage.keep": 2,
    "advantage.scale": "none",
    "ask.kind": "stars",
    "grid.shift": 2.5,
    "grid.steps": 4,
    "model.activation_budget": 0.5,
    "model.attention": "native",
    "model.device": "cpu",
    "model.path": "somebody_else/flux",
    "model.weights": "float32",
    "noise": "all",
    "objective.ratio": "step",
    "objective.step_weights": "guard",
    "objective.trust_region": "kl-mask",
    "ode_solver": "dpm2",
    "optimizer.name": "adamw8bit",
    "plan.chunks": "1, 3",
    "plan.weights": "1, 2, 3, 4",
    "run.log": ["tensorboard"],
    "run.stop_on": ["collapse"],
    "prompts.text": ["another", "and another", "and one more"],
    "objective.kl_type": "exact",
    "reward.1.name": "jpeg_incompressibility",
    "reward.2.device": "cuda",
    "reward.2.name": "pickscore",
    "sde.rule": "dance",
    "window.kind": "fixed",
}
"""Another valid value of a key where adding something to the old one gives none."""


def other(key, value):
    """A value that is not the one that stands there."""
    if key in OTHER:
        return OTHER[key]
    if key == "model.type":
        return next(family for family in FILES if family != value)
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + (64 if key in ("model.width", "model.height") else 1)
    if isinstance(value, float):
        return value * 0.5 + 0.125 if value < 1 else value * 1.25
    if value == "none":
        return 1 if "size" in key else 0.5 if "decay" in key else True
    if isinstance(value, str):
        return f"{value}x"
    return [*value, "x"] if isinstance(value, list) else {**value, "x": 1}


@pytest.mark.slow
@pytest.mark.parametrize("family", FILES)
def test_every_edited_key_of_a_record_is_honoured_or_refused_by_name(tmp_path, family):
    save_run(tmp_path, family)
    document = read_document(tmp_path)
    everything = dict(all_keys(document))
    known = [key for table in keys(FAMILIES[family].table).values() for key in table.values()]
    in_file = {key.dotted for key in known} - {"grid.sigmas"}
    assert in_file <= everything.keys()
    outcomes = {True: 0, False: 0}
    for key, value in everything.items():
        write_document(tmp_path, document)
        assert not open_to_resume(RunFolder(tmp_path)).config.needs_curve  # as it was written
        new = other(key, value)
        edited(tmp_path, key, new)
        is_unused = key.startswith(("forward.", "preference."))  # of other algorithms
        outcomes[may_change(key)] += 1
        if may_change(key) and not is_unused:
            run = open_to_resume(RunFolder(tmp_path))
            now = {**run.config.settings.flat(), **loaded_facts(run.config.tables())}
            in_force = json.loads(json.dumps(now[key]))
            assert in_force == new or str(in_force).endswith(f"/{new}"), key
            changes = changes_since(run.state, now)
            assert [(change.iteration, change.key, change.new) for change in changes] == [
                (DONE, key, now[key])
            ]
        else:
            with pytest.raises(ValueError) as caught:
                open_to_resume(RunFolder(tmp_path))
            message = str(caught.value)
            named = "[record]" if key.startswith("record.") else key
            named = "grid" if key.startswith("grid.") else named
            is_no_file = key in ("algorithm", "model.type", "prompts.text")  # with the other keys
            if key == "prompts.text" and document["prompts"]["file"]:
                named = "prompts has both file and text"
            assert str(tmp_path / "run.toml") in message and named in message, (key, message)
            if not key.startswith("record.") and not is_no_file and not is_unused:
                assert "iterations 1 to 3 were trained with" in message, (key, message)
    assert outcomes[True] > 15 and outcomes[False] > 60


@pytest.mark.parametrize("family", FILES)
def test_a_key_that_is_taken_out_of_a_record_has_its_default_and_is_compared(tmp_path, family):
    save_run(tmp_path, family)
    document = read_document(tmp_path)
    del document["reward"][0]["quality"]
    write_document(tmp_path, document)
    with pytest.raises(ValueError, match=r"reward\.1\.quality = null, but .* 90;"):
        open_to_resume(RunFolder(tmp_path))
    document["reward"].pop()
    write_document(tmp_path, document)
    with pytest.raises(ValueError, match="rewards = 1"):
        open_to_resume(RunFolder(tmp_path))


def test_a_preset_in_the_record_of_a_run_is_refused(tmp_path):
    save_run(tmp_path, "tiny")
    file = tmp_path / "run.toml"
    file.write_text('preset = "safe-lora"\n' + file.read_text())
    for opening in (open_to_resume, open_to_look):
        with pytest.raises(ValueError, match='has preset = "safe-lora", but the file of a run'):
            opening(RunFolder(tmp_path))
    assert read_config_file(file).preset == "safe-lora"  # as a configuration of a new run


def test_a_record_without_its_digest_is_no_record(tmp_path):
    save_run(tmp_path, "tiny")
    document = read_document(tmp_path)
    for broken in ({}, {"record": "x"}, {"settings": "x"}):
        write_document(tmp_path, {**document, "record": {**document["record"], "digests": broken}})
        with pytest.raises(ValueError, match=r"run\.toml: \[record\] was edited, or damaged"):
            open_to_resume(RunFolder(tmp_path))


@pytest.mark.parametrize(
    ("key", "value"),
    [("grid.shift", 3.0), ("sde.eta", 0.5), ("seed", 5), ("group_size", 4), ("sde.rule", "dance")],
)
def test_a_measured_plan_is_measured_anew_when_what_its_curve_depends_on_is_edited(
    tmp_path, key, value
):
    settings = save_run(tmp_path, "tiny")
    kept = open_to_look(RunFolder(tmp_path)).config
    assert kept.settings.plan == settings.plan and not kept.needs_curve
    assert open_to_look(RunFolder(tmp_path), [f"{key}={json.dumps(value)}"]).config.needs_curve
    assert not open_to_look(RunFolder(tmp_path), ["optimizer.learning_rate=0.5"]).config.needs_curve
    assert read_config_file(tmp_path / "run.toml").needs_curve  # the record belongs to the run
    for checkpoint in RunFolder(tmp_path).checkpoints.all():
        checkpoint.rename(tmp_path / "gone")
    assert open_to_resume(RunFolder(tmp_path)).config.needs_curve
    edited(tmp_path, key, value)
    assert open_to_resume(RunFolder(tmp_path)).config.needs_curve


def test_a_run_is_looked_at_as_it_was_trained_and_otherwise_only_when_told(tmp_path):
    save_run(tmp_path, "tiny")
    edited(tmp_path, "grid.shift", 3.5)
    with pytest.raises(
        ValueError, match=r"run\.toml says grid = .* were trained with .* --set KEY"
    ):
        open_to_look(RunFolder(tmp_path))
    edited(tmp_path, "grid.shift", 2.0)
    assert open_to_look(RunFolder(tmp_path), ["grid.steps=9"]).config.settings.grid.steps == 9
    for change in ("preset='safe-lora'", "record.model='x'"):
        with pytest.raises(ValueError, match="cannot be set for a run"):
            open_to_look(RunFolder(tmp_path), [change])


def test_another_reward_or_model_than_that_of_the_run_is_refused_once_it_is_loaded(tmp_path):
    save_run(tmp_path, "tiny")
    run = open_to_resume(RunFolder(tmp_path))
    with pytest.raises(ValueError, match='the reward that .*run.toml names has reward = "brigh'):
        run.check_reward(Brightness())
    with pytest.raises(ValueError, match='the model that .*run.toml names has model = "toy"'):
        run.check_model(ToyPolicy())


def test_one_of_several_rewards_can_be_set(tmp_path):
    save_run(tmp_path, "tiny")
    rewards = open_to_resume(RunFolder(tmp_path), ["reward.2.device='cuda'"]).config.rewards
    assert rewards[1].settings["device"] == "cuda"
    for change, message in (
        ("reward.device='x'", "there are 2 rewards; write reward.1.KEY=VALUE"),
        ("reward.3.device='x'", "there are 2 rewards"),
        ("reward.1.weight=2", "reward.1.weight may not change when a run goes on"),
    ):
        with pytest.raises(ValueError, match=message):
            open_to_resume(RunFolder(tmp_path), [change])


# Runs of Python programs and of ComfyUI


def experiment(path, resume=False, tables=PYTHON, **settings):
    config = toy_config(**{"iterations": 2, "checkpoint_every": 1, "self_test": False, **settings})
    return run_experiment(
        ToyPolicy(),
        Brightness(),
        PROMPTS,
        ("new", "newer"),
        config,
        RunFolder(str(path)),
        resume=resume,
        evaluation_seeds=1,
        tables=tables,
    )


def test_an_edit_that_a_program_does_not_share_is_refused_by_name(tmp_path):
    experiment(tmp_path)
    edited(tmp_path, "iterations", 4)
    text = (tmp_path / "run.toml").read_text()
    with pytest.raises(
        ValueError,
        match=r"run\.toml was edited and says iterations = 4, but this training has 2; give the",
    ):
        experiment(tmp_path, resume=True)
    assert (tmp_path / "run.toml").read_text() == text
    outcome = experiment(tmp_path, resume=True, iterations=4)
    assert [(change.key, change.new) for change in outcome.changes] == [("iterations", 4)]
    assert read_document(tmp_path)["iterations"] == 4


@pytest.mark.slow
def test_a_program_may_change_what_may_change_in_a_record_that_nobody_edited(tmp_path):
    experiment(tmp_path)
    experiment(tmp_path, resume=True, iterations=3)
    (checkpoint,) = RunFolder(tmp_path).checkpoints.all()[-1:]
    checkpoint.rename(tmp_path / "gone")  # as if the run had been killed before its checkpoint
    assert experiment(tmp_path, resume=True, iterations=5).iterations == 5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("optimizer.learning_rate", 0.5, "optimizer.learning_rate = 0.5"),
        ("seed", 9, "seed = 9"),
        ("model.type", "tiny", 'model.type = "tiny"'),
        ("plan.chunks", "step", "plan = "),
        ("plan.chunks", "cut 2", "is read off a curve"),
        ("group_size", 1, "group_size is 1"),
        ("record.model", "x", r"\[record\] was edited"),
    ],
)
def test_no_edit_of_a_program_s_record_is_overwritten(tmp_path, key, value, message):
    experiment(tmp_path)
    edited(tmp_path, key, value)
    text = (tmp_path / "run.toml").read_text()
    with pytest.raises(ValueError, match=message):
        experiment(tmp_path, resume=True)
    assert (tmp_path / "run.toml").read_text() == text


@pytest.mark.slow
@pytest.mark.parametrize(
    "added",
    [
        {"preset": "safe-lora"},
        {"xyzzy": 1},
        {"prompts": {"file": "x"}},
        {"reward": {"name": 1}},
        {"reward": 3},
        {"reward": [3]},
        {"model": 3},
        {"model": {"type": "python", "x": {"y": 1}}},
        {"plan": 3},
        {"grid": []},
    ],
    ids=str,
)
def test_what_is_added_to_a_program_s_record_is_refused(tmp_path, added):
    experiment(tmp_path)
    write_document(tmp_path, {**read_document(tmp_path), **added})
    text = (tmp_path / "run.toml").read_text()
    with pytest.raises(ValueError, match=rf"run\.toml.*{next(iter(added))}"):
        experiment(tmp_path, resume=True)
    assert (tmp_path / "run.toml").read_text() == text


def test_the_inputs_of_a_training_that_no_file_holds_are_compared_when_it_goes_on(tmp_path):
    model = {"type": "comfyui", "cfg": 4.0, "negative": "SHA-256 1", "guidance": [3.0]}
    run = {"pictures": 1, "continue_from": "SHA-256 5"}
    experiment(tmp_path, tables={"model": model, "run": run})
    for name, value in (("cfg", 3.0), ("negative", "SHA-256 2"), ("guidance", [])):
        with pytest.raises(ValueError, match=rf"this training has model\.{name} = "):
            experiment(tmp_path, True, {"model": {**model, name: value}, "run": run})
    outcome = experiment(tmp_path, True, {"model": model, "run": {**run, "continue_from": ""}})
    assert [change.key for change in outcome.changes] == ["run.continue_from"]


def test_half_a_character_is_refused_before_a_record_that_nobody_can_read(tmp_path):
    for example in (lambda: Example("a \ud800 fox"), lambda: Example("a", {"b": ["\udfff"]})):
        with pytest.raises(ValueError, match="half a character"):
            example()
    assert Example("a \U0001f98a fox").text == "a \U0001f98a fox"
    record = Record(model="\ud800", reward="r", reward_fingerprint={}, train=(), held_out=())
    with pytest.raises(ValueError, match="half a character"):
        write_run(tmp_path, toy_config(), PYTHON, record)
    assert list(tmp_path.iterdir()) == []


def test_a_run_folder_may_be_named_by_a_text(tmp_path):
    assert RunFolder(str(tmp_path)) == RunFolder(tmp_path)
    assert RunFolder(str(tmp_path)).run_file == Path(tmp_path) / "run.toml"
