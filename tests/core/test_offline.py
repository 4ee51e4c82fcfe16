"""The algorithm ``preference``: from picks to weights; what it refuses, resumes and shares."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fakes import Brightness, CancelAfter, MixingPolicy, ToyPolicy, toy_config
from offline_picks import SHAPE, TEXTS, config_of, name, world
from threads import together
from torch import Tensor

from chunk_grpo_core.algorithms import algorithm_of
from chunk_grpo_core.algorithms.algorithm import GroupRequest, SampledGroup
from chunk_grpo_core.algorithms.preference import JudgedLatents, Preference
from chunk_grpo_core.configfile.reading import read_config
from chunk_grpo_core.method.advantage import AdvantageConfig
from chunk_grpo_core.method.asking import AskConfig
from chunk_grpo_core.method.cancel import Cancelled
from chunk_grpo_core.method.matching import ForwardConfig
from chunk_grpo_core.method.noise import Noise, noise_of_batch
from chunk_grpo_core.method.objective import ObjectiveConfig
from chunk_grpo_core.method.preference import OBJECTIVES, PreferenceConfig
from chunk_grpo_core.method.reward import RewardFailed
from chunk_grpo_core.method.rules import SdeConfig
from chunk_grpo_core.method.stream import Stream
from chunk_grpo_core.presets.cost import units_of
from chunk_grpo_core.prompts.example import Example
from chunk_grpo_core.prompts.judged import Judged, StartingNoise
from chunk_grpo_core.prompts.split import PromptConfig
from chunk_grpo_core.rewards.taste.events import Shown, new_pick
from chunk_grpo_core.rewards.taste.judged import judged_examples
from chunk_grpo_core.rewards.taste.picks import Taste
from chunk_grpo_core.runs.preferences import judged_latents, judged_prompts
from chunk_grpo_core.train.checkpoint import Checkpoints
from chunk_grpo_core.train.config import OptimizerConfig, TrainConfig
from chunk_grpo_core.train.events import IterationEnd
from chunk_grpo_core.train.trainer import Trainer

every_objective = pytest.mark.parametrize("objective", OBJECTIVES)


class NoReward(Brightness):
    """It says so if it is asked."""

    def score(self, images, examples):
        raise RewardFailed("nobody may ask")


def trained(config, policy=None, **options):
    examples, latents = world()
    rows, policy = [], policy or ToyPolicy()

    def listen(event):
        if isinstance(event, IterationEnd):
            rows.append({k: v for k, v in event.metrics.items() if k != "seconds"})

    algorithm = Preference(config, JudgedLatents(latents))
    trainer = Trainer(
        policy, NoReward(), examples, config, algorithm=algorithm, listener=listen, **options
    )
    trainer.resume()
    trainer.train()
    return rows, policy.adapter.state_dict()


@every_objective
@pytest.mark.parametrize("policy", [ToyPolicy, MixingPolicy])
def test_the_model_learns_what_was_preferred_and_asks_no_reward(objective, policy):
    rows, _ = trained(config_of(objective, iterations=30), policy())
    first, last = rows[0], rows[-1]
    at_reference = 0.6931 if objective == "dpo" else 0.5
    assert first["preference_loss"] == pytest.approx(at_reference, abs=1e-3)
    assert first["preference_accuracy"] == 0.5
    assert sum(row["preference_loss"] for row in rows[-5:]) < 5 * 0.9 * at_reference
    assert last["implicit_reward_better"] > last["implicit_reward_worse"]
    assert sum(row["preference_accuracy"] for row in rows[-5:]) > 5 * 0.6
    assert last["rewards"] == {"picks": {"mean": 0.0, "std": pytest.approx(2**0.5), "masked": 0}}
    assert last["advantage_std"] > 0 and last["zero_variance_groups"] == 0
    assert last["trained_passes"] == 4 * 2 * 2 and last["velocity_norm"] != 1


@every_objective
@pytest.mark.parametrize("calls", [25, 60])
def test_a_killed_run_resumes_to_the_same_numbers(objective, calls, tmp_path):
    config = config_of(objective, checkpoint_every=2)
    rows, adapter = trained(config)
    with pytest.raises(Cancelled):
        trained(config, checkpoints=Checkpoints(tmp_path), check_cancel=CancelAfter(calls))
    again, moved = trained(config, checkpoints=Checkpoints(tmp_path))
    assert again == rows[len(rows) - len(again) :] and len(again) > 0
    assert all(torch.equal(moved[key], adapter[key]) for key in adapter)


def train(config, processes=None):
    examples, latents = world()
    policy, rows = ToyPolicy(), []
    trainer = Trainer(
        policy,
        NoReward(),
        examples,
        config,
        algorithm=Preference(config, JudgedLatents(latents)),
        listener=lambda event: rows.append(event) if isinstance(event, IterationEnd) else None,
        processes=processes,
    )
    trainer.train()
    return policy.adapter.state_dict(), [event.metrics for event in rows]


@every_objective
def test_two_processes_train_as_one_does(objective):
    config = config_of(objective, iterations=2, optimizer=OptimizerConfig(learning_rate=1e-2))
    alone, rows = train(config)
    (both, rows_of_both), _ = together(2, lambda processes: train(config, processes))
    for key in alone:
        torch.testing.assert_close(both[key], alone[key], rtol=1e-5, atol=1e-6)
    for row, of_both in zip(rows, rows_of_both, strict=True):
        assert of_both["preference_loss"] == pytest.approx(row["preference_loss"], rel=1e-5)


def test_a_group_is_not_divided_between_processes():
    config = config_of(prompts_per_iteration=3, optimizer=OptimizerConfig(updates_per_rollout=1))
    with pytest.raises(ValueError, match="cannot be divided between processes; leave out --split"):
        together(2, lambda processes: train(config, processes), split_groups=True)


def test_stored_noise_is_what_comfyui_drew_for_the_batch():
    generator = torch.Generator().manual_seed(11)
    batch = torch.randn(5, 16, 8, 8, generator=generator)
    for index in range(5):
        assert torch.equal(noise_of_batch(11, index, (16, 8, 8)), batch[index])


@pytest.mark.parametrize("noise", ["stored", "fresh"])
def test_pictures_get_the_noise_that_they_began_with_where_it_is_known(noise):
    config = config_of(preference=PreferenceConfig(noise=noise))
    examples, latents = world()
    algorithm = Preference(config, JudgedLatents(latents))
    request = GroupRequest(
        iteration=0, number=0, samples=slice(0, 2), example=examples[3],
        noise=Noise(True, 1, 2), latent_shape=SHAPE,
    )  # fmt: skip
    trajectory = algorithm.sample(Stream(ToyPolicy().velocity), request)
    task = algorithm.task(SampledGroup(request, trajectory), trajectory.answers, 1.0)
    known = noise_of_batch(7, 3, SHAPE)
    assert torch.equal(task.x_0[0], latents[name(6)]) and task.advantages.tolist() == [1.0, -1.0]
    assert torch.equal(task.noised.t[:, 0], task.noised.t[:, 1])
    assert bool((task.noised.eps[:, 0] == known).all()) == (noise == "stored")
    assert torch.equal(task.noised.eps[:, 0], task.noised.eps[:, 1]) == (noise == "fresh")


def test_noise_that_depends_on_the_size_of_the_batch_is_drawn_afresh():
    shape = (4, 3, 3)
    assert noise_of_batch(7, 3, shape) is None and noise_of_batch(7, 3, SHAPE) is not None
    request = GroupRequest(
        iteration=0, number=0, samples=slice(0, 2), example=world()[0][3],
        noise=Noise(True, 1, 2), latent_shape=shape,
    )  # fmt: skip
    names = [name(6), name(7)]
    stored, fresh = (
        Preference(config_of(preference=PreferenceConfig(noise=noise)))._noised(request, names)
        for noise in ("stored", "fresh")
    )
    assert torch.equal(stored.eps, fresh.eps)


def test_the_noise_of_a_picture_that_was_scaled_is_not_that_of_its_latent():
    config = config_of(preference=PreferenceConfig(noise="stored"))
    examples, latents = world()
    request = GroupRequest(
        iteration=0, number=0, samples=slice(0, 2), example=examples[3],
        noise=Noise(True, 1, 2), latent_shape=SHAPE,
    )  # fmt: skip
    stream, known = Stream(ToyPolicy().velocity), noise_of_batch(7, 3, SHAPE)
    for scaled in (frozenset(), frozenset({name(6)})):
        algorithm = Preference(config, JudgedLatents(latents, scaled))
        group = SampledGroup(request, algorithm.sample(stream, request))
        eps = algorithm.task(group, group.trajectory.answers, 1.0).noised.eps
        assert bool((eps[:, 0] == known).all()) != bool(scaled)


REFUSED = {
    "plan": ({"plan": toy_config().plan}, "plan is set, but the algorithm preference trains no"),
    "objective": ({"objective": ObjectiveConfig(kl_ref=0.1)}, r"objective\.kl_ref is 0\.1"),
    "forward": ({"forward": ForwardConfig(kl_ref=1.0)}, r"forward\.kl_ref is 1\.0.*does not use"),
    "advantage": ({"advantage": AdvantageConfig(keep=1)}, r"advantage\.keep is 1"),
    "ask": ({"ask": AskConfig(every=2)}, r"ask\.every is 2.*does not use"),
    "sde": ({"sde": SdeConfig(rule="ode")}, r"sde\.rule is 'ode'"),
    "start": ({"share_initial_noise": False}, "share_initial_noise is False"),
    "odd": ({"group_size": 3}, "group_size is 3.*trains on pairs; it must be even"),
    "times": ({"preference": PreferenceConfig(times=64)}, r"preference\.times is 64, but the grid"),
}


@pytest.mark.parametrize(("changes", "message"), REFUSED.values(), ids=REFUSED)
def test_settings_without_effect_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        algorithm_of(config_of(**changes))


@pytest.mark.parametrize("algorithm", ["chunk_grpo", "forward"])
def test_other_algorithms_refuse_settings_of_this_one(algorithm):
    config = toy_config(preference=PreferenceConfig(beta=1.0))
    if algorithm == "forward":
        config = replace(
            config, algorithm="forward", plan=None, objective=ObjectiveConfig(),
            chunk_fraction=0.5, sde=SdeConfig(rule="ode"), share_initial_noise=False,
        )  # fmt: skip
    with pytest.raises(
        ValueError, match=rf"preference\.beta is 1\.0, but the algorithm {algorithm}"
    ):
        algorithm_of(config)


def test_the_weight_that_divides_by_the_error_is_refused():
    with pytest.raises(ValueError, match=r"preference\.weight is 'adaptive'; it must be"):
        PreferenceConfig(weight="adaptive")


def test_a_prompt_without_judged_pictures_is_refused_by_name():
    with pytest.raises(ValueError, match="the prompt 'warm' carries no judged pictures"):
        Judged.of(Example("warm"))
    with pytest.raises(ValueError, match="must be the SHA-256 of its pixels"):
        Judged(better=("a.png",))


def shown(number, prompt="warm", **facts):
    return Shown(picture=name(number), prompt=prompt, **facts)


def sides(picks, objective):
    return [
        ([int(n, 16) for n in Judged.of(e).better], [int(n, 16) for n in Judged.of(e).worse])
        for e in judged_examples(picks, objective)
    ]


def test_every_kind_of_pick_becomes_judged_pictures():
    four = [shown(i) for i in range(4)]
    comparisons = [
        new_pick("duel", four[:2], 1),
        new_pick("best", four, 2),
        new_pick("hearts", four, [1, 0, 0, -1]),
        new_pick("same", four[:2]),
        new_pick("duel", [shown(0), shown(1, "cold")], 0),  # two prompts
        new_pick("duel", [shown(0, ""), shown(1, "")], 0),  # none
        new_pick("duel", [shown(5), shown(5)], 0),  # with itself
    ]
    expected = [([1], [0]), ([2], [0, 1, 3]), ([0], [1, 2, 3]), ([0, 1, 2], [3])]
    assert sides(comparisons, "dpo") == sides(comparisons, "kto") == expected
    singles = [
        new_pick("like", [shown(0)], True),
        new_pick("like", [shown(1)], False),
        new_pick("stars", [shown(2)], 5),
        new_pick("stars", [shown(3)], 3),
        new_pick("stars", [shown(4)], -1),
        new_pick("like", [shown(5, "cold")], True),
    ]
    assert sides(singles, "kto") == [([0], []), ([], [1]), ([2], []), ([], [4]), ([5], [])]
    assert sides(singles, "dpo") == [([0], [1, 4]), ([2], [1, 4])]  # cold has nothing to compare


def test_the_noise_of_a_pick_is_known_if_it_says_how_it_was_drawn():
    made = {"noise": "torch-cpu"}
    pick = new_pick("duel", [shown(0, seed=5, index=2, made=made), shown(1, seed=5, index=3)], 0)
    (example,) = judged_examples([pick], "dpo")
    assert Judged.of(example).noise == {name(0): StartingNoise(5, 2)}
    assert Example.from_json(json.loads(json.dumps(example.to_json()))).key == example.key


class EncodingPolicy(ToyPolicy):
    """A toy that can turn pictures into latents."""

    def encode(self, images: Tensor) -> Tensor:
        planes = images.permute(0, 3, 1, 2).clamp(0.01, 0.99).logit()
        return torch.cat([planes, torch.zeros_like(planes[:, :1])], 1)


def a_taste(folder: Path, size=4, clicks=6):
    taste, generator = Taste(folder), torch.Generator().manual_seed(0)
    for number in range(clicks):
        pictures = torch.rand(2, size, size, 3, generator=generator)
        kept = [taste.keep(one, prompt=TEXTS[number % 4]) for one in pictures]
        taste.append(new_pick("duel", kept, int(pictures[1].mean() > pictures[0].mean())))
    return taste


def test_pictures_are_encoded_once_and_fitted_to_the_size_that_is_trained(tmp_path, caplog):
    taste = a_taste(tmp_path / "mine", size=9)
    prompts = judged_prompts(taste, "dpo", [], PromptConfig(held_out=2))
    latents = judged_latents(taste, EncodingPolicy(), prompts.train)
    trained_texts = {example.text for example in prompts.train}
    assert len(prompts.held_out) == 2 and len(trained_texts) == 2
    assert not trained_texts & {example.text for example in prompts.held_out}
    assert {n for e in prompts.train for n in Judged.of(e).pictures} == set(latents.of)
    assert all(latent.shape == SHAPE for latent in latents.of.values())
    assert latents.scaled == set(latents.of)
    assert (
        "have another size than 4 x 4, which is trained; they were scaled and cropped, and the "
        in caplog.text
    )


def test_a_model_without_an_encoder_is_refused(tmp_path):
    taste = a_taste(tmp_path / "mine")
    prompts = judged_prompts(taste, "dpo", [], PromptConfig(held_out=2))
    with pytest.raises(ValueError, match="the model toy cannot turn pictures into latents"):
        judged_latents(taste, ToyPolicy(), prompts.train)


def test_a_run_keeps_to_the_picks_that_it_began_with(tmp_path):
    taste = a_taste(tmp_path / "mine")
    before = judged_prompts(taste, "dpo", [], PromptConfig(held_out=2))
    pictures = [taste.keep(torch.full((4, 4, 3), x), prompt="warm") for x in (0.1, 0.9)]
    taste.append(new_pick("duel", pictures, 1))
    latents = judged_latents(taste, EncodingPolicy(), before.train)
    assert pictures[0].picture not in latents.of and not latents.scaled


@pytest.mark.parametrize(
    ("kind", "objective", "message"),
    [
        (None, "dpo", "there is no picks.jsonl; name the folder"),
        ("like", "dpo", 'has 1 picks, but none that can be trained on.*"dpo" needs comparisons'),
        ("same", "kto", "needs clicks on pictures whose prompt is known"),
    ],
)
def test_a_taste_that_cannot_be_trained_on_is_refused(kind, objective, message, tmp_path):
    if kind:
        count = 1 if kind == "like" else 2
        Taste(tmp_path).append(
            new_pick(kind, [shown(i) for i in range(count)], True if kind == "like" else None)
        )
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        judged_prompts(Taste(tmp_path), objective, [], PromptConfig())


FILE = {
    "algorithm": "preference",
    "model": {"type": "tiny"},
    "grid": {"steps": 5, "shift": "model"},
    "preference": {"picks": "mine"},
}


def test_a_configuration_names_picks_instead_of_prompts(tmp_path):
    config = read_config(FILE, tmp_path, "x")
    assert config.settings.preference.picks == str(tmp_path / "mine")
    assert TrainConfig.of(config.settings.flat()) == config.settings
    for changes, message in (
        ({"preference": {}}, r"preference\.picks is missing"),
        ({"prompts": {"text": ["a red circle"]}}, r"prompts\.text is given.*held_out_file"),
    ):
        with pytest.raises(ValueError, match=message):
            read_config({**FILE, **changes}, tmp_path, "x")


def test_the_work_of_a_picture_is_counted():
    config = config_of(preference=PreferenceConfig(times=2))
    policy, units = MixingPolicy(), units_of(config)
    assert (units.rollout, units.compared, units.trained) == (0.0, 2.0, 2.0)
    trained(config_of(iterations=1, self_test=False), policy)
    of_norm = 8  # velocity_norm: two pictures at two levels, twice
    assert sum(policy.calls) == 4 * 2 * (2 + 2) + of_norm
