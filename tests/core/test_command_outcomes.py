"""Every command ends in one of three ways, and says so alike: object, message and exit code."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from small_runs import TINY
from typer.testing import CliRunner

from chunk_grpo_core.__main__ import main
from chunk_grpo_core.cli import app as app_module
from chunk_grpo_core.cli import (
    convert,
    demo_command,
    duels,
    measure,
    models,
    rewards,
    serve,
    taste,
    train,
)
from chunk_grpo_core.cli.app import app
from chunk_grpo_core.cli.demo import DemoResult
from chunk_grpo_core.cli.later import Later
from chunk_grpo_core.disk.atomic import CannotWrite
from chunk_grpo_core.measure.duels import drawn_duels, duels_to_json
from chunk_grpo_core.measure.evaluate import Evaluation
from chunk_grpo_core.measure.interval import Interval
from chunk_grpo_core.method.reward import NothingScored
from chunk_grpo_core.prompts.example import examples_of
from chunk_grpo_core.rewards.taste.asking import ASKED_FILE
from chunk_grpo_core.rewards.taste.events import new_pick
from chunk_grpo_core.rewards.taste.fit import fit_taste
from chunk_grpo_core.rewards.taste.head import save_head
from chunk_grpo_core.rewards.taste.picking.batches import keep_batches
from chunk_grpo_core.rewards.taste.picks import Taste
from chunk_grpo_core.runs.forecast import Check
from chunk_grpo_core.train.batch_limit import NothingFits
from chunk_grpo_core.train.self_test import SelfTestFailed
from chunk_grpo_core.watch.strict_json import strict_json

EVALUATION = Evaluation(
    examples_of(["a", "b", "c"]),
    torch.tensor([[0.5], [0.6], [math.nan]]),
    {name: torch.full((3, 1), math.nan) for name in ("strict", "attributes", "clean")},
    torch.zeros(3, 4, 4, 3),
)
OUTCOME: Any = SimpleNamespace(
    reward="tiny_world", before=EVALUATION, after=EVALUATION, iterations=1,
    gain=Interval(0.0, math.nan, math.nan), ratio_error_first_update=None,
    warnings=(), warnings_json=lambda: {}, is_measured=True,
)  # fmt: skip
DONE = SimpleNamespace(
    outcome=OUTCOME, folder=Path("r"), files=SimpleNamespace(lora=Path("l"), pictures=())
)
CHECKED = Check(
    iterations=1, pictures=4, seconds_per_iteration=1.0, measurements=2,
    seconds_per_measurement=1.0, seconds_once=0.0, self_test=None, reward="tiny_world",
    reward_mean=math.nan, reward_spread=math.nan, unscored=4, tried=4, batch_size=2, fitting=1,
    peak_gib=None, memory_gib=None, free_gib=None,
)  # fmt: skip


class FakePolicy:
    class adapter:
        disabled = nullcontext


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Files of every command, in the working folder; what takes long is a fake."""
    monkeypatch.chdir(tmp_path)
    Path("tiny.toml").write_text(f"iterations = 1\n{TINY}")
    Image.new("RGB", (8, 8)).save("a.png")
    key = "diffusion_model.double_blocks.0.img_attn.qkv"
    save_file(
        {f"{key}.lora_A.weight": torch.ones(2, 8), f"{key}.lora_B.weight": torch.ones(24, 2)},
        "in.safetensors",
    )
    for number, folder in enumerate(("liked", "disliked")):
        Path("rated", folder).mkdir(parents=True)
        Image.new("RGB", (8, 8), (200 * number, 9, 9)).save(f"rated/{folder}/x.png")
    picked = Taste("picked")
    shown = [picked.keep(torch.full((4, 4, 3), level)) for level in (0.2, 0.8)]
    picked.append(new_pick("duel", shown, 1))
    save_head(fit_taste(picked).head, "picked/head.safetensors")
    asked = keep_batches(Taste("asked"), torch.rand(2, 4, 4, 3), ["a", "a"])
    Path("asked", ASKED_FILE).write_text(json.dumps({"v": 1, "batches": [asked[0].id]}))
    Path("judged", "duels", "001").mkdir(parents=True)
    pairs = duels_to_json(drawn_duels(["a"], 2, 0, seed=0))
    Path("judged", "duels", "001", "duels.json").write_text(json.dumps(pairs))
    fakes = {
        (train, "train_run"): lambda *args, **kwargs: DONE,
        (train, "resume_run"): lambda *args, **kwargs: DONE,
        (train, "check_run"): lambda *args, **kwargs: CHECKED,
        (demo_command, "run_demo"): lambda *args, **kwargs: DemoResult(
            OUTCOME, 1.0, Path("r"), Path("l"), ()
        ),
        (measure, "load_policy"): lambda *args, **kwargs: FakePolicy(),
        (measure, "measure"): lambda *args, **kwargs: EVALUATION,
        (measure, "draw"): lambda *args, **kwargs: [],
        (measure, "write_pictures"): lambda *args: [Path("p.png")],
        (measure, "measure_curve"): lambda *args, **kwargs: SimpleNamespace(
            model="m", rule="flow", eta=0.7, samples=1, mean=(0.1, 0.2, 0.3), std=(0.0,) * 3,
            sigmas=(1.0, 0.8, 0.6, 0.0), source=None, to_json=lambda: {"mean": [math.nan]},
        ),
        (rewards, "fetch_file"): lambda file, *args, **kwargs: (Path(file.name), "0" * 64),
    }  # fmt: skip
    for (module, name), fake in fakes.items():
        monkeypatch.setattr(module, name, fake)
    return tmp_path


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("duels judged --answers 12 --result", "--answers and --result were both given"),
        ("duels judged --answers 12 --count 5", "--answers and --count were both given"),
        ("duels judged --result --seed 5", "--result and --seed were both given"),
        ("sample tiny.toml --base --lora in.safetensors", "--base and --lora were both given"),
        (
            "score a.png --reward x --prompt a --prompt-file b",
            "--prompt and --prompt-file",
        ),
        ("resume r --iterations 5 --set iterations=6", "--iterations and --set iterations"),
        ("evaluate tiny.toml --setting colour=#000000", "is of --reward, which was not given"),
        ("presets --model flux", "--model is the family that --write is for"),
        ("demo --compare --algorithm step", "leave --algorithm out"),
    ],
)
def test_no_flag_wins_silently_over_another(words, message, place):
    done = CliRunner().invoke(app, words.split())
    assert done.exit_code == 2 and message in " ".join(done.stderr.replace("│", " ").split())


#: Command -> words that work, words that hold a mistake, what to break for an internal error.
COMMANDS = {
    "train": ("tiny.toml", "gone.toml", (train, "train_run")),
    "train --check": ("tiny.toml", "tiny.toml --out r", (train, "check_run")),
    "resume": ("r", "--iterations 0", (train, "resume_run")),
    "demo": ("", "--algorithm whole", (demo_command, "run_demo")),
    "sample": ("tiny.toml --prompt x", "gone.toml", (measure, "draw")),
    "analyze": ("tiny.toml", "tiny.toml --set grid.steps=0", (measure, "measure_curve")),
    "evaluate": ("tiny.toml --lora in.safetensors", "tiny.toml", (measure, "measure")),
    "duels": ("judged --answers 12", "judged --answers 3", (duels, "answered")),
    "models": ("z-image", "sdxl", (models, "family_facts")),
    "presets": ("--write safe-lora", "--write nothing", (train, "preset_text")),
    "convert": (
        "in.safetensors out.safetensors --to native",
        "in.safetensors in.safetensors --to native",
        (convert, "save_lora"),
    ),
    "score": (
        "a.png --reward target_colour",
        "a.png --reward target_colour --setting colour=null",
        (rewards, "load_reward"),
    ),
    "fetch": ("pickscore --yes", "nothing", (rewards, "files_of")),
    "taste add": (
        "mine a.png --kind like --answer yes",
        "mine a.png --kind duel --answer 1",
        (taste, "load_picture"),
    ),
    "taste answer": ("asked best:2", "picked best:2", (taste, "answer_in_words")),
    "taste import": ("mine rated", "mine gone", (taste, "import_into")),
    "taste fit": ("picked", "mine", (taste, "save_head")),
    "taste report": ("picked", "mine", (taste, "fit_taste")),
    "taste score": (
        "picked/head.safetensors a.png",
        "gone.safetensors a.png",
        (taste, "load_reward"),
    ),
    "serve-reward": ("target_colour", "target_colour --setting colour=5", (serve, "load_reward")),
}


def run(*words):
    done = CliRunner().invoke(app, list(words))
    return done.exit_code, done.stdout, done.stderr


def strictly(printed):
    """The one object on standard output."""

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    assert printed.count("\n") == 1
    return json.loads(printed, parse_constant=refuse)


def broken(*args, **kwargs):
    raise RuntimeError("a part is missing\nsecond line")


def loaded(name):
    module, sentence = app_module.COMMANDS[name]
    return Later(name, module, sentence).load()


def test_the_table_has_every_command():
    plain = {name for name in COMMANDS if "--" not in name}
    found = {name: getattr(loaded(name), "commands", None) for name in app_module.COMMANDS}
    below = {f"{group} {name}" for group, names in found.items() if names for name in names}
    assert {name for name, names in found.items() if not names} | below == plain


@pytest.mark.parametrize("name", sorted(app_module.COMMANDS))
def test_the_list_of_commands_says_of_each_what_its_own_help_says_first(name):
    assert app_module.COMMANDS[name][1] == loaded(name).help.split("\n\n")[0].replace("\n", " ")


@pytest.mark.parametrize(
    "words", ["import chunk_grpo_core", "import sys; sys.argv[1:] = ['--help']; import runpy; "
    "runpy.run_module('chunk_grpo_core', run_name='__main__')"]
)  # fmt: skip
def test_neither_the_package_nor_its_help_imports_torch(words):
    ask = "import atexit, sys; atexit.register(lambda: print('torch' in sys.modules)); "
    done = subprocess.run([sys.executable, "-c", ask + words], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "False", done.stderr


@pytest.mark.parametrize("name", sorted(set(COMMANDS) - {"serve-reward"}))
def test_success_is_0_and_one_strict_object_with_json(name, place):
    words = COMMANDS[name][0].split()
    code, printed, errors = run(*name.split(), *words, "--json")
    assert code == 0, errors
    assert isinstance(strictly(printed), dict)
    for done_once in ("out.safetensors", "asked/picks.jsonl"):  # refused a second time
        Path(done_once).unlink(missing_ok=True)
    code, printed, errors = run(*name.split(), *words)
    assert code == 0 and printed.strip(), errors
    assert "nan to" not in printed


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_a_mistake_is_2_and_one_message_with_or_without_json(name, place):
    words = COMMANDS[name][1].split()
    code, printed, errors = run(*name.split(), *words)
    assert (code, printed) == (2, "") and "Traceback" not in errors
    assert "error: " in errors or "Error" in errors
    if name != "serve-reward":
        code, printed, _ = run(*name.split(), *words, "--json")
        facts = strictly(printed)
        assert code == 2 == facts["exit_code"] and facts["error"] and facts["type"]


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_a_bug_is_1_and_one_line_and_a_traceback_with_debug_alone(name, place, monkeypatch):
    words, (module, attribute) = COMMANDS[name][0].split(), COMMANDS[name][2]
    monkeypatch.setattr(module, attribute, broken)
    code, printed, errors = run(*name.split(), *words)
    assert (code, printed.strip()) == (1, "") and errors.count("error: ") == 1
    assert "this is a bug" in errors and "RuntimeError: a part is missing" in errors
    assert "--debug" in errors and "second line" not in errors
    for order in (["--debug", *name.split(), *words], [*name.split(), *words, "--debug"]):
        code, _, errors = run(*order)
        assert code == 1 and "Traceback" in errors and "second line" in errors
    if name != "serve-reward":
        code, printed, _ = run(*name.split(), *words, "--json")
        facts = strictly(printed)
        assert (code, facts["exit_code"], facts["type"]) == (1, 1, "RuntimeError")


@pytest.mark.parametrize(
    ("error", "code", "word"),
    [
        (KeyboardInterrupt(), 130, "stopped; nothing was written"),
        (NothingFits("memory ran out with one sample"), 1, "with one sample"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory"), 1, "ran out"),
        (MemoryError(), 1, "memory ran out; use smaller pictures"),
        (SelfTestFailed("gradients are wrong"), 1, "gradients are wrong"),
        (FloatingPointError("the gradient is nan"), 1, "is nan"),
        (NothingScored("no picture has a score"), 1, "no picture has a score; nothing was"),
        (CannotWrite(28, "", "run/x"), 1, "no space is left on this disk; free some; nothing was"),
        (ConnectionRefusedError("nobody answers"), 1, "nobody answers"),
        (OSError(28, "No space left on device"), 1, "No space left"),
        (PermissionError(13, "Permission denied", "x"), 2, "Permission denied: 'x'"),
        (ImportError("pip install it"), 2, "pip install it"),
        (ValueError(), 2, "ValueError()"),
        (KeyError("during"), 1, "this is a bug"),
    ],
)
def test_an_error_has_the_exit_code_of_its_kind_and_its_message(
    error, code, word, place, monkeypatch
):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(train, "train_run", fail)
    found, printed, errors = run("train", "tiny.toml", "--json")
    facts = strictly(printed)
    assert (found, facts["exit_code"], facts["type"]) == (code, code, type(error).__name__)
    assert word in facts["error"] and word in errors and "Traceback" not in errors


@pytest.mark.parametrize(
    "words", [["teach", "--json"], ["train", "--json"], ["demo", "--pictures", "x", "--json"],
              ["--json", "demo"], ["convert", "a", "b", "--to", "onnx", "--json"]]
)  # fmt: skip
def test_a_mistake_in_the_command_line_itself_is_an_object_too(words):
    code, printed, errors = run(*words)
    facts = strictly(printed)
    assert code == 2 == facts["exit_code"] and facts["type"] == "usage"
    assert facts["error"] and "Error" in errors


def test_what_libraries_print_does_not_stand_beside_the_object(place, monkeypatch):
    def talks(*args, **kwargs):
        print("loading ...")
        return DONE

    monkeypatch.setattr(train, "train_run", talks)
    code, printed, errors = run("train", "tiny.toml", "--json")
    assert code == 0 and strictly(printed)["gain_ci95"] == [None, None]
    assert "loading ..." in errors


def test_one_prompt_has_no_interval_and_says_so(place):
    assert "(no interval with one prompt)" in run("train", "tiny.toml")[1]
    assert Interval(0.01, 0.0, 0.02).interval() == "95 % interval +0.0000 to +0.0200"
    assert Interval(math.nan, math.nan, math.nan).bounds() == "no interval"


@pytest.mark.parametrize("name", ["", *sorted(COMMANDS)])
def test_help_shows_flags_without_a_value(name):
    code, printed, _ = run(*name.split(), "--help")
    assert code == 0
    for line in printed.splitlines():
        if any(flag in line for flag in ("--json ", "--help ", "--resume ", "--base ", "--yes ")):
            assert "bool" not in line.lower(), line


def test_a_missing_command_line_package_is_one_message_and_one_object(monkeypatch, capsys):
    monkeypatch.setattr("sys.modules", {**__import__("sys").modules, "typer": None})
    monkeypatch.setattr("sys.argv", ["chunk-grpo", "presets", "--json"])
    with pytest.raises(SystemExit) as ended:
        main()
    printed = capsys.readouterr()
    assert ended.value.code == 2 == strictly(printed.out)["exit_code"]
    assert "pip install" in printed.err


def test_json_is_strict_whatever_is_in_it():
    numbers = {"a": math.nan, "b": [math.inf, (1.5, -math.inf)], "c": {"d": "NaN", "e": True}}
    assert (
        strict_json(numbers)
        == '{"a": null, "b": [null, [1.5, null]], "c": {"d": "NaN", "e": true}}'
    )
    with pytest.raises(TypeError):
        strict_json({"a": object()})
