"""Configuration files: strict, complete, and never at odds with the settings they fill."""

from __future__ import annotations

import re
from dataclasses import fields, is_dataclass, replace
from pathlib import Path

import pytest

from chunk_grpo_core.configfile.keys import keys
from chunk_grpo_core.configfile.reading import read_config, read_config_file
from chunk_grpo_core.configfile.toml import parse_toml
from chunk_grpo_core.configfile.writing import preset_text, write_config
from chunk_grpo_core.method.dynamics import DynamicsCurve
from chunk_grpo_core.method.schedule import flux_shift, shifted_grid
from chunk_grpo_core.models.flux.config import FluxModel
from chunk_grpo_core.models.registry import FAMILIES
from chunk_grpo_core.presets import PRESETS, preset_config, preset_values
from chunk_grpo_core.rewards import REWARDS, paths_of
from chunk_grpo_core.runs.load import load_rewards
from chunk_grpo_core.train.config import TrainConfig

ROOT = Path(__file__).resolve().parents[2]
SMALL = {"model": {"type": "tiny"}, "grid": {"steps": 5, "shift": 2.0}, "plan": {"chunks": "2, 2"}}


def read(data, folder=Path("/somewhere")):
    return read_config(data, folder, "mine")


def changed(table, **values):
    if not table:
        return {**values, **SMALL}
    return {**SMALL, table: {**SMALL.get(table, {}), **values}}


def curve_for(config):
    sigmas = config.settings.grid.sigmas
    mean = tuple(1.0 + (i % 5) for i in range(len(sigmas) - 1))
    facts = {"prompts": 1, "samples": 1, "rule": "flow", "eta": 0.7, "model": "none"}
    return DynamicsCurve(mean=mean, std=mean, sigmas=sigmas, **facts)


def leaves(kind, prefix=""):
    """Dotted names of all settings of a training."""
    from typing import get_type_hints

    for field in fields(kind):
        inner = get_type_hints(kind)[field.name]
        if is_dataclass(inner) and field.name not in ("grid", "plan"):
            yield from leaves(inner, f"{field.name}.")
        else:
            yield prefix + field.name


def test_every_setting_of_a_training_has_one_key():
    settings = [key.setting for table in keys().values() for key in table.values() if key.setting]
    assert sorted(settings) == sorted(set(leaves(TrainConfig)) - {"grid", "plan"})


@pytest.mark.parametrize("model", FAMILIES)
@pytest.mark.parametrize("name", PRESETS)
def test_a_written_preset_is_the_preset_and_writes_itself(name, model):
    text = preset_text(name, model)
    config = read_config(parse_toml(text), Path(), name)
    curve = curve_for(config)
    expected = preset_config(name, curve=curve)
    if name == "quick":  # whose rollout is that of the model
        family, table = config.model.family, config.model.table
        expected = replace(expected, grid=family.grid(table, family.few_steps))
    assert config.train_config(curve) == expected
    again = write_config(config).splitlines()
    assert [line for line in again if line[:1] != "#"] == [
        line for line in text.splitlines() if line[:1] != "#"
    ]
    written = {(table, key) for table, entries in parse_toml(text).items()
               if isinstance(entries, dict) for key in entries}  # fmt: skip
    written |= {("", key) for key in parse_toml(text)}
    known = keys(FAMILIES[model].table)
    wanted = {(table, key) for table, names in known.items() for key in names}
    assert {table for table, _ in wanted - written} <= {"grid"}


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_fills_what_the_file_does_not_say(name):
    file = {"preset": name, "model": {"type": "tiny"}, "optimizer": {"learning_rate": 7e-4}}
    config = read(file)
    curve = curve_for(config)
    wanted = preset_config(name, curve=curve, **{"optimizer.learning_rate": 7e-4})
    assert config.train_config(curve) == wanted
    assert config.plan.needs_curve == (preset_values(name)["plan"] == "adaptive")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            changed("optimizer", lerning_rate=1.0),
            "[optimizer] has no key lerning_rate; did you mean learning_rate?",
        ),
        (
            changed("optimizer", iterations=3),
            "[optimizer] has no key iterations; write it at the top of the file, before the first",
        ),
        (changed("run", iterations=3), "[run] has no key iterations; write it at the top of the"),
        (changed("sde", noise="all"), "[sde] has no key noise; write it at the top of the file"),
        (changed("sde", clip_high=1), "[sde] has no key clip_high; it belongs into [objective]"),
        (
            changed("", learning_rate=1e-3),
            "there is no key learning_rate at the top of the file; it belongs into [optimizer]",
        ),
        (changed("", iteration=3), "no key iteration at the top of the file; did you mean iter"),
        (changed("run", xyzzy=3), "[run] has no key xyzzy; there are folder, pictures"),
        ({**SMALL, "optimiser": {}}, "there is no table [optimiser]; did you mean optimizer?"),
        ({**SMALL, "lora": 3}, "lora is 3; it must be a table: [lora]"),
        (
            {**SMALL, "preset": "safe-lore"},
            "there is no preset 'safe-lore'; did you mean safe-lora?",
        ),
        ({**SMALL, "preset": 3}, "there is no preset 3"),
        (changed("", iterations=2.5), "iterations is 2.5; it must be a whole number"),
        (changed("", iterations=True), "iterations is True; it must be a whole number"),
        (
            changed("", batch_size="all"),
            "batch_size is 'all'; it must be a whole number, or \"none\"",
        ),
        (changed("run", log=["paper"]), "run.log has 'paper'; it may have tensorboard, wandb"),
        (changed("run", log="wandb"), "run.log is 'wandb'; it must be a list of texts"),
        (changed("", group_size=1), "group_size is 1; it must be a whole number from 2 to 1024"),
        (changed("run", pictures=0), "run.pictures is 0; it must be a whole number from 1 to 1024"),
        (
            changed("optimizer", learning_rate="fast"),
            "optimizer.learning_rate is 'fast'; it must be a number",
        ),
        (
            changed("optimizer", learning_rate=-1),
            "optimizer.learning_rate is -1.0; it must be a number from 1e-07 to 1",
        ),
        (changed("sde", rule="dense"), "sde.rule is 'dense'; it must be one of"),
        (
            changed("grid", sigmas=[1.0, 0.0]),
            "[grid] has shift, sigmas, steps; it needs steps and shift",
        ),
        (
            changed("grid", shift="flux"),
            "grid.shift is 'flux'; it must be a number, or \"model\" for",
        ),
        (changed("plan", chunks="3, 3"), "cover 6 steps, but there are 4"),
        (changed("plan", weights="1, 2, 3"), "2 chunks need as many weights"),
        ({"model": {"type": "tiny"}, "plan": SMALL["plan"]}, "[grid] has nothing; it needs steps"),
        (
            {"model": {"type": "tiny"}, "grid": SMALL["grid"]},
            "plan is missing, and the algorithm chunk_grpo trains chunks of steps; set plan.chunks",
        ),
        (
            {"model": {"type": "tiny"}, "grid": SMALL["grid"], "plan": {"weights": "1, 2"}},
            "plan.weights is '1, 2', but plan.chunks is missing",
        ),
        (changed("model", type="sdxl"), "model.type is 'sdxl'; it must be one of tiny, flux"),
        (
            changed("model", width=64),
            "[model] has no key width for this type of model; it is for flux",
        ),
        (changed("model", type="flux"), "prompts.file is missing"),
        (changed("prompts", file="a.txt", text=["b"]), "prompts has both file and text"),
        (changed("prompts", held_out=-1), "held_out is -1; it must be 0 or more"),
        (
            {**changed("model", type="flux"), "prompts": {"file": "a"}},
            "[reward] is missing; give it a name",
        ),
        (changed("reward", name="beauty"), "reward.name is 'beauty'; there are tiny_world"),
        (changed("reward", name=["beauty"]), "reward.name is ['beauty']"),
        (
            changed("reward", name="target_colour", color="#000000"),
            "has no setting color; did you mean colour?",
        ),
        (
            changed("reward", name="target_colour", colour=3),
            'reward.colour is 3; it must be a text; for a text, write "3" in quotes',
        ),
        (
            changed("reward", name="tiny_world", weight="much"),
            "reward.weight is 'much'; it must be a number",
        ),
    ],
)
def test_mistakes_are_named_with_what_is_allowed(data, message):
    with pytest.raises(ValueError) as caught:
        read(data)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({"weight": "much"}, "[[reward]] 2: reward.weight is 'much'"),
        ({"draws": "many"}, "[[reward]] 2: reward.draws is 'many'"),
        ({"draw": 2}, "[[reward]] 2: the reward follows_prompt has no setting draw"),
        ({"draws": 0}, "[[reward]] 2: reward follows_prompt: draws is 0; it must be from 1"),
    ],
)
def test_of_several_rewards_a_message_says_which(second, message):
    rewards = [{"name": "follows_prompt"}, {"name": "follows_prompt", **second}]
    with pytest.raises(ValueError) as caught:
        load_rewards(read({**SMALL, "reward": rewards}))
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("reward", "setting"), [(name, setting) for name in REWARDS for setting in paths_of(name)]
)
def test_every_file_that_a_reward_names_is_looked_for_beside_the_configuration(reward, setting):
    needed = {"head": "h", "picks": "p", "image": "i"}
    given = {key: needed[key] for key in paths_of(reward) & needed.keys()}
    value = ["a/b"] if setting in ("folders", "tokenizers") else "a/b"
    data = {**SMALL, "reward": {"name": reward, **given, setting: value}}
    (entry,) = read(data, Path("/somewhere")).rewards
    assert entry.settings[setting] == (["/somewhere/a/b"] if value == ["a/b"] else "/somewhere/a/b")


def test_a_file_of_a_reward_that_is_none_stays_none():
    data = {**SMALL, "reward": {"name": "taste", "head": "a", "encoder": "none"}}
    (entry,) = read(data).rewards
    assert entry.settings["encoder"] is None


@pytest.mark.parametrize("model", FAMILIES)
def test_no_key_takes_a_value_of_another_type(model):
    for table, known in keys(FAMILIES[model].table).items():
        for name, key in known.items():
            data = {**SMALL, "model": {"type": model}}
            data |= {table: {**data.get(table, {}), name: {}}} if table else {name: {}}
            dotted = f"{table}.{name}" if table else name
            with pytest.raises(ValueError, match=rf"^{re.escape(dotted)} is \{{\}}; it must be"):
                read(data)
            assert key.allowed


def test_no_message_repeats_a_long_value():
    long = "x" * 5000
    wrong = [changed(table, **{name: long}) for table in keys() for name in keys()[table]]
    wrong += [changed("", **{long: 1}), changed("sde", **{long: 1}), changed(long, a=1)]
    wrong += [{**SMALL, "preset": long}, {**SMALL, "reward": {"name": long}}]
    wrong += [{**SMALL, "reward": {"name": "target_colour", "colour": long}}]
    wrong += [changed("run", log=[long]), {**SMALL, "lora": long}]
    messages = []
    for data in wrong:
        try:
            read(data)
        except ValueError as error:
            messages.append(str(error))
    assert len(messages) > len(wrong) / 2  # a path may be as long as it likes
    assert max(map(len, messages)) < 1500


def test_the_text_none_is_none_where_that_is_allowed():
    config = read(changed("", batch_size="none")).train_config()
    assert config.batch_size is None
    with pytest.raises(ValueError, match="iterations is 'none'; it must be a whole number$"):
        read(changed("", iterations="none"))


def test_relative_paths_start_at_the_file(tmp_path):
    (tmp_path / "flux").mkdir()
    file = tmp_path / "mine.toml"
    file.write_text(
        'preset = "safe-lora"\n[model]\ntype = "flux"\npath = "flux"\nvae = "~/ae.safetensors"\n'
        '[prompts]\nfile = "p.txt"\n[reward]\nname = "target_colour"\n[run]\nfolder = "../out"\n'
    )
    config = read_config_file(file, ["iterations = 3", "model.t5=t5.safetensors"])
    model = config.model.table
    assert config.name == "mine" and isinstance(model, FluxModel)
    assert model.path == str(tmp_path / "flux")
    assert model.vae == str(Path.home() / "ae.safetensors")
    assert model.t5 == str(tmp_path / "t5.safetensors")
    assert config.prompts.file == str(tmp_path / "p.txt")
    assert config.run.folder == str(tmp_path / ".." / "out")
    assert config.train_config().iterations == 3
    hub = read_config_file(file, ["model.path=black-forest-labs/FLUX.1-dev"])
    assert isinstance(hub.model.table, FluxModel)
    assert hub.model.table.path == "black-forest-labs/FLUX.1-dev"


def test_settings_of_rewards_are_checked_and_their_paths_start_at_the_file():
    entries = [
        {"name": "target_image", "image": "a.png"},
        {"name": "aesthetic", "folders": ["one", "/two"], "head": "head.pth", "batch_size": 2},
        {"name": "ocr", "strict": True, "no_target": "mask", "threads": "none"},
    ]
    found = read({**SMALL, "reward": entries}).rewards
    assert [dict(entry.settings) for entry in found] == [
        {"image": "/somewhere/a.png"},
        {"folders": ["/somewhere/one", "/two"], "head": "/somewhere/head.pth", "batch_size": 2},
        {"strict": True, "no_target": "mask", "threads": None},
    ]
    assert read_config(parse_toml(write_config(read({**SMALL, "reward": entries}))), Path(), "x")
    for setting, value in (("strict", 1), ("longest_side", 0.5), ("threads", "many")):
        with pytest.raises(ValueError, match=rf"^reward\.{setting} is .*; it must be"):
            read(changed("reward", name="ocr", **{setting: value}))


def test_errors_name_the_file(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text("[model\n")
    with pytest.raises(ValueError, match=r"mine\.toml: .*line 1"):
        read_config_file(file)
    file.write_text("[model]\ntype = 'tiny'\n")
    for change in ("record.model=x", "record=1", "record.plan.sizes=[1]"):
        with pytest.raises(ValueError, match=rf"mine\.toml: '{re.escape(change)}': .record. says"):
            read_config_file(file, [change])
    with pytest.raises(ValueError, match=r"mine\.toml: 'iterations' changes nothing; write KEY"):
        read_config_file(file, ["iterations"])
    with pytest.raises(FileNotFoundError, match="there is no configuration file"):
        read_config_file(tmp_path / "absent.toml")


def test_the_tiny_flux_has_a_grid_of_its_own():
    assert read(changed("grid", shift="model")).settings.grid == shifted_grid(5, 3.0)


def test_the_models_own_grid_follows_the_size_of_the_pictures():
    data = {
        **SMALL,
        "model": {"type": "flux", "width": 1024, "height": 512},
        "grid": {"steps": 5, "shift": "model"},
        "prompts": {"file": "p.txt"},
        "reward": [{"name": "target_colour", "weight": 0.5}, {"name": "tiny_world"}],
    }
    config = read(data)
    assert config.settings.grid == shifted_grid(5, flux_shift(64 * 32))
    assert [(r.name, r.weight) for r in config.rewards] == [
        ("target_colour", 0.5),
        ("tiny_world", 1.0),
    ]


def test_texts_survive_writing():
    odd = ['a "quoted" fox\\', "naïve \u2028 \U0001f98a", "tab\there\x7f"]
    config = read(changed("prompts", text=odd))
    again = read_config(parse_toml(write_config(config)), Path("/elsewhere"), "mine")
    assert again.prompts == config.prompts
    assert again.train_config() == config.train_config()


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.toml")), ids=lambda p: p.name)
def test_the_examples_are_valid(path):
    assert read_config_file(path).train_config()
