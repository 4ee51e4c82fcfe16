"""A reward server that dies in mid-run: the run waits for it, or stops and goes on later, and its
numbers are those of a run whose server never died."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import torch
from fakes import PROMPTS, Brightness, CancelAfter, FailsAfter, ToyPolicy, toy_config
from small_runs import without_seconds

from chunk_grpo_core.measure.evaluate import evaluate
from chunk_grpo_core.method.cancel import Cancelled
from chunk_grpo_core.method.reward import NothingScored, RewardBatch, RewardFailed
from chunk_grpo_core.method.schedule import shifted_grid
from chunk_grpo_core.rewards import load_reward
from chunk_grpo_core.runs.experiment import run_experiment
from chunk_grpo_core.runs.folder import RunFolder
from chunk_grpo_core.train.config import RunSettings
from chunk_grpo_core.train.events import HeldOutEnd, IterationEnd, RewardWait, RolloutEnd
from chunk_grpo_core.train.patience import Patience
from chunk_grpo_core.train.trainer import Trainer

ROOT = Path(__file__).resolve().parents[2]
ITERATIONS = 6


class Server:
    """``chunk-grpo serve-reward brightness`` on a port of its own, to be killed and started."""

    def __init__(self, folder):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.folder, self.process = folder, None

    def start(self):
        command = [sys.executable, "-m", "chunk_grpo_core", "serve-reward", "brightness"]
        self.process = subprocess.Popen(
            [*command, "--port", str(self.port)],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        end = time.monotonic() + 60
        while time.monotonic() < end:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5).read()
                return
            except OSError:
                time.sleep(0.1)
        raise TimeoutError("the server did not start")

    def kill(self):
        if self.process:
            self.process.kill()
            self.process.wait()

    def reward(self):
        url = f"http://127.0.0.1:{self.port}"
        return load_reward("remote_http", url=url, retries=0)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("server"))
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="module")
def whole(server, tmp_path_factory):
    """A run whose server never died."""
    return run(tmp_path_factory.mktemp("runs") / "whole", server.reward())


def run(folder, reward, listener=lambda event: None, *, resume=False, **changes):
    config = toy_config(**{"iterations": ITERATIONS, **changes})
    policy = ToyPolicy()
    outcome = run_experiment(
        policy,
        reward,
        PROMPTS[:3],
        PROMPTS[3:],
        config,
        RunFolder(folder),
        resume=resume,
        evaluation_seeds=1,
        listener=listener,
    )
    rows = without_seconds(outcome.rows)
    return rows, policy.adapter.state_dict(), outcome


def same(one, other):
    return one[0] == other[0] and all(torch.equal(one[1][name], other[1][name]) for name in one[1])


def killing(server, after, events):
    def listen(event):
        events.append(event)
        if isinstance(event, IterationEnd) and event.iteration == after - 1:
            server.kill()

    return listen


@pytest.mark.slow
def test_a_run_whose_server_was_killed_stops_and_resumes_to_the_same_numbers(
    server, whole, tmp_path
):
    events = []
    few = {"run": RunSettings(reward_retries=2, reward_wait=0.05)}
    with pytest.raises(NothingScored, match=r"all-masked: no picture of iteration 3 has a score"):
        run(tmp_path / "killed", server.reward(), killing(server, 2, events), **few)
    waits = [event for event in events if isinstance(event, RewardWait)]
    assert [(w.what, w.number, w.seconds) for w in waits] == [
        ("iteration 3", 1, 0.05),
        ("iteration 3", 2, 0.1),
    ]
    assert RunFolder(tmp_path / "killed").checkpoints.newest_state().iteration == 2
    with pytest.raises(RewardFailed):  # the server is still gone
        run(tmp_path / "killed", server.reward(), resume=True, **few)
    server.start()
    again = run(tmp_path / "killed", server.reward(), resume=True, **few)
    assert same(again, whole) and len(again[0]) == ITERATIONS


@pytest.mark.slow
def test_a_run_whose_server_comes_back_goes_on_by_itself_with_the_same_numbers(
    server, whole, tmp_path
):
    events = []
    kill = killing(server, 2, events)

    def listen(event):
        kill(event)
        if isinstance(event, RewardWait):
            server.start()

    waited = run(tmp_path / "waited", server.reward(), listen)
    assert same(waited, whole)
    assert [event.what for event in events if isinstance(event, RewardWait)] == ["iteration 3"]
    told = [event for event in events if isinstance(event, RolloutEnd)]
    assert len(told) == 2 * ITERATIONS and not any(e.rewards.isnan().any() for e in told)


class Absent(Brightness):
    """Brightness, but of its calls some are not answered."""

    def __init__(self, *failing):
        self.failing, self.calls, self.pictures = failing, 0, []

    def score(self, images, examples):
        self.calls += 1
        self.pictures.append(images)
        if self.calls - 1 in self.failing:
            raise RewardFailed("no answer")
        return super().score(images, examples)


@pytest.mark.parametrize("in_thread", [False, True])
def test_a_retry_scores_the_same_pictures_and_samples_none(in_thread):
    policy, reward, events = ToyPolicy(), Absent(0, 1, 2, 3), []
    config = toy_config(iterations=1, score_while_sampling=in_thread, self_test=False)
    Trainer(policy, reward, PROMPTS, config, listener=events.append).train()
    expected = ToyPolicy()
    Trainer(expected, Brightness(), PROMPTS, config).train()
    assert policy.calls == expected.calls
    assert len(reward.pictures) == 6  # two groups, three times
    for first, again in zip(reward.pictures[:2], reward.pictures[4:], strict=True):
        assert torch.equal(first, again)
    (row,) = [event.metrics for event in events if isinstance(event, IterationEnd)]
    assert row["masked_scores"] == 0


def test_one_failed_group_is_masked_and_nobody_waits():
    reward, events = Absent(0), []
    Trainer(ToyPolicy(), reward, PROMPTS, toy_config(iterations=1), listener=events.append).train()
    (row,) = [event.metrics for event in events if isinstance(event, IterationEnd)]
    assert row["masked_scores"] == 8 and not any(isinstance(e, RewardWait) for e in events)


def test_waits_double_and_are_bounded():
    waits = Patience(RunSettings()).waits
    assert waits == [5, 10, 20, 40, 80, 160] and sum(waits) < 6 * 60
    assert max(Patience(RunSettings(reward_retries=20, reward_wait=600)).waits) == 600


def test_a_wait_can_be_cancelled():
    began = time.monotonic()
    patience = Patience(RunSettings(reward_wait=600.0), check_cancel=CancelAfter(3))
    with pytest.raises(Cancelled):
        patience.until_scored(lambda: [RewardBatch.failed(2, "gone")], "r", "iteration 1")
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("first", [0, 2 + 2 * 2])  # of the first measurement, of the last one
def test_a_measurement_waits_too_and_scores_the_same_pictures(first, tmp_path):
    reward = Absent(first, first + 1)
    waited = run(tmp_path / "waited", reward, iterations=2, self_test=False)
    whole = run(tmp_path / "whole", Brightness(), iterations=2)
    assert same(waited, whole)
    for side in ("before", "after"):
        assert torch.equal(getattr(waited[2], side).rewards, getattr(whole[2], side).rewards)
    assert torch.equal(reward.pictures[first], reward.pictures[first + 2])


def test_a_measurement_that_no_wait_helps_stops_the_run_which_goes_on(tmp_path):
    with pytest.raises(NothingScored, match="no picture of the evaluation has a score"):
        run(tmp_path / "stopped", FailsAfter(2 + 2 * 2), iterations=2, self_test=False)
    again = run(tmp_path / "stopped", Brightness(), iterations=2, self_test=False, resume=True)
    assert same(again, run(tmp_path / "whole", Brightness(), iterations=2))


def test_missing_scores_of_a_measurement_are_counted(tmp_path):
    events = []
    _, _, outcome = run(tmp_path, Absent(), events.append, iterations=1)
    assert outcome.before.missing == outcome.after.missing == 0
    prompts = PROMPTS[:4]
    found = evaluate(ToyPolicy(), Absent(1), prompts, shifted_grid(4), seeds=2)
    assert found.missing == 2 and found.to_json()["missing"] == 2
    assert [e.missing for e in events if isinstance(e, HeldOutEnd)] == [0, 0]


class Blind(ToyPolicy):
    """A model whose pictures are NaN."""

    def decode(self, x_0):
        return super().decode(x_0) * torch.nan


def test_pictures_that_are_not_finite_are_no_matter_of_waiting():
    events = []
    with pytest.raises(NothingScored, match="divergence: no picture of iteration 1 is finite"):
        Trainer(Blind(), Brightness(), PROMPTS, toy_config(), listener=events.append).train()
    assert not any(isinstance(event, RewardWait) for event in events)
    with pytest.raises(NothingScored, match="divergence: no picture of the evaluation is finite"):
        evaluate(Blind(), Brightness(), PROMPTS[:2], shifted_grid(4), seeds=2)
