"""``chunk-grpo taste`` from the first pick to the score."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from chunk_grpo_core.cli.app import app
from chunk_grpo_core.cli.taste import Form, Kind
from chunk_grpo_core.disk.lock import locked
from chunk_grpo_core.rewards.taste import picks as picks_module
from chunk_grpo_core.rewards.taste.events import KINDS
from chunk_grpo_core.rewards.taste.importing.into import FORMS
from chunk_grpo_core.rewards.taste.picks import Taste


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    dice = torch.Generator().manual_seed(0)
    for name, level in (("dark", 40), ("bright", 200), ("middle", 120), ("grey", 90)):
        noise = torch.randint(0, 40, (12, 10, 3), generator=dice) + level
        Image.fromarray(noise.to(torch.uint8).numpy()).save(f"{name}.png")


def run(*words):
    done = CliRunner().invoke(app, ["taste", *words])
    return done.exit_code, done.stdout, done.stderr


def ok(*words):
    code, printed, errors = run(*words, "--json")
    assert code == 0, errors
    return json.loads(printed)


def test_its_choices_are_those_of_the_library():
    assert [kind.value for kind in Kind] == list(KINDS)
    assert [form.value for form in Form] == list(FORMS)


def test_from_picks_to_scores():
    files = ["dark.png", "bright.png", "middle.png", "grey.png"]
    ok("add", "mine", *files[:2], "--kind", "duel", "--answer", "2", "--prompt", "a")
    ok("add", "mine", *files[:3], "--kind", "best", "--answer", "2", "--prompt", "b")
    ok("add", "mine", *files, "--kind", "hearts", "--answer", "2, 3, -1")
    ok("add", "mine", *files[:2], "--kind", "like", "--answer", "no")
    assert ok("add", "mine", "--kind", "undo")["picks"] == 4
    assert ok("add", "mine", "--kind", "undo")["picks"] == 3
    ok("add", "mine", "--kind", "skip")
    stars = ok("add", "mine", *files[:2], "--kind", "stars", "--answer", "3")
    assert len(stars["ids"]) == 2 and stars["picks"] == 5
    picks = Taste("mine").counting()
    assert [pick.answer for pick in picks] == [1, 1, [-1, 1, 1, 0], 3, 3]
    assert picks[0].shown[1].prompt == "a" and picks[0].shown[1].index == 1

    assert ok("report", "mine", "--encoder", "tiny")["encoder"] == "tiny"
    fitted = ok("fit", "mine")
    assert fitted["head"] == "mine/head.safetensors" and fitted["picks"] == 5
    code, words, _ = run("report", "mine", "--plot", "report.png")
    assert code == 0 and words.startswith("5 picks: it agrees with ")
    assert Image.open("report.png").size == (1200, 528)
    scores = ok("score", "mine/head.safetensors", *files, "--prompt", "x")["scores"]
    by_name = {row["image"]: row["score"] for row in scores}
    assert by_name["bright.png"] > by_name["middle.png"] > by_name["dark.png"]
    assert set(scores[0]["extras"]) == {"taste_std", "unfamiliar"}
    code, _, errors = run("score", "mine/head.safetensors", *files, "--encoder", "tiny")
    assert code == 2 and "the head was fitted without an encoder" in errors.replace("\n", " ")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("add mine dark.png bright.png --kind duel --answer 3", "names picture 3; there are 2"),
        ("add mine dark.png bright.png --kind duel --answer 1,2", "it must be one number"),
        ("add mine dark.png bright.png --kind hearts --answer x", "write numbers, such as 2"),
        ("add mine dark.png bright.png --kind hearts --answer 1,-1", "names picture 1 twice"),
        ("add mine dark.png --kind like --answer maybe", "it must be yes or no"),
        ("add mine dark.png --kind stars --answer 9", "the answer of stars is 9"),
        ("add mine --kind like --answer yes", "like needs pictures"),
        ("add mine --kind undo", "has no pick to undo"),
        ("add mine --kind undo --answer deadbeef", "no pick that counts has this id"),
        ("add mine dark.png dark.png --kind duel --answer 1", "are the same picture"),
        ("add mine dark.png bright.png --kind same --answer 1", "same has none"),
        ("add mine none.png bright.png --kind duel --answer 1", "there is no picture none.png"),
        ("add dark.png bright.png --kind like --answer yes", "dark.png cannot be"),
        ("import mine none", "there is no none to import"),
        ("import mine .", "holds no ratings"),
        ("fit . --device cuda", "--device is cuda, and there is no encoder"),
        ("fit mine", "there are no picks in mine"),
        ("fit mine --out dark.png/x.safetensors", "cannot be: dark.png is a file"),
        ("report mine --plot dark.png/x.png", "cannot be: dark.png is a file"),
        ("score none.safetensors dark.png", "there is no head none.safetensors"),
    ],
)
def test_a_mistake_is_told_and_leaves_nothing_behind(words, message):
    code, printed, errors = run(*words.split())
    assert code == 2 and not printed and message in errors.replace("\n", " ")
    assert "Traceback" not in errors and not Taste("mine").file.exists()


def test_another_writer_is_waited_for_and_named(monkeypatch):
    monkeypatch.setattr(picks_module, "_PATIENCE", 0.05)
    Taste("mine").folder.mkdir()
    with locked(Taste("mine").folder):
        code, _, errors = run("add", "mine", "dark.png", "--kind", "like", "--answer", "yes")
    assert code == 2 and "somebody else writes to this taste (process" in errors
