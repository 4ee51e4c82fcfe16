"""The algorithm ``forward`` in the training loop: what it refuses, learns, resumes and shares."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from fakes import PROMPTS, Brightness, CancelAfter, MixingPolicy, ToyPolicy, toy_config
from threads import Unreachable, same_training, together, train
from trainings import trained

from chunk_grpo_core.algorithms import algorithm_of
from chunk_grpo_core.algorithms.algorithm import GroupRequest, SampledGroup
from chunk_grpo_core.algorithms.forward import Forward
from chunk_grpo_core.configfile.record import read_settings
from chunk_grpo_core.method.advantage import AdvantageConfig
from chunk_grpo_core.method.cancel import Cancelled
from chunk_grpo_core.method.matching import OBJECTIVES, ForwardConfig
from chunk_grpo_core.method.noise import Noise
from chunk_grpo_core.method.objective import ObjectiveConfig
from chunk_grpo_core.method.rules import SdeConfig
from chunk_grpo_core.method.schedule import coarser_grid
from chunk_grpo_core.method.stream import Stream
from chunk_grpo_core.method.walk import sample_ode
from chunk_grpo_core.method.windows import WindowConfig
from chunk_grpo_core.prompts.example import Example
from chunk_grpo_core.runs.experiment import run_experiment
from chunk_grpo_core.runs.folder import RunFolder
from chunk_grpo_core.runs.view import run_view
from chunk_grpo_core.train.checkpoint import Checkpoints
from chunk_grpo_core.train.config import OptimizerConfig, TrainConfig
from chunk_grpo_core.train.self_test import SelfTestFailed
from chunk_grpo_core.train.trainer import Trainer

ODE = SdeConfig(rule="ode")


def config_of(**changes):
    settings = {
        "algorithm": "forward",
        "plan": None,
        "objective": ObjectiveConfig(),
        "chunk_fraction": 0.5,
        "sde": ODE,
        "share_initial_noise": False,
        "iterations": 6,
        "optimizer": OptimizerConfig(learning_rate=1e-2),
    }
    return toy_config(**(settings | changes))


VARIANTS = {
    "awm": ForwardConfig(),
    "nft": ForwardConfig(objective="nft"),
    "elbo": ForwardConfig(objective="elbo", clip=0.1),
    "an average samples": ForwardConfig(objective="nft", old="average", old_decay=0.7),
    "an average samples, with a ratio": ForwardConfig(objective="elbo", old="average", clip=0.1),
    "everything": ForwardConfig(
        times=3,
        time_distribution="uniform",
        weight="adaptive",
        share_times=True,
        kl_ref=0.05,
        norm_guard=0.02,  # brightness is gained by longer velocities
    ),
}
every_variant = pytest.mark.parametrize("forward", VARIANTS.values(), ids=VARIANTS)


@every_variant
def test_every_variant_learns_and_says_what_it_did(forward):
    optimizer = OptimizerConfig(learning_rate=5e-2)
    rows, _ = trained(
        config_of(forward=forward, iterations=24, prompts_per_iteration=5, optimizer=optimizer)
    )
    rewards = [row["reward_mean"] for row in rows]
    assert sum(rewards[-6:]) > sum(rewards[:6]) + 6 * 0.008
    last = rows[-1]
    assert last["matching_error"] > 0 and last["reference_gap"] > 0 and last["grad_norm"] > 0
    assert last["trained_passes"] == 5 * 8 * forward.times
    assert 0.5 < last["velocity_norm"] < 2 and last["velocity_norm"] != 1
    assert ("old_gap" in last) == (forward.objective != "awm")
    assert ("clipped_samples" in last) == (forward.objective == "elbo")
    assert "ratio_mean" not in last and "clip_fraction" not in last


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_first_update_of_every_rollout_is_on_policy_to_the_last_bit(objective):
    optimizer = OptimizerConfig(learning_rate=1e-2, epochs=2)
    config = config_of(forward=ForwardConfig(objective=objective), optimizer=optimizer)
    for policy in (ToyPolicy(), MixingPolicy()):
        rows, _ = trained(config, policy)
        errors = [row.get("velocity_error_first_update") for row in rows]
        assert errors == [None if objective == "awm" else 0.0] * 6
        assert objective == "awm" or rows[0]["old_gap"] > 0  # the second epoch has moved


@pytest.mark.slow
@every_variant
@pytest.mark.parametrize("calls", [40, 150])
def test_a_killed_run_resumes_to_the_same_numbers(forward, calls, tmp_path):
    config = config_of(forward=forward, checkpoint_every=2)
    rows, adapter = trained(config)
    with pytest.raises(Cancelled):
        trained(config, checkpoints=Checkpoints(tmp_path), check_cancel=CancelAfter(calls))
    again, moved = trained(config, checkpoints=Checkpoints(tmp_path))
    assert again == rows[len(rows) - len(again) :] and len(again) > 0
    assert all(torch.equal(moved[name], adapter[name]) for name in adapter)


def test_a_run_does_not_go_on_with_another_old_policy(tmp_path):
    nft = ForwardConfig(objective="nft")
    checkpoints = Checkpoints(tmp_path)
    trained(config_of(forward=nft, iterations=1), checkpoints=checkpoints)
    with pytest.raises(ValueError, match=r'forward\.old = "average", but iterations 1 to 1'):
        trained(config_of(forward=replace(nft, old="average")), checkpoints=checkpoints)


def test_a_run_goes_on_with_another_leash(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    trained(config_of(iterations=1), checkpoints=checkpoints)
    tighter = ForwardConfig(kl_ref=1.0, norm_guard=0.5)
    trainer = Trainer(
        ToyPolicy(), Brightness(), PROMPTS, config_of(forward=tighter), checkpoints=checkpoints
    )
    assert trainer.resume() == 1
    changed = {change.key for change in trainer.changes}
    assert changed == {"forward.kl_ref", "forward.norm_guard", "iterations"}
    trainer.train()
    assert trainer.iteration == 6


@pytest.mark.slow
@pytest.mark.parametrize("split", [False, True])
@every_variant
def test_two_processes_train_as_one_does(forward, split):
    config = config_of(
        forward=forward,
        iterations=2,
        prompts_per_iteration=3 if split else 4,
        group_size=4,
        advantage=AdvantageConfig(keep=1),
        optimizer=OptimizerConfig(learning_rate=1e-2, epochs=2, ema_decay=0.5),
    )
    reward = Brightness if split else Unreachable
    alone = train(config, reward())
    both = together(2, lambda processes: train(config, reward(), processes), split_groups=split)
    same_training(alone, both[0])


def test_a_small_batch_gives_the_same_training():
    for policy in (ToyPolicy, MixingPolicy):
        (rows, adapter), (others, moved) = (
            trained(config_of(batch_size=size), policy()) for size in (None, 3)
        )
        for row, other in zip(rows, others, strict=True):
            assert other["reward_mean"] == pytest.approx(row["reward_mean"], rel=1e-4)
        for name, factor in adapter.items():
            torch.testing.assert_close(moved[name], factor, rtol=0, atol=1e-4)


def test_only_the_best_and_the_worst_are_trained_if_only_they_have_an_advantage():
    rows, _ = trained(config_of(advantage=AdvantageConfig(keep=2), iterations=1))
    assert rows[0]["trained_passes"] == 2 * 4 * 2  # groups, kept samples, times


def test_a_cheap_first_pass_is_scored_and_what_is_kept_is_drawn_again_with_all_steps():
    config = config_of(
        forward=ForwardConfig(rank_steps=3), advantage=AdvantageConfig(keep=2), self_test=False
    )
    algorithm, policy = algorithm_of(config), ToyPolicy()
    stream = Stream(policy.velocity, batch_size=4)
    noise = Noise(False, 5, 8)
    request = GroupRequest(
        iteration=0,
        number=0,
        samples=slice(0, 8),
        example=Example.of("warm"),
        noise=noise,
        latent_shape=policy.latent_shape,
    )
    trajectory = algorithm.sample(stream, request)
    assert trajectory.grid == coarser_grid(config.grid, 3) and trajectory.grid.steps == 3
    advantages = torch.tensor([1.0, 0, 0, -1, 0, 0.5, 0, -0.5])
    task = algorithm.task(SampledGroup(request, trajectory), advantages, 1.0)
    prepared = algorithm.prepare(stream, task, policy)
    whole = sample_ode(
        policy.velocity, "warm", config.grid, noise.initial(policy.latent_shape), batch_size=4
    )
    kept = advantages != 0
    torch.testing.assert_close(prepared.x_0[kept], whole[kept])
    assert torch.equal(prepared.x_0[~kept], trajectory.x_0[~kept])
    assert (prepared.x_0[kept] - trajectory.x_0[kept]).abs().max() > 1e-3


def test_a_ranked_run_resumes_to_the_same_numbers(tmp_path):
    config = config_of(
        forward=ForwardConfig(rank_steps=2),
        advantage=AdvantageConfig(keep=2),
        iterations=4,
        self_test=False,
        checkpoint_every=2,
    )
    rows, adapter = trained(config)
    assert rows[0]["trained_passes"] == 2 * 4 * 2
    with pytest.raises(Cancelled):
        trained(config, checkpoints=Checkpoints(tmp_path), check_cancel=CancelAfter(80))
    again, moved = trained(config, checkpoints=Checkpoints(tmp_path))
    assert again == rows[len(rows) - len(again) :]
    assert all(torch.equal(moved[name], adapter[name]) for name in adapter)


@pytest.mark.parametrize("sde", [ODE, SdeConfig(eta=0.5)])
def test_any_rollout_will_do(sde):
    rows, _ = trained(config_of(sde=sde, share_initial_noise=sde != ODE))
    assert rows[-1]["grad_norm"] > 0


class Halved(ToyPolicy):
    """Gradients are half of what they should be."""

    def velocity(self, x_t, t, example):
        v_t = super().velocity(x_t, t, example)
        return v_t.detach() + 0.5 * (v_t - v_t.detach())


class Other(ToyPolicy):
    """With gradients it is another model."""

    def velocity(self, x_t, t, example):
        v_t = super().velocity(x_t, t, example)
        return 1.05 * v_t if torch.is_grad_enabled() else v_t


@pytest.mark.parametrize("policy", [Halved, Other])
def test_the_self_test_holds_for_rollouts_without_noise(policy):
    untouched = policy().adapter.state_dict()
    broken = policy()
    with pytest.raises(SelfTestFailed):
        trained(config_of(), broken)
    for name, factor in broken.adapter.state_dict().items():
        assert torch.equal(factor, untouched[name])
    trained(config_of(iterations=1))  # and lets a right one through


def test_a_whole_run_is_measured_recorded_and_watched(tmp_path):
    config, folder = config_of(iterations=2), RunFolder(tmp_path / "run")
    outcome = run_experiment(ToyPolicy(), Brightness(), PROMPTS[:3], PROMPTS[3:], config, folder)
    assert outcome.ratio_error_first_update is None
    assert math.isfinite(outcome.gain.mean)
    assert run_view(folder.path)["done"] == 2
    assert read_settings(folder.path) == config
    assert TrainConfig.of(config.flat()) == config


def test_a_run_without_leash_is_warned_of(caplog):
    trained(config_of(forward=ForwardConfig(kl_ref=0.0), iterations=1))
    assert caplog.text.count("nothing holds the model to what it was") == 1


@pytest.mark.parametrize(
    ("settings", "updates", "said"),
    [
        ({"objective": "nft", "beta": 7.0}, 1, "forward.beta has no effect"),
        ({"objective": "elbo", "clip": 0.5}, 1, "forward.clip has no effect"),
        ({"objective": "nft", "beta": 7.0}, 2, None),
        ({"objective": "nft", "beta": 7.0, "old": "average"}, 1, None),
        ({"objective": "nft"}, 1, None),
    ],
)
def test_a_setting_of_later_updates_is_doubted_where_there_are_none(settings, updates, said):
    optimizer = OptimizerConfig(updates_per_rollout=updates)
    config = config_of(forward=ForwardConfig(kl_ref=0.3, **settings), optimizer=optimizer)
    doubts = Forward(config).doubts("toy")
    assert [doubt.partition(":")[0] for doubt in doubts] == ([said] if said else [])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"plan": toy_config().plan}, "plan is set, but the algorithm forward trains no chunks"),
        ({"share_initial_noise": True}, "all pictures of a group would be the same"),
        ({"forward": ForwardConfig(times=7)}, "times is 7, but the grid has 6 levels above 0"),
        ({"objective": ObjectiveConfig(kl_ref=0.1)}, "objective.kl_ref is 0.1, but the algorithm"),
        ({"noise": "drawn"}, "noise is 'drawn', which has no effect"),
        ({"window": WindowConfig(kind="fixed")}, "window.kind is 'fixed', which has no effect"),
        ({"window": WindowConfig(start=5)}, "window.start is 5, which has no effect"),
        ({"chunk_fraction": 0.7}, "chunk_fraction is 0.7, which has no effect"),
        (
            {"sde": SdeConfig(), "ode_solver": "dpm2"},
            "ode_solver is 'dpm2', but every step takes noise",
        ),
        (
            {"optimizer": OptimizerConfig(recompute_log_p=True)},
            "optimizer.recompute_log_p is True, which has no effect",
        ),
        ({"forward": ForwardConfig(beta=5.0)}, "forward.beta is 5.0, but forward.objective is"),
        ({"forward": ForwardConfig(clip=0.5)}, "forward.clip is 0.5, but forward.objective is"),
        ({"forward": ForwardConfig(old_decay=0.9)}, "forward.old_decay is 0.9, but forward.old is"),
        ({"forward": ForwardConfig(rank_steps=6)}, "rank_steps is 6, but the grid has 6 steps"),
        ({"forward": ForwardConfig(rank_steps=3)}, "rank_steps is 3, but advantage.keep is not"),
        (
            {
                "forward": ForwardConfig(rank_steps=3),
                "advantage": AdvantageConfig(keep=2),
                "sde": SdeConfig(),
            },
            "rank_steps is 3, but sde is flow",
        ),
        (
            {"forward": ForwardConfig(old="average")},
            'forward.old is "average", but forward.objective is "awm"',
        ),
    ],
)
def test_settings_that_do_not_suit_are_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=message):
        algorithm_of(config_of(**changes))


def test_chunk_grpo_refuses_settings_of_the_forward_form():
    with pytest.raises(ValueError, match=r"forward.times is 3, but the algorithm chunk_grpo"):
        algorithm_of(toy_config(forward=ForwardConfig(times=3)))
