"""The campaign of faults: what it takes for a failure, and a small one."""

from __future__ import annotations

import json
import os
import random

import pytest

from benchmarks.faults.__main__ import main
from benchmarks.faults.compare import differences
from benchmarks.faults.gates import GATES
from benchmarks.faults.mutate import damaged_bytes
from benchmarks.faults.outcomes import FAILURES, Case, Expected, Kind, Outcome, judge, table
from benchmarks.faults.values import KEYS
from benchmarks.faults.warm import Ended
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
        ({}, ended(-11), Kind.traceback),
        ({}, ended(None), Kind.timeout),
        ({}, ended(0), Kind.accepted),
        ({"expected": Expected.refused}, ended(0), Kind.silent),
        ({"never": ("caption",)}, ended(2, "error: a learning_rate caption"), Kind.silent),
        ({"expected": Expected.accepted}, ended(2, "error: learning_rate"), Kind.difference),
        ({"check": lambda folder, end: "other numbers"}, ended(0), Kind.difference),
        ({"argv": ("score", "--json")}, ended(0, stdout='{"score": NaN}'), Kind.difference),
        ({"argv": ("score", "--json")}, ended(0, stdout='{"score": null}'), Kind.accepted),
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
    assert lines[2] == "| sigmas | 3 | 2 | 0 | 0 | 0 | 0 | 1 | 0 |"
    assert lines[-1].startswith("| all | 3 |")


def test_only_a_clear_error_and_an_acceptance_are_no_failures():
    assert set(Kind) - set(FAILURES) == {Kind.clear, Kind.accepted}


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
    assert differences(missing, whole, rows_may_miss=True) == ""


def test_damage_depends_on_the_seed_alone():
    body = bytes(range(256)) * 4
    one, other = ([damaged_bytes(body, random.Random(s)) for s in range(50)] for _ in range(2))
    assert one == other
    assert len({damage for damage, _ in one}) > 40


def test_every_setting_that_the_campaign_knows_exists():
    elsewhere = ("prompts.", "grid.", "run.")
    ours = {key for key in KEYS if not key.startswith(elsewhere)}
    assert ours <= set(setting_keys())


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
