"""The port of an algorithm, proved by a second one that has no plan, no noisy steps, no ratio."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from environment import package
from fakes import PROMPTS, Brightness, CancelAfter, ToyPolicy, toy_config
from small_runs import without_seconds
from torch import Tensor
from trainings import trained

from chunk_grpo_core.algorithms import ALGORITHMS, algorithm_of
from chunk_grpo_core.algorithms.chunk_grpo import ChunkGrpo
from chunk_grpo_core.configfile.record import read_settings
from chunk_grpo_core.method.cancel import Cancelled
from chunk_grpo_core.method.noise import derive_seed
from chunk_grpo_core.method.rollout import Trajectory, rollout
from chunk_grpo_core.method.rules import SdeConfig
from chunk_grpo_core.runs.experiment import run_experiment
from chunk_grpo_core.runs.folder import RunFolder
from chunk_grpo_core.runs.view import run_view
from chunk_grpo_core.train.checkpoint import Checkpoints
from chunk_grpo_core.train.config import TrainConfig
from chunk_grpo_core.train.trainer import Trainer


@dataclass(frozen=True)
class Best:
    """The best sample of a group."""

    trajectory: Trajectory
    x_0: Tensor
    weight: float
    seed: int


@dataclass(frozen=True)
class Losses:
    total: float
    count: int

    def __add__(self, other):
        return Losses(self.total + other.total, self.count + other.count)


class BestOfN:
    """Regress the velocity on the best sample of each group; needs x_0 alone, of any sampler."""

    def __init__(self, config):
        if config.plan is not None:
            raise ValueError("plan is set, but best_of_n trains no chunks; leave it out")
        self._config = config

    old_decay = None
    sampler = None

    def doubts(self, model):
        return []

    def sample(self, stream, request):
        return rollout(
            stream.velocity,
            request.example,
            self._config.grid,
            SdeConfig(rule="ode"),
            request.noise,
            request.latent_shape,
            device=stream.device,
            batch_size=stream.batch_size,
            check_cancel=stream.check_cancel,
        )

    def recorded(self, stream, group):
        return group.trajectory

    def task(self, group, advantages, weight):
        request = group.request
        seed = derive_seed(self._config.seed, "times", request.iteration, request.number)
        return Best(group.trajectory, group.trajectory.x_0[advantages.argmax()], weight, seed)

    def prepare(self, stream, task, policy):
        return task

    def gradient(self, stream, task, *, scale, update):
        generator = torch.Generator().manual_seed(derive_seed(task.seed, update))
        total, times = 0.0, torch.rand(8, generator=generator).tolist()
        for t in times:
            eps = torch.randn(task.x_0.shape, generator=generator)
            x_t = (1 - t) * task.x_0 + t * eps
            v_t = stream.velocity(x_t[None], t, task.trajectory.example)[0]
            loss = (v_t - (eps - task.x_0)).square().mean() / len(times)
            (scale * task.weight * loss).backward()
            stream.check_cancel()
            total += float(loss.detach())
        return Losses(total, 1)

    def report(self, measured, iteration):
        return {"regression_loss": measured.total / measured.count}


@pytest.fixture(autouse=True)
def best_of_n(monkeypatch):
    monkeypatch.setitem(ALGORITHMS, "best_of_n", BestOfN)


def config_of(**changes):
    """Settings that Chunk-GRPO would refuse."""
    settings = {
        "algorithm": "best_of_n",
        "plan": None,
        "sde": SdeConfig(rule="ode"),
        "share_initial_noise": False,
        "iterations": 7,
    }
    return toy_config(**(settings | changes))


def test_another_algorithm_learns_without_plan_noise_or_ratio(caplog):
    rows, _ = trained(config_of(iterations=20, prompts_per_iteration=5))
    rewards = [row["reward_mean"] for row in rows]
    assert sum(rewards[-5:]) > sum(rewards[:5]) + 5 * 0.02
    assert rows[-1]["regression_loss"] > 0 and rows[-1]["grad_norm"] > 0
    chunk_columns = {"ratio_mean", "clip_fraction", "approx_kl", "ratio_error_first_update"}
    assert not chunk_columns & rows[-1].keys()
    assert caplog.text.count("gradients are not tested") == 1


@pytest.mark.slow
@pytest.mark.parametrize("calls", [1, 70, 140])
def test_a_killed_run_of_another_algorithm_resumes_to_the_same_numbers(calls, tmp_path):
    rows, adapter = trained(config_of())
    with pytest.raises(Cancelled):
        trained(config_of(), checkpoints=Checkpoints(tmp_path), check_cancel=CancelAfter(calls))
    again, moved = trained(config_of(), checkpoints=Checkpoints(tmp_path))
    assert again == rows[len(rows) - len(again) :] and (len(again) < 7) == (calls > 1)
    assert all(torch.equal(moved[name], adapter[name]) for name in adapter)


def test_a_whole_run_of_another_algorithm_is_measured_drawn_and_watched(tmp_path):
    package("matplotlib")
    config, folder = config_of(iterations=2), RunFolder(tmp_path / "run")
    outcome = run_experiment(ToyPolicy(), Brightness(), PROMPTS[:3], PROMPTS[3:], config, folder)
    assert outcome.ratio_error_first_update is None
    assert outcome.plot().std() > 0
    assert outcome.lora_metadata()["chunk_plan"] == ""
    view = run_view(folder.path)
    assert view["plan"] is None and view["done"] == 2
    assert read_settings(folder.path) == config


def test_an_algorithm_can_be_handed_over():
    class Counting(ChunkGrpo):
        asked = 0

        def gradient(self, stream, task, *, scale, update):
            Counting.asked += 1
            return super().gradient(stream, task, scale=scale, update=update)

    config = toy_config(iterations=1)
    (rows, moved), (expected, adapter) = (
        trained(config, algorithm=Counting(config)),
        trained(config),
    )
    assert rows == expected and all(torch.equal(moved[name], adapter[name]) for name in adapter)
    assert Counting.asked == config.prompts_per_iteration


class Unlisted(BestOfN):
    """An algorithm of somebody's program: no entry in ``ALGORITHMS``."""


def run_unlisted(folder, config, **options):
    policy = ToyPolicy()
    outcome = run_experiment(
        policy,
        Brightness(),
        PROMPTS[:3],
        PROMPTS[3:],
        config,
        RunFolder(folder),
        algorithm=Unlisted(config),
        evaluation_seeds=1,
        **options,
    )
    rows = without_seconds(outcome.rows)
    return rows, policy.adapter.state_dict()


@pytest.mark.slow
def test_an_algorithm_of_a_program_runs_without_a_plan_and_resumes_to_the_same_numbers(tmp_path):
    config = toy_config(plan=None, sde=SdeConfig(rule="ode"), iterations=5, checkpoint_every=2)
    rows, adapter = run_unlisted(tmp_path / "whole", config)
    with pytest.raises(Cancelled):
        run_unlisted(tmp_path / "killed", config, check_cancel=CancelAfter(90))
    assert 0 < RunFolder(tmp_path / "killed").checkpoints.newest_state().iteration < 5
    again, moved = run_unlisted(tmp_path / "killed", config, resume=True)
    assert again == rows and all(torch.equal(moved[name], adapter[name]) for name in adapter)
    assert rows[-1]["regression_loss"] > 0
    settings = read_settings(tmp_path / "killed")
    assert settings == replace(config, algorithm="Unlisted") and settings.plan is None
    assert run_view(tmp_path / "killed")["done"] == 5


def test_a_run_of_an_algorithm_of_a_program_does_not_go_on_with_another_one(tmp_path):
    config = toy_config(plan=None, sde=SdeConfig(rule="ode"), iterations=1)
    run_unlisted(tmp_path, config)
    chunked = toy_config(iterations=2)
    message = 'algorithm = "chunk_grpo".*iterations 1 to 1 were trained with null and "Unlisted"'
    with pytest.raises(ValueError, match=message):
        run_experiment(
            ToyPolicy(),
            Brightness(),
            PROMPTS[:3],
            PROMPTS[3:],
            chunked,
            RunFolder(tmp_path),
            resume=True,
            evaluation_seeds=1,
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"algorithm": "chunk_grpo"},
            "plan is missing, and the algorithm chunk_grpo",
        ),
        (
            {"algorithm": "grpo"},
            "algorithm is 'grpo'; it must be one of chunk_grpo, forward, preference, best_of_n",
        ),
        ({"plan": toy_config().plan}, "plan is set, but best_of_n trains no chunks"),
    ],
)
def test_settings_that_do_not_suit_the_algorithm_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        algorithm_of(config_of(**changes))


def test_settings_without_a_plan_are_read_back():
    config = config_of()
    assert TrainConfig.of(config.flat()) == config
    assert TrainConfig.of(config.flat()).algorithm == "best_of_n"


def test_a_run_goes_on_with_its_own_algorithm_only(tmp_path):
    checkpoints, chunked = Checkpoints(tmp_path), toy_config(iterations=1)
    trained(chunked, checkpoints=checkpoints)
    message = 'algorithm = "best_of_n", but iterations 1 to 1 were trained with .*"chunk_grpo"'
    with pytest.raises(ValueError, match=message):
        trained(replace(chunked, algorithm="best_of_n", plan=None), checkpoints=checkpoints)


def test_a_policy_without_an_adapter_cannot_be_trained():
    policy = ToyPolicy()
    policy.adapter = None
    with pytest.raises(ValueError, match="the policy toy has no adapter, so there is nothing"):
        Trainer(policy, Brightness(), PROMPTS, toy_config())
