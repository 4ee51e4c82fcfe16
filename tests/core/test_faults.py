"""The campaign of faults: what it takes for a failure, and a small one."""

from __future__ import annotations

import json
import os
import random
from dataclasses import fields

import pytest

from benchmarks.faults.__main__ import main
from benchmarks.faults.compare import differences
from benchmarks.faults.gates import GATES
from benchmarks.faults.hostile_clients import judge_answer
from benchmarks.faults.kills import stopped_badly
from benchmarks.faults.mutate import damaged_bytes
from benchmarks.faults.outcomes import FAILURES, Case, Expected, Kind, Outcome, judge, table
from benchmarks.faults.values import FLUX, KEYS
from benchmarks.faults.warm import Ended
from chunk_grpo_core.cli.app import app
from chunk_grpo_core.models.flux.config import FluxModel
from chunk_grpo_core.train.config import setting_keys

pytestmark = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="needs Linux")


def ended(code, stderr="", stdout=""):
    return Ended(code, stdout, stderr, 1.0, 400.0)


def case(**changes):
    facts = {"argv": ("train", "c.toml"), "about": "lr", "names": ("learning_rate",), **changes}
    return Case(**facts)


TRACEBACK = "Traceback (most recent call last):\n  File x\nKeyError: 'during'\n"


@pytest.mark.parametrize(
    ("changes", "end", "kind"),
    [
        ({}, ended(2, "error: learning_rate is nan; it must be above 0"), Kind.clear),
        ({}, ended(2, "error: no"), Kind.unclear),
        ({}, ended(2, ""), Kind.unclear),
        ({}, ended(2, f"error: learning_rate {'x' * 5000}"), Kind.unclear),
        ({}, ended(1, TRACEBACK), Kind.traceback),
        (
            {},
            ended(1, "error: this is a bug, please report it (KeyError: 'learning_rate')"),
            Kind.traceback,
        ),
        ({}, ended(0, "Exception ignored in: <generator learning_rate>"), Kind.traceback),
        ({}, ended(-11), Kind.traceback),
        ({}, ended(None), Kind.timeout),
        ({}, ended(0), Kind.accepted),
        ({}, ended(1, "error: learning_rate is nan"), Kind.unclear),
        ({"codes": (1,)}, ended(1, "error: learning_rate is nan"), Kind.clear),
        ({"names": ("rs",)}, ended(2, "error: numbers and errors"), Kind.unclear),
        ({"names": ("lora.rs",)}, ended(2, "error: lora.rs is 1"), Kind.clear),
        ({"expected": Expected.refused}, ended(0), Kind.silent),
        ({"never": ("caption",)}, ended(2, "error: a learning_rate caption"), Kind.silent),
        ({"expected": Expected.accepted}, ended(2, "error: learning_rate"), Kind.difference),
        ({"check": lambda folder, end: "other numbers"}, ended(0), Kind.difference),
        ({"argv": ("score", "--json")}, ended(0, stdout='{"score": NaN}'), Kind.difference),
        ({"argv": ("score", "--json")}, ended(0, stdout='{"score": null}'), Kind.accepted),
        ({"argv": ("score", "--json")}, ended(2, "error: learning_rate"), Kind.difference),
        (
            {"argv": ("score", "--json")},
            ended(2, "error: learning_rate", '{"error": "no", "exit_code": 1}'),
            Kind.difference,
        ),
        (
            {"argv": ("score", "--json")},
            ended(2, "error: learning_rate", '{"error": "learning_rate", "exit_code": 2}'),
            Kind.clear,
        ),
    ],
)
def test_an_end_is_of_the_kind_that_it_is(changes, end, kind, tmp_path):
    assert judge(case(**changes), end, tmp_path)[0] is kind


def test_progress_bars_are_no_message(tmp_path):
    bar = "training ━━━━━━━━ 100% 0:00:01 reward 0.813 learning_rate\n"
    assert judge(case(), ended(2, f"{bar}error: no"), tmp_path)[0] is Kind.unclear


def test_the_table_counts_every_kind_of_every_gate():
    outcomes = [
        Outcome("sigmas", n, "", kind, "", 0.0, 0.0)
        for n, kind in enumerate((Kind.clear, Kind.clear, Kind.silent))
    ]
    lines = table(outcomes).splitlines()
    assert lines[2] == "| sigmas | 3 | 2 | 0 | 0 | 0 | 0 | 0 | 1 | 0 |"
    assert lines[-1].startswith("| all | 3 |")


def test_only_a_clear_error_and_an_acceptance_are_no_failures():
    assert set(Kind) - set(FAILURES) == {Kind.clear, Kind.accepted, Kind.skipped}


def test_a_bug_that_the_command_line_hides_is_a_traceback(tmp_path, capsys, monkeypatch):
    def broken(*words):
        raise KeyError("learning_rate")

    monkeypatch.setattr("chunk_grpo_core.cli.train.read_config_file", broken)
    with pytest.raises(SystemExit) as end:
        app(["train", str(tmp_path / "c.toml")])
    said = capsys.readouterr().err
    assert "Traceback" not in said and "learning_rate" in said
    assert judge(case(), ended(end.value.code, said), tmp_path)[0] is Kind.traceback


def run_folder(path, reward=0.5, iterations=(0, 1), lora=b"tensors"):
    path.mkdir()
    (path / "lora.safetensors").write_bytes(lora)
    (path / "run.toml").write_text("iterations = 2\n")
    rows = [{"iteration": n, "reward_mean": reward, "seconds": random.random()} for n in iterations]
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_two_runs_may_differ_in_times_alone(tmp_path):
    whole = run_folder(tmp_path / "whole")
    assert differences(run_folder(tmp_path / "a"), whole) == ""
    assert "reward_mean is 0.6" in differences(run_folder(tmp_path / "b", reward=0.6), whole)
    twice = run_folder(tmp_path / "c", iterations=(0, 1, 1))
    assert "rows [0, 1, 1]" in differences(twice, whole)
    missing = run_folder(tmp_path / "d", iterations=(1,))
    assert "1 rows instead of 2" in differences(missing, whole)
    assert differences(missing, whole, damaged="metrics.jsonl", least=1) == ""
    assert "newest" in differences(missing, whole, damaged="metrics.jsonl", least=2)
    with open(missing / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write('{"iteration": 2, "rew')
    assert "cannot be read" in differences(missing, whole, damaged="metrics.jsonl")


def test_two_runs_may_not_differ_in_pictures(tmp_path):
    runs = [run_folder(tmp_path / name) for name in ("whole", "a")]
    for run in runs:
        (run / "samples").mkdir()
        (run / "samples" / "iteration_00001.png").write_bytes(b"picture")
    assert differences(*runs) == ""
    (runs[1] / "samples" / "iteration_00001.png").write_bytes(b"pict")
    assert differences(*runs) == "samples/iteration_00001.png"


STOPPED = "stopped by SIGTERM; go on with: chunk-grpo resume run"


@pytest.mark.parametrize(
    ("signals", "end", "before", "done", "kept", "kind"),
    [
        (("SIGTERM",), ended(143, STOPPED), 2, 3, 3, None),
        (("SIGTERM",), ended(143, STOPPED), 2, 3, 2, Kind.difference),
        (("SIGTERM",), ended(143, STOPPED), 2, 5, 5, Kind.difference),
        (("SIGTERM",), ended(143, "stopped by SIGTERM"), 2, 2, 2, Kind.unclear),
        (("SIGTERM",), ended(0), 2, 6, 6, Kind.silent),
        (("SIGTERM",), ended(None), 2, 2, 2, Kind.timeout),
        (("SIGTERM",), ended(1, "error: no"), 2, 2, 2, Kind.traceback),
        (("SIGTERM",), ended(-15), 0, 0, 0, None),
        (("SIGTERM",), ended(-15, "training"), 2, 2, 2, Kind.difference),
        (("SIGTERM",), ended(143, TRACEBACK), 2, 2, 2, Kind.traceback),
        (("SIGKILL",), ended(-9), 2, 3, 2, None),
        (("SIGKILL",), ended(-9), 2, 5, 0, Kind.difference),
        (("SIGINT", "SIGINT"), ended(-11), 2, 2, 2, Kind.traceback),
    ],
)
def test_a_run_that_was_told_to_stop_keeps_what_it_has_done(
    signals, end, before, done, kept, kind, tmp_path
):
    run = run_folder(tmp_path / "run", iterations=range(done))
    (run / "lora.safetensors").unlink()
    (run / "checkpoints" / f"step_{kept:06}").mkdir(parents=True)
    wrong = stopped_badly(run, end, signals, before, [])
    assert (wrong and wrong[0]) is kind


def test_a_row_that_a_killed_process_left_is_not_lost_by_the_next(tmp_path):
    run = run_folder(tmp_path / "run", iterations=range(1))
    rows = (run / "metrics.jsonl").read_text().splitlines()
    end = ended(130, "stopped by SIGINT; go on with: chunk-grpo resume run")
    (run / "run.toml").touch()
    assert stopped_badly(run, end, ("SIGINT",), 1, rows) is None
    wrong = stopped_badly(run, end, ("SIGINT",), 1, [rows[0].replace("}", " }")])
    assert wrong is not None and wrong[0] is Kind.difference


@pytest.mark.parametrize(
    ("answer", "is_right", "kind"),
    [
        (b'HTTP/1.1 200 OK\r\n\r\n{"rewards": [0.39215]}', True, Kind.accepted),
        (b'HTTP/1.1 200 OK\r\n\r\n{"rewards": [0.5]}', True, Kind.difference),
        (b'HTTP/1.1 200 OK\r\n\r\n{"rewards": [0.39215]}', False, Kind.silent),
        (b'HTTP/1.1 400 Bad Request\r\n\r\n{"error": "no"}', False, Kind.clear),
        (b'HTTP/1.1 400 Bad Request\r\n\r\n{"error": "no"}', True, Kind.difference),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", False, Kind.unclear),
        (b"HTTP/1.1 500 Internal Server Error\r\n\r\nsorry", False, Kind.traceback),
        (b"", False, Kind.unclear),
    ],
)
def test_an_answer_of_the_reward_server_is_of_the_kind_that_it_is(answer, is_right, kind):
    assert judge_answer(answer, is_right, False)[0] is kind


def test_a_campaign_that_is_interrupted_prints_its_table_and_is_no_success(monkeypatch, capsys):
    def run(options, outcomes):
        outcomes.append(Outcome("sigmas", 0, "", Kind.clear, "", 0.0, 0.0))
        raise KeyboardInterrupt

    monkeypatch.setattr("benchmarks.faults.__main__._run", run)
    assert main(["--seed", "1"]) == 130
    assert "| sigmas | 1 | 1 |" in capsys.readouterr().out


def test_a_campaign_that_tries_nothing_is_no_success(monkeypatch):
    monkeypatch.setattr("benchmarks.faults.__main__._run", lambda options, outcomes: None)
    assert main(["--seed", "1"]) == 1


def test_damage_depends_on_the_seed_alone():
    body = bytes(range(256)) * 4
    one, other = ([damaged_bytes(body, random.Random(s)) for s in range(50)] for _ in range(2))
    assert one == other
    assert len({damage for damage, _ in one}) > 40


def test_the_campaign_knows_every_setting():
    elsewhere = ("prompts.", "grid.", "run.pictures")
    ours = {key for key in KEYS if not key.startswith(elsewhere)}
    assert ours == set(setting_keys()) - {"grid", "plan"}  # which have gates of their own


def test_the_campaign_knows_every_key_of_the_flux_model():
    assert {f"model.{field.name}" for field in fields(FluxModel)} == set(FLUX)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_small_campaign_has_no_failure(tmp_path):
    names = [*GATES, "kills:0", "disk:0", "disk:2", "clients:7"]
    words = [f"--only={name}" for name in names]
    status = main([*words, "--inputs", "30", "--seed", "1", "--out", str(tmp_path)])
    assert status == 0, (tmp_path / "report.md").read_text(encoding="utf-8")
    outcomes = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["outcomes"]
    gates = {outcome["gate"] for outcome in outcomes}
    assert gates == {*GATES, "kills", "disk", "clients"} and len(outcomes) >= 35
    assert not (tmp_path / "failing").exists()
