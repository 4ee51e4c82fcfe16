"""Settings nodes, one after the other: what they are told is what Train LoRA trains with."""

from __future__ import annotations

import json
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest

from chunk_grpo_core.presets import PRESETS

# Every input of the three nodes, with no value that is a default or of a preset.
BASIC = {
    "clip": 3e-4,
    "advantage_clamp": 2.5,
    "chunk_fraction": 0.75,
    "updates_per_rollout": 3,
    "epochs": 2,
    "weight_decay": 0.02,
    "max_grad_norm": 0.25,
    "lora_targets": "attention",
    "share_initial_noise": "off",
    "batch_size": 5,
    "checkpoint_every": 7,
    "evaluate_every": 4,
    "update_batch_size": 3,
    "rs_lora": "on",
    "warmup_updates": 11,
    "ema_decay": 0.9,
    "recompute_log_p": "off",
    "self_test": "off",
    "optimizer": "adamw8bit",
    "activation_offloading": "on",
    "stop_on": "collapse, no-signal",
    "reward_retries": 2,
    "reward_wait": 1.5,
    "ask_every": 6,
    "ask_clicks": 9,
    "ask_pictures": 12,
    "ask_kind": "stars",
    "ask_when_alarm": "on",
}
OBJECTIVE = {
    "ratio": "step",
    "trust_region": "kl-mask",
    "kl_threshold": 2e-5,
    "clip_low": 1e-6,
    "clip_high": 2e-6,
    "ratio_norm": "on",
    "step_weights": "guard",
    "kl_ref": 0.1,
    "kl_type": "flow-grpo",
    "kl_old": 0.3,
    "advantage_scale": "global-std",
    "advantage_centre": "median",
    "advantage_keep": 3,
    "advantage_combine": "advantages",
}
EXPLORATION = {
    "noise": "window",
    "ode_solver": "dpm2",
    "window": "sliding",
    "window_chunks": 3,
    "window_start": 1,
    "window_stride": 2,
    "window_every": 4,
}
OWN = {"iterations": 9, "prompts_per_iteration": 6, "group_size": 8, "learning_rate": 2e-3}
OWN |= {"rank": 4, "alpha": 6.0, "seed": 12}


def nodes(lab):
    """The classes of the nodes, by the end of their id."""
    found = {}
    for name in ("settings", "objective", "exploration", "presets", "training"):
        module = lab.module(f"nodes.{name}")
        found |= {name: getattr(module, name) for name in module.__all__}
    return SimpleNamespace(**found)


def settings_of(node, **inputs):
    return node.execute(**inputs).args[0]


def settings_nodes(lab):
    """The three nodes that build on settings, each with a value for every input."""
    node = nodes(lab)
    return (
        (node.GRPOSettings, BASIC),
        (node.GRPOObjective, OBJECTIVE),
        (node.GRPOExploration, EXPLORATION),
    )


def first_values(node):
    """What the page sends for a node that nobody touched."""
    return {i.id: i.default for i in node.define_schema().inputs if i.id != "settings"}


def table(lab, node):
    """Its settings: name of an input -> SettingInput."""
    module = lab.module(f"nodes.{node.__module__.rpartition('.')[2]}")
    return {setting.name: setting for setting in module._SETTINGS}


def everything(lab):
    """The patch of the three nodes in a row, with every input set."""
    patch = None
    for node, values in settings_nodes(lab):
        patch = settings_of(node, **values, settings=patch)
    return patch


def config_of(lab, settings, **inputs):
    """The settings that Train LoRA would train with; nothing is trained."""
    return asked_of(lab, settings, **inputs)[0]


def asked_of(lab, settings, **inputs):
    """What Train LoRA would ask for: settings of the training, activation offloading."""
    training, sampler = lab.module("nodes.training"), lab.module("nodes.bridge.sampler")
    core = lab.module("chunk_grpo_core")
    rest = dict.fromkeys(("model", "vae", "prompts", "reward", "latent"))
    rest |= {"pictures_per_held_out": 1, "run_name": "", "resume": False}
    rest |= {"sigmas": lab.module("nodes.sampling").ShiftedSigmas.execute(9, 3.0).args[0]}
    has_chunks = (settings or {}).get("algorithm", "chunk_grpo") == "chunk_grpo"
    rest |= {"plan": core.read_plan("1, 1, 1, 1, 2, 2", 8) if has_chunks else None}
    rest |= {"sampler": sampler.flow_sde_sampler(core.SdeConfig())}

    class Stop(Exception):
        pass

    def stop(*, config, activation_offloading, **_):
        raise Stop(config, activation_offloading)

    train_lora, training.train_lora = training.train_lora, stop
    try:
        training.TrainLoRA.execute(**{**rest, **OWN, **inputs}, settings=settings)
    except Stop as caught:
        return caught.args
    finally:
        training.train_lora = train_lora
    raise AssertionError("nothing was trained")


def leaves(config, prefix=""):
    """Dotted keys and values of nested settings; grid and plan are one value each."""
    for field in fields(config):
        value, key = getattr(config, field.name), prefix + field.name
        if is_dataclass(value) and key not in ("grid", "plan"):
            yield from leaves(value, f"{key}.")
        else:
            yield key, value


def differing(one, other):
    one, other = dict(leaves(one)), dict(leaves(other))
    return {key for key in one if one[key] != other[key]}


def test_every_input_reaches_the_training(lab):
    config, activation_offloading = asked_of(lab, everything(lab))
    trained = dict(leaves(config))
    wanted = {"advantage.clamp": 2.5, "lora.targets": "attention", "lora.rs": True}
    wanted |= {"chunk_fraction": 0.75, "share_initial_noise": False}
    wanted |= {"batch_size": 5, "checkpoint_every": 7, "evaluate_every": 4}
    wanted |= {"update_batch_size": 3, "run.stop_on": ("collapse", "no-signal")}
    wanted |= {"run.reward_retries": 2, "run.reward_wait": 1.5}
    for name in ("every", "clicks", "pictures", "kind"):
        wanted[f"ask.{name}"] = BASIC[f"ask_{name}"]
    wanted["ask.when_alarm"] = True
    for name in ("updates_per_rollout", "epochs", "weight_decay", "max_grad_norm"):
        wanted[f"optimizer.{name}"] = BASIC[name]
    wanted |= {"optimizer.warmup_updates": 11, "optimizer.ema_decay": 0.9}
    wanted |= {"optimizer.recompute_log_p": False, "self_test": False}
    wanted |= {"optimizer.name": "adamw8bit"}
    assert activation_offloading is True
    for name, value in (OBJECTIVE | {"ratio_norm": True}).items():
        part, under, rest = name.partition("_")
        is_advantage = part == "advantage"
        wanted["advantage." + rest if is_advantage else "objective." + part + under + rest] = value
    wanted |= {"noise": "window", "ode_solver": "dpm2", "window.kind": "sliding"}
    for name in ("chunks", "start", "stride", "every"):
        wanted[f"window.{name}"] = EXPLORATION[f"window_{name}"]
    wanted |= {"lora.rank": 4, "lora.alpha": 6.0, "optimizer.learning_rate": 2e-3}
    wanted |= {key: OWN[key] for key in ("iterations", "prompts_per_iteration", "group_size")}
    wanted |= {"seed": 12}
    assert {key: trained[key] for key in wanted} == wanted
    # The rest is a socket's, or what no user of the nodes needs to touch.
    sockets = {"grid", "plan", "sde.rule", "sde.eta"}
    betas = {"optimizer.beta1", "optimizer.beta2", "optimizer.eps", "optimizer.fused"}
    threads = {"score_while_sampling"}  # ComfyUI's model management knows one thread
    # Those of another algorithm, which Forward Objective sets.
    others = {"algorithm"} | {key for key in trained if key.startswith(("forward.", "preference."))}
    assert trained.keys() - wanted.keys() == sockets | betas | threads | others


def test_the_values_of_these_tests_are_those_of_every_input(lab):
    for node, values in settings_nodes(lab):
        assert values.keys() == table(lab, node).keys(), "add the new input to the values above"


def coming_in(lab, name):
    """A patch: nothing, every input set by hand, or a preset."""
    if name == "nothing":
        return None
    if name == "every input":
        return everything(lab)
    curve = curve_for(lab, lab.module("chunk_grpo_core.presets").PRESETS[name])
    return preset_outputs(nodes(lab).GRPOPreset, name, batch_size=-1, curve=curve)["settings"]


@pytest.mark.parametrize("behind", ["nothing", "every input", *PRESETS])
@pytest.mark.parametrize("which", ["GRPOSettings", "GRPOObjective", "GRPOExploration"])
def test_a_node_at_its_first_values_changes_nothing(which, behind, lab):
    node, coming = getattr(nodes(lab), which), coming_in(lab, behind)
    before = asked_of(lab, coming, prompts_per_iteration=8)
    for inputs in ({}, first_values(node)):
        patch = settings_of(node, **inputs, settings=coming)
        assert patch == (coming or {})
        assert asked_of(lab, patch, prompts_per_iteration=8) == before


def test_one_value_changes_its_setting_and_no_other(lab):
    # What the others need: a window, and steps without noise.
    fitting = {"noise": "drawn", "window.kind": "fixed", "window.chunks": 4}
    before = asked_of(lab, fitting)
    for node, values in settings_nodes(lab):
        for name, setting in table(lab, node).items():
            inputs = first_values(node) | {name: values[name]}
            after = asked_of(lab, settings_of(node, **inputs, settings=fitting))
            changed = differing(after[0], before[0])
            if after[1] != before[1]:
                changed |= {"model.activation_offloading"}
            assert changed == set(setting.keys), name


def test_the_last_of_two_nodes_wins_where_both_set_something(lab):
    node = nodes(lab)
    wide = settings_of(node.GRPOSettings, clip=3e-4, batch_size=5)
    high = settings_of(node.GRPOObjective, clip_high=1e-3, settings=wide)
    assert high == {"objective.clip_low": 3e-4, "objective.clip_high": 1e-3, "batch_size": 5}
    again = settings_of(node.GRPOSettings, clip=2e-4, batch_size=0, settings=high)
    assert again == dict.fromkeys(("objective.clip_low", "objective.clip_high"), 2e-4) | {
        "batch_size": None
    }


def test_zero_and_auto_mean_none(lab):
    off = {"batch_size": 0, "update_batch_size": 0, "ema_decay": 0.0, "recompute_log_p": "auto"}
    full = everything(lab)
    none = settings_of(nodes(lab).GRPOSettings, **off, settings=full)
    none = settings_of(nodes(lab).GRPOObjective, advantage_keep=0, kl_ref=0.0, settings=none)
    changed = {key: none[key] for key in full if none[key] != full[key]}
    assert changed == {
        "batch_size": None,
        "update_batch_size": None,
        "optimizer.ema_decay": None,
        "optimizer.recompute_log_p": None,
        "advantage.keep": None,
        "objective.kl_ref": 0.0,
    }


@pytest.mark.parametrize(
    ("which", "inputs", "words"),
    [
        ("GRPOSettings", {"clip": 0.0}, ["clip is 0;", "from 1e-07 to 0.99", "-1 for"]),
        ("GRPOSettings", {"clip": float("nan")}, ["clip is NaN"]),
        ("GRPOSettings", {"epochs": 0}, ["epochs is 0;", "from 1 to 64"]),
        ("GRPOSettings", {"stop_on": "colapse"}, ["stop_on is 'colapse'", "collapse", "or none"]),
        ("GRPOSettings", {"weight_decay": -0.5}, ["weight_decay is -0.5"]),
        ("GRPOSettings", {"self_test": "yes"}, ["self_test is 'yes'", "inherit, on, off"]),
        ("GRPOExploration", {"noise": "some"}, ["noise is 'some'", "window, drawn"]),
        (
            "GRPOExploration",
            {"window_stride": 9},
            ["window.stride is 9", "this node sets window_stride"],
        ),
        (
            "GRPOObjective",
            {"settings": {"objective.klref": 1.0}},
            ["settings", "'objective.klref'", "did you mean objective.kl_ref?"],
        ),
    ],
)
def test_a_value_that_no_training_takes_is_named_with_its_input(which, inputs, words, lab):
    with pytest.raises(ValueError, match=words[0]) as caught:
        getattr(nodes(lab), which).execute(**inputs)
    assert [word for word in words if word not in str(caught.value)] == []


def test_train_lora_names_an_unknown_key_of_its_settings(lab):
    with pytest.raises(ValueError, match="unknown key 'batchsize'; did you mean"):
        config_of(lab, {"batchsize": 1})


def test_a_node_says_what_is_in_force_and_where_it_comes_from(lab):
    node = nodes(lab)
    out = preset_outputs(node.GRPOPreset, "safe-lora", batch_size=4)
    changed = node.GRPOObjective.execute(kl_old=0.5, settings=out["settings"])
    lines = changed.args[1].splitlines()
    assert len(lines) == len(OBJECTIVE)
    assert "objective.kl_old = 0.5   [this node]" in lines
    assert "objective.kl_ref = 0.003   [safe-lora]" in lines
    assert "objective.kl_threshold = 0.00001   [default]" in lines
    assert "advantage.keep = 0   [safe-lora]" in lines
    basic = node.GRPOSettings.execute(settings=changed.args[0])
    assert len(basic.args[1].splitlines()) == len(BASIC) + 1  # clip sets two
    assert "batch_size = 4   [settings that come in]" in basic.args[1]
    assert "model.activation_offloading = off   [default]" in basic.args[1]
    assert "optimizer.recompute_log_p = auto   [default]" in basic.args[1]
    shown = basic.ui["chunk_grpo_settings"]
    assert shown[0] == {"key": "objective.clip_low", "value": "0.00005", "source": "safe-lora"}
    assert len(shown) == len(BASIC) + 1


def curve_for(lab, preset):
    """A curve with the grid and the rule of a preset, with a jump after the second step."""
    grid = next(setting.value for setting in preset.values if setting.key == "grid")
    return lab.module("chunk_grpo_core.method.dynamics").DynamicsCurve(
        mean=tuple((2.0 if i < 2 else 1.0) - 0.01 * i for i in range(grid.steps)),
        std=(0.0,) * grid.steps,
        prompts=1,
        samples=1,
        sigmas=grid.sigmas,
        rule="flow",
        eta=0.7,
        model="none",
    )


def preset_outputs(node, name, **inputs):
    ids = [output.id for output in node.define_schema().outputs]
    return dict(zip(ids, node.execute(name, **inputs).args, strict=True))


def test_train_lora_builds_the_run_of_every_preset(lab):
    presets = lab.module("chunk_grpo_core.presets")
    for name, preset in presets.PRESETS.items():
        curve = curve_for(lab, preset)
        out = preset_outputs(nodes(lab).GRPOPreset, name, batch_size=-1, curve=curve)
        out |= {"rank": out.pop("lora_rank"), "alpha": out.pop("lora_alpha")}
        del out["text"]
        trained = config_of(lab, out.pop("settings"), **out)
        wanted = presets.preset_config(name, curve=curve, seed=OWN["seed"])
        assert differing(trained, wanted) <= {"grid"}, name
        assert trained.grid.steps == wanted.grid.steps  # SIGMAS are float32
        pairs = zip(trained.grid.sigmas, wanted.grid.sigmas, strict=True)
        assert max(abs(a - b) for a, b in pairs) < 1e-7


def test_the_text_of_a_preset_has_every_value_and_its_source(lab):
    presets = lab.module("chunk_grpo_core.presets")
    for name, preset in presets.PRESETS.items():
        node, curve = nodes(lab).GRPOPreset, curve_for(lab, preset)
        text = preset_outputs(node, name, batch_size=3, curve=curve)["text"]
        lines = dict(
            line.removeprefix("- ").split(" = ", 1) for line in text.splitlines() if " = " in line
        )
        keys = {key for key, _ in leaves(presets.preset_config(name, curve=curve))}
        assert keys - {"seed"} <= lines.keys()
        for setting in preset.values:
            assert setting.source in lines[setting.key], setting
        assert all(note in text for note in preset.notes)
        assert lines["batch_size"].startswith("3")
    curve = curve_for(lab, presets.PRESETS["gcpo-v3"])
    text = preset_outputs(node, "gcpo-v3", batch_size=-1, curve=curve)["text"]
    assert "plan = 4, 4, 4, 4   [arXiv" in text and "the preset says adaptive]" in text


def test_a_preset_that_needs_a_curve_says_how_to_measure_it(lab):
    presets = lab.module("chunk_grpo_core.presets").PRESETS
    asked = []
    for name in presets:
        try:
            nodes(lab).GRPOPreset.execute(name, -1)
        except ValueError as error:
            asked.append(name)
            words = ["plan of gcpo-v3", "no curve is connected", "flow and eta 0.7", "17 steps"]
            assert [word for word in words if word not in str(error)] == [], error
    assert asked == ["gcpo-v3"]


EXAMPLES = Path(__file__).resolve().parents[3] / "example_workflows" / "api"


def inputs_in(name, class_type):
    """Inputs of the nodes of a kind in an example."""
    prompt = json.loads((EXAMPLES / f"{name}.json").read_text())
    return [entry["inputs"] for entry in prompt.values() if entry["class_type"] == class_type]


def test_the_example_by_hand_sets_a_clip_and_how_often_it_saves_and_measures(lab):
    (inputs,) = inputs_in("08_every_step_by_hand", "ChunkGRPO_GRPOSettings")
    assert settings_of(nodes(lab).GRPOSettings, **inputs) == {
        "objective.clip_low": 1e-4,
        "objective.clip_high": 1e-4,
        "checkpoint_every": 5,
        "evaluate_every": 10,
    }


def test_only_the_example_of_presets_has_one_with_the_batch_of_the_tiny_flux(lab):
    batches = {
        path.stem: inputs["batch_size"]
        for path in EXAMPLES.iterdir()
        for inputs in inputs_in(path.stem, "ChunkGRPO_GRPOPreset")
    }
    assert batches == {"05_grpo_preset": 12}
