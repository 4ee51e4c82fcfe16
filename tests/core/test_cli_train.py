"""The commands, from a file to a LoRA and back, on the tiny FLUX and on small FLUX files."""

from __future__ import annotations

import json
import os
import shutil
import sys
from typing import get_args

import flux_sources
import pytest
import torch
from safetensors.torch import load_file
from small_runs import TINY, without_seconds
from typer.testing import CliRunner

from chunk_grpo_core.cli import demo, measure
from chunk_grpo_core.cli.app import app
from chunk_grpo_core.cli.progress import ProgressBar
from chunk_grpo_core.configfile.reading import read_config_file
from chunk_grpo_core.configfile.toml import entry, parse_toml
from chunk_grpo_core.lora.files import load_lora
from chunk_grpo_core.method.reward import RewardFailed
from chunk_grpo_core.presets import PRESETS
from chunk_grpo_core.runs import start
from chunk_grpo_core.runs.load import load_policy
from chunk_grpo_core.train.config import TrainConfig
from chunk_grpo_core.train.events import EvaluationProgress, Measured, PhaseProgress
from chunk_grpo_core.train.may_change import MAY_CHANGE
from chunk_grpo_core.watch.history import read_metrics

pytestmark = pytest.mark.slow  # all of it together

CONFIG = f"""
iterations = 3
checkpoint_every = 10
{TINY}
[optimizer]
learning_rate = 1e-2
[run]
pictures = 1
reward_wait = 0
"""
SMALL = [
    "prompts.held_out=2", "iterations=1", "prompts_per_iteration=4", "group_size=2",
    "run.pictures=1", "lora.rank=2",
]  # fmt: skip


def run(*words):
    result = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    return result.exit_code, result.stdout, result.stderr


def finished(*words):
    code, printed, errors = run(*words)
    assert code == 0, errors
    return printed


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny") / "mine.toml"
    path.write_text(CONFIG)
    return path


@pytest.fixture(scope="module")
def trained(config):
    folder = config.parent / "whole"
    return folder, json.loads(finished("train", config, "--out", folder, "--json"))


def without_times(folder):
    rows = read_metrics(folder / "metrics.jsonl")
    return without_seconds(rows)


def same_files(one, other):
    a, b = load_file(one), load_file(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_run_leaves_what_the_next_commands_need(trained, config):
    folder, facts = trained
    assert facts["iterations"] == 3 and facts["ratio_error_first_update"] == 0.0
    assert facts["lora"] == str(folder / "lora.safetensors")
    files = {path.name for path in folder.rglob("*") if path.is_file()}
    assert {"run.toml", "metrics.jsonl", "evaluation.json", "training.png"} <= files
    copied = read_config_file(folder / "run.toml")
    assert copied.run.folder == str(folder)
    assert copied.train_config() == read_config_file(config).train_config()


@pytest.mark.parametrize(("changes", "count"), [([], 1), (["plan.chunks=cut 2"], 2)])
def test_the_settings_of_a_run_are_built_once_and_once_more_for_a_measured_plan(
    config, tmp_path, monkeypatch, changes, count
):
    check, built = TrainConfig.__post_init__, []
    monkeypatch.setattr(
        TrainConfig, "__post_init__", lambda self: (built.append(self), check(self))
    )
    words = [word for change in ["iterations=1", *changes] for word in ("--set", change)]
    finished("train", config, "--out", tmp_path / "run", *words)
    assert len(built) == count


def test_a_stopped_run_goes_on_to_the_same_numbers(trained, config, monkeypatch):
    whole, _ = trained
    folder = config.parent / "stopped"

    def stop(self, event):
        if isinstance(event, PhaseProgress) and event.iteration == 1 and event.phase == "update":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ProgressBar, "listen", stop)
        code, _, errors = run("train", config, "--out", folder)
    assert code == 130 and errors.endswith(f"stopped; go on with: chunk-grpo resume {folder}\n")
    assert len(without_times(folder)) == 1
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step_000001"]
    code, _, errors = run("train", config, "--out", folder)
    assert code == 2 and "already holds a run; resume it" in errors
    finished("resume", folder)
    assert without_times(folder) == without_times(whole)
    assert same_files(folder / "lora.safetensors", whole / "lora.safetensors")


def test_a_reward_that_fails_ends_the_run_with_the_command_to_go_on(trained, config, monkeypatch):
    whole, folder = trained[0], config.parent / "unscored"
    load = start.load_rewards

    def failing(settings):
        reward, calls = load(settings), iter(range(100))
        score = reward.score

        def once(*arguments):
            # Two held-out prompts, two pictures of the self-test, two iterations of two groups.
            if next(calls) >= 2 + 2 + 2 * 2:
                raise RewardFailed("no answer from the server")
            return score(*arguments)

        reward.score = once
        return reward

    with monkeypatch.context() as patch:
        patch.setattr(start, "load_rewards", failing)
        code, _, errors = run("train", config, "--out", folder)
    assert code == 1 and errors.splitlines()[-1] == (
        "error: all-masked: no picture of iteration 3 has a score (reward tiny_world: no answer "
        f"from the server); repair the reward; go on with: chunk-grpo resume {folder}"
    )
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step_000002"]
    finished("resume", folder)
    assert without_times(folder) == without_times(whole)
    assert same_files(folder / "lora.safetensors", whole / "lora.safetensors")


def test_a_server_that_is_not_there_is_one_line_and_nothing_is_written(config):
    absent = "http://127.0.0.1:9"
    file = config.parent / "remote.toml"
    reward = f'[reward]\nname = "remote_http"\nurl = "{absent}"\nretries = 0\n'
    file.write_text(config.read_text() + reward)
    folder = config.parent / "nowhere"
    code, _, errors = run("train", file, "--out", folder)
    assert code == 1 and "Traceback" not in errors and not folder.exists()
    assert "127.0.0.1:9" in errors and errors.splitlines()[-1].endswith("nothing was written")


@pytest.fixture
def copied(trained, tmp_path):
    """The finished run, to be edited."""
    return shutil.copytree(trained[0], tmp_path / "copied")


def edit(folder, old, new):
    text = (folder / "run.toml").read_text()
    assert f"\n{old}\n" in text
    (folder / "run.toml").write_text(text.replace(f"\n{old}\n", f"\n{new}\n"))


def test_an_edited_record_is_refused_by_name_before_the_model_is_loaded(copied, monkeypatch):
    monkeypatch.setattr(start, "load_policy", None)
    edit(copied, "alpha = 32.0", "alpha = 64.0")
    text = (copied / "run.toml").read_text()
    code, _, errors = run("resume", copied, "--iterations", 4)
    assert code == 2 and errors.count("\n") == 1
    assert "run.toml says lora.alpha = 64.0, but iterations 1 to 3 were trained with 32.0" in errors
    assert (copied / "run.toml").read_text() == text


def test_an_edited_record_is_honoured_and_the_lora_tells(copied):
    edit(copied, "learning_rate = 0.01", "learning_rate = 0.02")
    facts = json.loads(finished("resume", copied, "--set", "iterations=4", "--json"))
    assert facts["iterations"] == 4
    wanted = [
        {"iteration": 3, "key": "iterations", "old": 3, "new": 4},
        {"iteration": 3, "key": "optimizer.learning_rate", "old": 0.01, "new": 0.02},
    ]
    changes = sorted(parse_toml((copied / "run.toml").read_text())["record"]["changes"],
                     key=lambda change: change["key"])  # fmt: skip
    assert changes == wanted
    _, metadata = load_lora(copied / "lora.safetensors")
    assert metadata["iterations"] == "4"
    assert json.loads(metadata["chunk_grpo_recipe"])["optimizer.learning_rate"] == 0.02
    told = json.loads(metadata["chunk_grpo_changes"])
    assert sorted(told, key=lambda change: change["key"]) == wanted
    # What was changed is remembered: nothing needs to be said again.
    assert json.loads(finished("resume", copied, "--json"))["iterations"] == 4


def test_all_that_may_change_may_change_at_once_and_is_recorded(copied):
    document = parse_toml((copied / "run.toml").read_text())
    keys = [key for key in MAY_CHANGE if key in document or key.partition(".")[0] in document]
    keys = [key for key in keys if not key.startswith(("ask.", "forward.", "preference."))]
    new = {"run.folder": "elsewhere", "run.continue_from": "", "run.log": [], "run.pictures": 2}
    old = {}
    for key in keys:
        table, _, name = key.rpartition(".")
        place = document[table] if table else document
        if table == "reward" or name not in place:
            continue
        value = old[key] = place[name]
        if isinstance(value, bool):
            value = not value
        elif value == "none":
            value = 1
        elif not isinstance(value, (str, list)):
            value = value + 1 if isinstance(value, int) else value * 0.5 + 1e-6
        new[key] = new.get(key, value)
        text = (copied / "run.toml").read_text()
        before, line, after = text.partition(f"\n{entry(name, old[key])}\n")
        (copied / "run.toml").write_text(f"{before}\n{entry(name, new[key])}\n{after}")
        assert line, key
    finished("resume", copied)
    after = parse_toml((copied / "run.toml").read_text())
    changes = {change["key"]: change for change in after["record"]["changes"]}
    for key, value in old.items():
        table, _, name = key.rpartition(".")
        in_force = (after[table] if table else after)[name]
        assert in_force == new[key] or in_force.endswith(f"/{new[key]}"), key
        assert (key in changes) == (new[key] != value), key
    assert len(changes) > 10


def test_a_run_is_measured_as_it_was_trained(copied, tmp_path):
    edit(copied, "shift = 3.0", "shift = 2.0")
    for command in ("evaluate", "sample", "analyze"):
        code, _, errors = run(command, copied)
        assert code == 2 and "run.toml says grid = " in errors and "set it back" in errors
    edit(copied, "shift = 2.0", "shift = 3.0")
    text = (copied / "run.toml").read_text()
    (copied / "run.toml").write_text(text.replace('"tiny_world"', '"target_colour"', 1))
    code, _, errors = run("evaluate", copied)
    assert code == 2 and 'run.toml says reward.1.name = "target_colour"' in errors


def test_a_run_without_a_lora_is_not_drawn_with_the_base_model_silently(copied, config, tmp_path):
    words = ["--count", 1, "--prompt", "a circle", "--out", tmp_path]
    (copied / "lora.safetensors").unlink()
    code, _, errors = run("sample", copied, *words)
    assert code == 2 and "has no lora.safetensors" in errors and "--base" in errors
    assert finished("sample", copied, *words, "--base")
    code, _, errors = run("sample", config, *words)
    assert code == 0 and "without a LoRA: the base model draws" in errors


def test_a_demo_goes_on_as_any_run(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "HELD_OUT", demo.HELD_OUT[:4])
    folder = tmp_path / "demo"
    finished("demo", "--iterations", 1, "--pictures", 1, "--out", folder)
    assert json.loads(finished("resume", folder, "--iterations", 2, "--json"))["iterations"] == 2
    assert [row["iteration"] for row in without_times(folder)] == [0, 1]
    again = ["demo", "--resume", "--out", folder]
    assert json.loads(finished(*again, "--json"))["iterations"] == 2  # as run.toml says, not 60
    file = folder / "run.toml"
    assert "pictures = 1\n" in file.read_text()  # and not 4
    file.write_text(file.read_text().replace("group_size = 12", "group_size = 6"))
    code, _, errors = run(*again)
    assert code == 2 and "group_size = 6" in errors


@pytest.mark.slow
def test_two_algorithms_are_compared_in_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "HELD_OUT", demo.HELD_OUT[:4])
    words = ["demo", "--compare", "--iterations", 1, "--pictures", 1, "--out", tmp_path / "both"]
    both = json.loads(finished(*words, "--json"))
    assert list(both) == ["chunk", "forward"]
    assert both["chunk"]["ratio_error_first_update"] == 0.0
    assert both["forward"]["ratio_error_first_update"] is None
    assert (tmp_path / "both" / "forward" / "lora.safetensors").is_file()
    shown = finished(*words, "--resume")
    assert "chunk" in shown and "forward" in shown and "gain (95 %" in shown
    code, _, errors = run(*words[:2], "--algorithm", "step")
    assert code == 2 and "leave --algorithm out" in errors
    code, _, errors = run(
        "demo", "--resume", "--algorithm", "step", "--out", tmp_path / "both/chunk"
    )
    assert code == 2 and "plan" in errors and "were trained with" in errors


def test_a_run_measures_held_out_prompts_in_between(trained, config):
    folder = config.parent / "watched"
    finished("train", config, "--out", folder, "--set", "evaluate_every=1")
    measured = read_metrics(folder / "held_out.jsonl")
    assert [row["iterations"] for row in measured] == [0, 1, 2, 3]
    assert without_times(folder) == without_times(trained[0])


def test_every_measurement_has_a_title_on_the_screen():
    with ProgressBar() as bar:
        for which in get_args(Measured):
            bar.listen(EvaluationProgress(which, 1.0))


def test_pictures_are_drawn_with_and_without_the_lora(trained, tmp_path):
    folder, _ = trained
    prompt = "a small red circle on a blue background"
    fixed = ["--prompt", prompt, "--count", "1", "--steps", "2"]
    with_lora = finished("sample", folder, *fixed, "--out", tmp_path / "lora").split()
    base = finished("sample", folder, *fixed, "--base", "--out", tmp_path / "base").split()
    name = "a_small_red_circle_on_a_blue_background_20000_0.png"
    assert [path.rpartition("/")[2] for path in (*with_lora, *base)] == [name, name]
    one, other = ((tmp_path / kind / name).read_bytes() for kind in ("lora", "base"))
    assert one != other


def test_a_lora_is_compared_with_its_base(trained, tmp_path):
    folder, facts = trained
    found = json.loads(finished("evaluate", folder, "--json"))
    assert found["reward"] == "tiny_world"
    assert found["gain"] == pytest.approx(facts["gain"], abs=1e-5)
    table = finished("evaluate", folder, "--reward", "target_colour", "--out", tmp_path)
    assert table.startswith("- target_colour: gain ")
    assert (tmp_path / "table.md").read_text().strip() == table.strip()
    assert (tmp_path / "gains.png").exists() and (tmp_path / "pairs.png").exists()


def test_a_curve_is_measured_and_chunks_are_proposed(config, tmp_path):
    plot = tmp_path / "curve.png"
    longer = ["--set", "grid.steps=6", "--set", "plan.chunks=adaptive"]
    words = ["analyze", config, "--prompts", "1", *longer, "--out", plot, "--json"]
    found = json.loads(finished(*words))
    assert len(found["mean"]) == 6 and sum(found["plan"]) == 5
    assert found["adaptive"] == ", ".join(map(str, found["plan"])) and plot.exists()


def test_a_stop_before_anything_is_trained_says_so(config, tmp_path, monkeypatch):
    def stop(*words, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(start, "load_policy", stop)
    code, _, errors = run("train", config, "--out", tmp_path / "new")
    assert (code, errors) == (130, "stopped; nothing was written\n")
    assert not (tmp_path / "new").exists()


def test_a_run_that_fails_before_its_first_iteration_leaves_nothing(config, tmp_path):
    folder = tmp_path / "new"
    prompts = (
        'prompts.text=["a red circle", "a blue circle", "a purple elephant", "a green circle"]'
    )
    code, _, errors = run("train", config, "--out", folder, "--set", prompts)
    assert code == 2 and "'a green circle' is not a caption" in errors and not folder.exists()
    folder.mkdir()
    (folder / "mine.txt").write_text("of the user")  # the folder is theirs
    code, _, _ = run("train", config, "--out", folder, "--set", prompts)
    assert code == 2 and "mine.txt" in os.listdir(folder)


def test_one_held_out_prompt_is_refused_before_anything_is_measured(trained, monkeypatch):
    monkeypatch.setattr(measure, "load_policy", None)
    code, _, errors = run("evaluate", trained[0], "--set", "prompts.held_out=1")
    assert code == 2 and "prompts held out: 1; a measurement needs at least 2" in errors


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["prompts.file=absent.txt"], "there is no prompt file "),
        (["prompts.held_out=1"], "prompts held out: 1; a measurement needs at least 2"),
        (["run.log=['wandb']"], "chunk-grpo-core[tracking]"),
        (["reward.name=target_colour", "reward.colour=blue"], "colour is 'blue'"),
    ],
)
def test_mistakes_are_found_before_the_model_is_loaded(
    config, tmp_path, monkeypatch, changes, message
):
    monkeypatch.setattr(start, "load_policy", None)
    monkeypatch.setitem(sys.modules, "wandb", None)
    words = [word for change in changes for word in ("--set", change)]
    code, _, errors = run("train", config, "--out", tmp_path / "new", *words)
    assert code == 2 and message in errors
    assert not (tmp_path / "new").exists()


def test_mistakes_are_one_line(config, trained, tmp_path):
    for words, message in (
        (["train", config, "--set", "iteration=3"], "did you mean iterations?"),
        (["train", tmp_path / "absent.toml"], "there is no configuration file"),
        (["resume", tmp_path], "run.toml is missing"),
        (["sample", tmp_path], "run.toml is missing"),
        (
            ["resume", trained[0], "--iterations", 2],
            "says iterations = 2, but 3 are done already",
        ),
        (["resume", trained[0], "--set", "lora.alpha=9"], "lora.alpha may not change when a run"),
        (["resume", trained[0], "--set", "iterations"], "write KEY=VALUE"),
        (["sample", config, "--set", "prompts.held_out=0"], "say what to draw with --prompt"),
        (
            ["evaluate", config],
            "has no lora.safetensors, which a run has at its end; name a file with --lora",
        ),
        (["presets", "--write", "safe"], "there is no preset 'safe'"),
        (["sample", trained[0], "--out", config], f"{config} is a file; name another one"),
        (["evaluate", trained[0], "--out", config], f"{config} is a file; name another one"),
        (["train", config, "--out", config], f"{config} is a file; name another one"),
        (["train", config, "--out", config / "a"], f"{config} is a file; name another one"),
        (["demo", "--out", config], f"{config} is a file; name another one"),
        (["analyze", config, "--out", tmp_path], f"{tmp_path} is a folder; name a file in it"),
    ):
        code, _, errors = run(*words)
        assert code == 2 and message in errors and errors.count("\n") == 1


def test_a_noise_seed_beyond_64_bits_is_refused_and_the_last_one_is_not(trained, tmp_path):
    words = ["sample", trained[0], "--count", 1, "--prompt", "red", "--prompt", "blue"]
    code, _, errors = run(*words, "--seed", 2**64)
    assert code == 2 and "--seed" in errors
    finished(*words, "--seed", 2**64 - 1, "--out", tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        f"red_{2**64 - 1}_0.png", "blue_0_0.png"
    }  # fmt: skip


def test_the_file_in_the_help_is_a_file(tmp_path):
    lines = [line.strip() for line in finished("train", "--help").splitlines() if " = " in line]
    file = tmp_path / "mine.toml"
    file.write_text("\n".join(lines))
    config = read_config_file(file)
    assert (config.preset, config.rewards[0].name) == ("safe-lora", "target_colour")


def test_presets_are_listed_and_written():
    listed = finished("presets")
    names = [line.split()[0] for line in listed.partition("\n\n")[0].splitlines()]
    assert names == list(PRESETS) and "quick           16 units" in listed
    assert "learning_rate = 0.0001" in finished("presets", "--write", "safe-lora")


def test_flux_files_train_and_their_lora_goes_on(tmp_path):
    keys = flux_sources.write_single_files(tmp_path)
    file = tmp_path / "flux.toml"
    paths = "\n".join(f"{name} = {json.dumps(path)}" for name, path in keys.items())
    file.write_text(
        f'{CONFIG.replace("tiny", "flux")}\n[reward]\nname = "target_colour"\n'.replace(
            "[prompts]",
            f'{paths}\nweights = "fp8"\nwidth = 64\nheight = 64\nmax_tokens = 8\n'
            'text_cache = "cache"\n[prompts]\ntext = ["a fox", "a bird", "a fish", "a cat"]',
        )
    )
    small = ["--set", "iterations=1", "--json"]
    facts = json.loads(finished("train", file, "--out", tmp_path / "run", *small))
    assert facts["iterations"] == 1
    trained = load_file(tmp_path / "run" / "lora.safetensors")
    assert all(name.startswith("transformer.") for name in trained)
    config = read_config_file(file, [f"run.continue_from={tmp_path}/run/lora.safetensors"])
    state = load_policy(config, ["a fox", "a bird"]).adapter.state_dict()
    name = "transformer_blocks.0.attn.to_q.lora_B.weight"
    scale = config.settings.lora.scale
    torch.testing.assert_close(state[name] * scale, trained[f"transformer.{name}"])
    assert state[name].abs().max() > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_trains_the_tiny_flux(name, tmp_path):
    file = tmp_path / f"{name}.toml"
    file.write_text(finished("presets", "--write", name))
    changes = [word for change in SMALL for word in ("--set", change)]
    facts = json.loads(finished("train", file, "--out", tmp_path / "run", *changes, "--json"))
    error = None if name == "quick" else 0.0  # it has no ratio
    assert facts["iterations"] == 1 and facts["ratio_error_first_update"] == error
