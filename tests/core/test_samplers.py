"""A sampler that is handed to the forward form makes its rollouts and measures its gain."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from fakes import PROMPTS, Brightness, CancelAfter, ToyPolicy, toy_config
from trainings import trained

from chunk_grpo_core.algorithms.forward import Forward
from chunk_grpo_core.configfile.record import read_record
from chunk_grpo_core.measure.evaluate import evaluate
from chunk_grpo_core.method.cancel import Cancelled
from chunk_grpo_core.method.noise import draw_normal
from chunk_grpo_core.method.objective import ObjectiveConfig
from chunk_grpo_core.method.rules import SdeConfig
from chunk_grpo_core.runs.experiment import EVALUATION_SEED, run_experiment
from chunk_grpo_core.runs.folder import RunFolder
from chunk_grpo_core.train.checkpoint import Checkpoints


@dataclass(frozen=True)
class Steps:
    """Euler steps by hand; with ``noise`` each one jumps to x_0 and noises it afresh."""

    name: str = "by hand"
    draws_noise: bool = False

    @torch.no_grad()
    def sample(self, stream, example, grid, x_1, seeds):
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        x = x_1
        for t, s in grid.pairs():
            v = stream.velocity(x, t, example)
            stream.check_cancel()
            if self.draws_noise:
                eps = draw_normal(generators, x.shape[1:])
                x = (1 - s) * (x - t * v) + s * eps
            else:
                x = x + (s - t) * v
        return x


NOISY = Steps("renoised", draws_noise=True)


def config_of(**changes):
    settings = {"algorithm": "forward", "plan": None, "sde": SdeConfig(rule="ode", eta=0.0)}
    settings |= {
        "objective": ObjectiveConfig(),
        "chunk_fraction": 0.5,
        "share_initial_noise": False,
        "iterations": 4,
    }
    return toy_config(**(settings | changes))


def trained_with(sampler, config=None, **options):
    config = config or config_of()
    return trained(config, algorithm=Forward(config, sampler), **options)


def experiment(folder, sampler, **changes):
    config = config_of(**{"iterations": 2} | changes)
    return run_experiment(
        ToyPolicy(),
        Brightness(),
        PROMPTS[:3],
        PROMPTS[3:],
        config,
        RunFolder(folder),
        algorithm=Forward(config, sampler),
        resume=folder.exists(),
    )


def test_the_librarys_euler_steps_and_those_of_a_sampler_train_the_same_adapter():
    for rows, others in zip(trained_with(None)[0], trained_with(Steps())[0], strict=True):
        assert rows["reward_mean"] == pytest.approx(others["reward_mean"], abs=1e-6)
    own, handed = trained_with(None)[1], trained_with(Steps())[1]
    for name, tensor in own.items():
        torch.testing.assert_close(handed[name], tensor, rtol=0, atol=1e-5)


def test_a_noisy_sampler_explores_from_a_shared_start():
    rows, _ = trained_with(NOISY, config_of(share_initial_noise=True, iterations=1))
    assert rows[0]["reward_std"] > 0


@pytest.mark.parametrize("calls", [1, 130])
def test_a_killed_run_goes_on_with_the_noise_of_its_sampler(calls, tmp_path):
    rows, adapter = trained_with(NOISY)
    with pytest.raises(Cancelled):
        trained_with(NOISY, checkpoints=Checkpoints(tmp_path), check_cancel=CancelAfter(calls))
    again, moved = trained_with(NOISY, checkpoints=Checkpoints(tmp_path))
    assert again == rows[len(rows) - len(again) :] and (len(again) < 4) == (calls > 1)
    assert all(torch.equal(moved[name], adapter[name]) for name in adapter)


def test_the_gain_is_measured_with_the_sampler_and_the_record_and_the_lora_name_it(tmp_path):
    own = experiment(tmp_path / "own", None)
    handed = experiment(tmp_path / "handed", NOISY)
    assert not torch.equal(own.before.images, handed.before.images)
    assert read_record(tmp_path / "own").sampler == "chunk-grpo"
    assert read_record(tmp_path / "handed").sampler == "renoised"
    assert handed.lora_metadata()["sampler"] == "renoised"


def test_a_run_goes_on_with_the_sampler_that_it_was_trained_with_alone(tmp_path):
    experiment(tmp_path / "run", NOISY)
    for other in (None, Steps()):
        with pytest.raises(ValueError, match='sampler = .* but iterations .* "renoised"'):
            experiment(tmp_path / "run", other, iterations=3)
    assert experiment(tmp_path / "run", NOISY, iterations=3).iterations == 3


@pytest.mark.parametrize(
    ("sampler", "changes", "words"),
    [
        (Steps(), {"share_initial_noise": True}, "by hand draws no noise"),
        (NOISY, {"sde": SdeConfig()}, "the sampler renoised makes the rollouts"),
        (NOISY, {"ode_solver": "dpm2"}, "ode_solver is 'dpm2', but the sampler renoised"),
        (None, {"share_initial_noise": True}, "sde is ode"),
    ],
)
def test_settings_that_no_sampler_takes_are_named(sampler, changes, words):
    with pytest.raises(ValueError, match=words):
        Forward(config_of(**changes), sampler)


@pytest.mark.parametrize("solver", ["euler", "dpm2"])
def test_held_out_pictures_follow_the_solver_that_trains(solver, tmp_path):
    before = experiment(tmp_path / "run", None, ode_solver=solver, iterations=1).before
    grid = config_of().grid
    means = {
        name: evaluate(
            ToyPolicy(), Brightness(), PROMPTS[3:], grid,
            seeds=before.rewards.shape[1], seed=EVALUATION_SEED, solver=name,
        ).mean
        for name in ("euler", "dpm2")
    }  # fmt: skip
    assert before.mean == means[solver]
    assert means["euler"] != means["dpm2"]
