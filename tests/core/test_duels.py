"""Blind duels: fair draws, honest counts, and the two calls of the command."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from PIL import Image
from small_runs import TINY
from typer.testing import CliRunner

from chunk_grpo_core.cli.app import app
from chunk_grpo_core.measure.duels import (
    DuelResult,
    answered,
    drawn_duels,
    duels_from_json,
    duels_to_json,
    sides_drawn_again,
    with_answer,
    without_last_answer,
)
from chunk_grpo_core.runs.duels import (
    change_duels,
    duels_view,
    keep_duels,
    newest_duels,
    read_duels,
)


def run(*words):
    """Exit code, standard output, standard error."""
    result = CliRunner().invoke(app, [str(word) for word in words])
    return result.exit_code, result.stdout, result.stderr


def finished(*words):
    code, output, errors = run(*words)
    assert code == 0, errors
    return output


def test_sides_are_shared_and_every_prompt_has_its_turn():
    duels = drawn_duels(["a", "b", "c"], 20, 7, seed=1)
    assert sum(duel.lora_is_left for duel in duels) == 10
    assert {duel.prompt for duel in duels[:3]} == {"a", "b", "c"}
    assert [duel.seed for duel in duels] == list(range(7, 27))
    assert drawn_duels(["a", "b", "c"], 20, 7, seed=2) != duels


def test_answers_count_for_whoever_stood_on_that_side():
    duels = drawn_duels(["a"], 4, 0, seed=0)
    for_lora = "".join("1" if duel.lora_is_left else "2" for duel in duels)
    done, result = answered(duels, ", ".join(for_lora))
    assert result == DuelResult(lora=4, base=0, same=0)
    assert duels_from_json(duels_to_json(done), "x") == done
    _, result = answered(duels, for_lora[0] + "0" + for_lora[2] + str(3 - int(for_lora[3])))
    assert result == DuelResult(lora=2, base=1, same=1)


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        ((15, 5, 0), "75% (53% to 89%; chance is 50 %). You like the LoRA's pictures better."),
        ((5, 15, 0), "You like them better without the LoRA."),
        ((11, 9, 0), "cannot be told yet"),
        ((0, 0, 3), "Nothing can be said."),
    ],
)
def test_the_sentence_says_no_more_than_its_interval(counts, said):
    assert said in DuelResult(*counts).sentence()


@pytest.mark.parametrize(
    ("answers", "message"),
    [("12", "there are 2 answers to 3 duels"), ("1x2", "the answers have 'x'")],
)
def test_answers_that_do_not_fit_are_refused(answers, message):
    with pytest.raises(ValueError, match=message):
        answered(drawn_duels(["a"], 3, 0, seed=0), answers)


DRAWN = {"picture": "01.png", "prompt": "a", "seed": 1, "lora_is_left": True, "answer": None}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "duels.json is no file of duels: it must be an object with version and duels"),
        ({"duels": [DRAWN]}, "it must be an object with version and duels; draw new ones"),
        ({"version": 2, "duels": [DRAWN]}, "is of version 2, and this reads 1; draw new ones"),
        ({"version": 1, "duels": []}, r"duels is \[\]; it must be a list"),
        (
            {"version": 1, "duels": [DRAWN, {}]},
            "duel 2: it has {}; it must have answer",
        ),
        ({"version": 1, "duels": [{**DRAWN, "sides": 1}]}, "it must have answer, lora_is_left, "),
        (
            {"version": 1, "duels": [{**DRAWN, "prompt": 5}]},
            "duel 1: prompt is 5; it must be a",
        ),
        ({"version": 1, "duels": [{**DRAWN, "answer": 7}]}, "duel 1: answer is 7; it must be 1, 2"),
    ],
)
def test_a_file_that_holds_no_duels_says_what_is_wrong(data, message, tmp_path):
    (tmp_path / "duels.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match=message):
        read_duels(tmp_path)


def flat(*levels):
    return [torch.full((8, 8, 3), level / 255) for level in levels]


def test_the_same_pictures_keep_their_answers_and_others_get_a_folder_of_their_own(tmp_path):
    drawn = drawn_duels(["a", "b"], 3, 0, seed=0)
    first = keep_duels(tmp_path, drawn, flat(1, 2, 3), flat(4, 5, 6))
    change_duels(first, lambda duels: with_answer(duels, 2, 1))
    assert keep_duels(tmp_path, drawn, flat(1, 2, 3), flat(4, 5, 6)) == first
    assert [duel.answer for duel in read_duels(first)] == [None, 1, None]
    other = keep_duels(tmp_path, drawn, flat(1, 2, 3), flat(4, 5, 7))
    assert other != first and newest_duels(tmp_path) == other
    for duel, base, lora in zip(drawn, (1, 2, 3), (4, 5, 6), strict=True):
        left, right = (Image.open(first / name).getpixel((0, 0))[0] for name in duel.sides)
        assert (left, right) == ((lora, base) if duel.lora_is_left else (base, lora))


def test_nothing_tells_which_is_which_before_all_are_answered(tmp_path):
    drawn = drawn_duels(["a"], 3, 0, seed=0)
    folder = keep_duels(tmp_path, drawn, flat(1, 2, 3), flat(4, 5, 6))
    blind = duels_view(read_duels(folder))
    mirrored = [replace(duel, lora_is_left=not duel.lora_is_left) for duel in drawn]
    known = duels_view(mirrored)
    assert blind | {"id": ""} == known | {"id": ""}
    for number, answer in ((3, 0), (1, 1), (2, 2)):
        assert duels_view(read_duels(folder))["result"] is None
        change_duels(folder, lambda duels, n=number, a=answer: with_answer(duels, n, a))
    done = duels_view(read_duels(folder))
    assert [row["lora_is_left"] for row in done["duels"]] == [d.lora_is_left for d in drawn]
    assert done["result"]["same"] == 1 and "Of 3 blind duels" in done["result"]["text"]
    assert done["id"] == blind["id"]
    with pytest.raises(ValueError, match="you know which is which now"):
        change_duels(folder, without_last_answer)


def test_the_last_answer_is_taken_back_and_none_is_changed_unnoticed():
    drawn = drawn_duels(["a"], 3, 0, seed=0)
    one = with_answer(with_answer(drawn, 1, 2), 2, 0)
    assert [duel.answer for duel in without_last_answer(one)] == [2, None, None]
    assert without_last_answer(drawn) == drawn and with_answer(one, 2, 0) == one
    for number, answer, message in (
        (1, 1, "duel 1 was answered with 2 already"),
        (0, 1, "from 1 to 3"),
        (True, 1, "from 1 to 3"),
        (3, 3, "1 .left., 2 .right. or 0"),
        (3, None, "1 .left., 2 .right. or 0"),
    ):
        with pytest.raises(ValueError, match=message):
            with_answer(one, number, answer)


def test_sides_that_pictures_draw_are_fair_and_come_back():
    drawn = drawn_duels(["a"], 20, 0, seed=0)
    sides = [
        tuple(duel.lora_is_left for duel in sides_drawn_again(drawn, str(key))) for key in range(50)
    ]
    assert {sum(side) for side in sides} == {10} and len(set(sides)) == 50
    lefts = [sum(side[place] for side in sides) for place in range(20)]
    assert 10 < min(lefts) and max(lefts) < 40
    assert sides_drawn_again(drawn, "7") == sides_drawn_again(drawn, "7")


@pytest.mark.slow
def test_a_run_is_judged_and_the_judgement_kept(tmp_path):
    folder = tmp_path / "run"
    config = tmp_path / "tiny.toml"
    reward = '[reward]\nname = "tiny_world"\n[run]\npictures = 1\n'
    config.write_text(f"iterations = 1\n{TINY}{reward}")
    for more in ((), ("--answers", "1"), ("--result",)):
        code, _, errors = run("duels", folder, *more)
        assert code == 2 and "there is no folder" in errors and "finished run" in errors
    folder.mkdir()
    code, _, errors = run("duels", folder, "--answers", "1")
    assert code == 2 and "no duels to answer" in errors
    folder.rmdir()
    finished("train", config, "--out", folder)
    drawn = json.loads(finished("duels", folder, "--count", 4, "--seed", 0, "--json"))
    file = folder / "duels" / "001" / "duels.json"
    assert drawn["folder"] == str(file.parent)
    assert {path.name for path in file.parent.glob("*.png")} == {
        f"{number:02d}{side}.png" for number in range(1, 5) for side in ("", "_left", "_right")
    }
    code, _, errors = run("duels", folder, "--result")
    assert code == 2 and "4 of the 4 duels" in errors and "are not answered yet" in errors
    code, _, errors = run("duels", folder, "--answers", "12")
    assert code == 2 and "2 answers to 4 duels" in errors
    said = json.loads(finished("duels", folder, "--answers", "1 1 1 0", "--json"))
    assert said["lora"] + said["base"] == 3 and said["same"] == 1
    kept = json.loads(file.read_text())["duels"]
    assert [row["answer"] for row in kept] == [1, 1, 1, 0]
    assert json.loads(finished("duels", folder, "--result", "--json")) == said
    code, _, errors = run("duels", folder, "--answers", "2220")
    assert code == 2 and "answered otherwise before" in errors
