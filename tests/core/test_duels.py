"""Blind duels: fair draws, honest counts, and the two calls of the command."""

from __future__ import annotations

import json

import pytest
from small_runs import TINY
from typer.testing import CliRunner

from chunk_grpo_core.cli.app import app
from chunk_grpo_core.measure.duels import (
    DuelResult,
    answered,
    drawn_duels,
    duels_from_json,
    duels_to_json,
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


@pytest.mark.slow
def test_a_run_is_judged_and_the_judgement_kept(tmp_path):
    folder = tmp_path / "run"
    config = tmp_path / "tiny.toml"
    reward = '[reward]\nname = "tiny_world"\n[run]\npictures = 1\n'
    config.write_text(f"iterations = 1\n{TINY}{reward}")
    code, _, errors = run("duels", folder, "--answers", "1")
    assert code == 2 and "no duels to answer" in errors
    finished("train", config, "--out", folder)
    drawn = json.loads(finished("duels", folder, "--count", 4, "--seed", 0, "--json"))
    file = folder / "duels" / "001" / "duels.json"
    assert drawn["folder"] == str(file.parent)
    assert len(list(file.parent.glob("*.png"))) == 4
    code, _, errors = run("duels", folder, "--answers", "12")
    assert code == 2 and "2 answers to 4 duels" in errors
    said = json.loads(finished("duels", folder, "--answers", "1 1 1 0", "--json"))
    assert said["lora"] + said["base"] == 3 and said["same"] == 1
    kept = json.loads(file.read_text())["duels"]
    assert [row["answer"] for row in kept] == [1, 1, 1, 0]
