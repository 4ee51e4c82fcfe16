"""Train LoRA with a recipe: what trains when little is connected, and what replaces it."""

from __future__ import annotations

import inspect

import pytest
import torch

from chunk_grpo_core.presets import PRESETS

from .test_settings import differing, everything, nodes, preset_outputs

NUMBERS = ("iterations", "prompts_per_iteration", "group_size", "learning_rate", "rank", "alpha")
RECIPES = tuple(name for name in PRESETS if name != "gcpo-v3")  # its plan needs a curve


def asked_of(lab, **inputs):
    """What Train LoRA asks for, of a graph that connects what is given; nothing is trained."""
    training = lab.module("nodes.training")
    model, _, vae = lab.module("nodes.bridge.tiny").load_tiny()
    untouched = {i.id: i.default for i in training.TrainLoRA.define_schema().inputs
                 if getattr(i, "default", None) is not None}  # fmt: skip
    needed = {"model": model, "vae": vae, "prompts": None}

    class Stop(Exception):
        pass

    def stop(**asked):
        raise Stop(asked)

    train_lora, training.train_lora = training.train_lora, stop
    try:
        training.TrainLoRA.execute(**{**untouched, **needed, **inputs})
    except Stop as caught:
        return caught.args[0]
    finally:
        training.train_lora = train_lora
    raise AssertionError("nothing was trained")


def preset_config(lab, name, **overrides):
    """The settings of a preset, of the classes that the nodes use."""
    return lab.module("chunk_grpo_core.presets").preset_config(name, **overrides)


def config_of(lab, **inputs):
    return asked_of(lab, **inputs)["config"]


def test_a_new_node_trains_the_cheapest_measured_recipe_for_a_hundred_iterations(lab):
    config = config_of(lab)
    assert differing(config, preset_config(lab, "quick", iterations=100)) == {"grid"}
    assert asked_of(lab)["sampler"] is None


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_needs_no_sampler_no_sigmas_no_plan_and_no_settings(name, lab):
    config = config_of(lab, recipe=name, iterations=0)
    wanted = preset_config(lab, name)
    assert differing(config, wanted) <= {"grid"}
    assert config.grid.steps == wanted.grid.steps


def test_every_recipe_of_the_choice_says_everything(lab):
    schema = nodes(lab).TrainLoRA.define_schema()
    (choice,) = [entry for entry in schema.inputs if entry.id == "recipe"]
    assert choice.options == [*RECIPES, "by hand"]


def test_the_noise_levels_of_a_recipe_are_those_of_basic_scheduler(lab):
    import comfy.samplers

    model = lab.module("nodes.bridge.tiny").load_tiny()[0]
    sampling = model.get_model_object("model_sampling")
    wanted = comfy.samplers.calculate_sigmas(sampling, "simple", 8).tolist()
    assert config_of(lab).grid.sigmas == tuple(wanted)


def test_without_a_latent_the_picture_has_the_size_of_the_model(lab):
    empty_latent = lab.module("nodes.bridge.own_defaults").empty_latent
    model, _, vae = lab.module("nodes.bridge.tiny").load_tiny()
    assert empty_latent(model, vae)["samples"].shape == (1, 16, 8, 8)
    del type(model.model.model_config).picture_size
    try:
        assert empty_latent(model, vae)["samples"].shape == (1, 16, 64, 64)
    finally:
        type(model.model.model_config).picture_size = 64
    with pytest.raises(ValueError, match="latent is not connected"):
        empty_latent(model, object())


def by_hand(lab, **inputs):
    """Inputs of a node of before there were recipes."""
    core, sampler = lab.module("chunk_grpo_core"), lab.module("nodes.bridge.sampler")
    return {
        "sigmas": lab.module("nodes.sampling").ShiftedSigmas.execute(9, 3.0).args[0],
        "plan": core.read_plan("1, 2, 2, 3", 8),
        "sampler": sampler.flow_sde_sampler(core.SdeConfig()),
        "latent": {},
        **dict(zip(NUMBERS, (9, 4, 8, 2e-3, 4, 6.0), strict=True)),
        **inputs,
    }


def test_a_prompt_without_a_recipe_trains_what_it_trained_before_there_were_any(lab):
    config = config_of(lab, **by_hand(lab, recipe="by hand"))
    wanted = lab.module("chunk_grpo_core").TrainConfig.of(
        {
            "grid": config.grid,
            "plan": "1, 2, 2, 3",
            "iterations": 9,
            "prompts_per_iteration": 4,
            "group_size": 8,
            "optimizer.learning_rate": 2e-3,
            "lora.rank": 4,
            "lora.alpha": 6.0,
        }
    )
    assert config == wanted
    missing = inspect.signature(nodes(lab).TrainLoRA.execute).parameters
    assert (missing["recipe"].default, missing["check_only"].default) == ("by hand", False)


def test_an_input_replaces_the_settings_and_these_replace_the_recipe(lab):
    settings = {"group_size": 6, "optimizer.learning_rate": 5e-4, "forward.kl_ref": 1.0}
    config = config_of(lab, settings=settings, learning_rate=1e-3, rank=16)
    changed = {"grid", "group_size", "optimizer.learning_rate", "forward.kl_ref", "lora.rank"}
    assert differing(config, preset_config(lab, "quick")) == changed | {"lora.alpha"}
    assert (config.group_size, config.forward.kl_ref) == (6, 1.0)
    assert config.optimizer.learning_rate == 1e-3
    assert config.lora.scale == preset_config(lab, "quick").lora.scale


def test_by_hand_zero_takes_the_number_of_the_settings_or_the_default(lab):
    zeros = dict.fromkeys(NUMBERS, 0)
    plain = config_of(lab, **by_hand(lab, recipe="by hand", **zeros))
    assert (plain.iterations, plain.group_size, plain.lora.rank) == (100, 12, 16)
    of_preset = preset_outputs(nodes(lab).GRPOPreset, "safe-lora", batch_size=-1)["settings"]
    config = config_of(lab, recipe="by hand", settings=of_preset, **zeros)
    assert config == preset_config(lab, "safe-lora")  # its sampler and its sigmas, too


def test_with_rank_stabilised_scaling_another_rank_keeps_the_scale(lab):
    config = config_of(lab, settings={"lora.rs": True}, rank=16)
    assert config.lora.scale == pytest.approx(128.0 / 8.0)


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"recipe": "fast"}, ["recipe is 'fast'", "quick", "by hand"]),
        (
            {"settings": {"algorithm": "preference"}},
            ["recipe is quick", "algorithm forward", "preference", "set recipe to by hand"],
        ),
        ({"plan": "step"}, ["plan is connected", "the recipe quick sets", "take the link off"]),
        ({"recipe": "by hand"}, ["plan is not connected", "choose a recipe"]),
        (
            {"recipe": "by hand", "plan": "step", "settings": {"sde.rule": "flow"}},
            ["sigmas is not connected", "BasicScheduler", "choose a recipe"],
        ),
        (
            {"recipe": "safe-lora", "sigmas": torch.linspace(1, 0, 12)},
            ["plan is '2, 5'", "10"],
        ),
        ({"group_size": 1}, ["group_size is 1"]),
    ],
)
def test_what_does_not_fit_the_recipe_is_refused_by_name(inputs, words, lab):
    with pytest.raises(ValueError, match=r"\w") as caught:
        asked_of(lab, **inputs)
    assert [word for word in words if word not in str(caught.value)] == [], caught.value


def test_settings_of_every_node_lie_over_a_recipe_of_their_algorithm(lab):
    config = config_of(lab, recipe="few-step", settings=everything(lab))
    assert config.objective.kl_ref == 0.1
    assert config.sde == preset_config(lab, "few-step").sde
