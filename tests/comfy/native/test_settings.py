"""Settings nodes, one after the other: what they are told is what Train LoRA trains with."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from types import SimpleNamespace

# Every input of the three nodes, with no value that is a default.
BASIC = {
    "clip": 3e-4,
    "advantage_clamp": 2.5,
    "chunk_fraction": 0.75,
    "updates_per_rollout": 3,
    "epochs": 2,
    "weight_decay": 0.02,
    "max_grad_norm": 0.25,
    "lora_targets": "attention",
    "share_initial_noise": False,
    "batch_size": 5,
    "checkpoint_every": 7,
    "evaluate_every": 4,
    "update_batch_size": 3,
    "rs_lora": True,
    "warmup_updates": 11,
    "ema_decay": 0.9,
    "recompute_log_p": "off",
    "self_test": False,
    "optimizer": "adamw8bit",
    "activation_offloading": True,
}
OBJECTIVE = {
    "ratio": "step",
    "trust_region": "kl-mask",
    "kl_threshold": 2e-5,
    "clip_low": 1e-6,
    "clip_high": 2e-6,
    "ratio_norm": True,
    "step_weights": "guard",
    "kl_ref": 0.1,
    "kl_ref_k3": 0.2,
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


def config_of(lab, settings, **inputs):
    """What Train LoRA would train with; nothing is trained."""
    training, sampler = lab.module("nodes.training"), lab.module("nodes.bridge.sampler")
    core = lab.module("chunk_grpo_core")
    rest = dict.fromkeys(("model", "vae", "prompts", "reward", "latent"))
    rest |= {"pictures_per_held_out": 1, "run_name": "", "resume": False}
    rest |= {"sigmas": lab.module("nodes.sampling").ShiftedSigmas.execute(9, 3.0).args[0]}
    rest |= {"plan": core.parse_plan("1, 1, 1, 1, 2, 2", 8)}
    rest |= {"sampler": sampler.flow_sde_sampler(core.SdeConfig())}

    class Stop(Exception):
        pass

    def stop(*, config, activation_offloading, **_):
        assert activation_offloading is settings.activation_offloading
        raise Stop(config)

    train_lora, training.train_lora = training.train_lora, stop
    try:
        training.TrainLoRA.execute(**{**rest, **OWN, **inputs}, settings=settings)
    except Stop as caught:
        return caught.args[0]
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
    node = nodes(lab)
    settings = settings_of(node.GRPOSettings, **BASIC)
    settings = settings_of(node.GRPOObjective, **OBJECTIVE, settings=settings)
    settings = settings_of(node.GRPOExploration, **EXPLORATION, settings=settings)
    found = dict(leaves(config_of(lab, settings)))
    wanted = {"advantage.clamp": 2.5, "lora.targets": "attention", "lora.rs": True}
    wanted |= {"chunk_fraction": 0.75, "share_initial_noise": False}
    wanted |= {"batch_size": 5, "checkpoint_every": 7, "evaluate_every": 4}
    wanted |= {"update_batch_size": 3}
    for name in ("updates_per_rollout", "epochs", "weight_decay", "max_grad_norm"):
        wanted[f"optimizer.{name}"] = BASIC[name]
    wanted |= {"optimizer.warmup_updates": 11, "optimizer.ema_decay": 0.9}
    wanted |= {"optimizer.recompute_log_p": False, "self_test": False}
    wanted |= {"optimizer.name": "adamw8bit"}
    assert settings.activation_offloading is True
    for name, value in OBJECTIVE.items():
        part, under, rest = name.partition("_")
        is_advantage = part == "advantage"
        wanted["advantage." + rest if is_advantage else "objective." + part + under + rest] = value
    wanted |= {"noise": "window", "ode_solver": "dpm2", "window.kind": "sliding"}
    for name in ("chunks", "start", "stride", "every"):
        wanted[f"window.{name}"] = EXPLORATION[f"window_{name}"]
    wanted |= {"lora.rank": 4, "lora.alpha": 6.0, "optimizer.learning_rate": 2e-3}
    wanted |= {key: OWN[key] for key in ("iterations", "prompts_per_iteration", "group_size")}
    wanted |= {"seed": 12}
    assert {key: found[key] for key in wanted} == wanted
    # The rest is a socket's, or what no user of the nodes needs to touch.
    sockets = {"grid", "plan", "sde.rule", "sde.eta"}
    betas = {"optimizer.beta1", "optimizer.beta2", "optimizer.eps", "optimizer.fused"}
    threads = {"score_while_sampling"}  # ComfyUI's model management knows one thread
    assert found.keys() - wanted.keys() == sockets | betas | threads


def test_a_settings_node_replaces_its_part_and_keeps_the_rest(lab):
    node, default = nodes(lab), lab.module("nodes.types").Settings()
    full = settings_of(node.GRPOSettings, **BASIC)
    full = settings_of(node.GRPOObjective, **OBJECTIVE, settings=full)
    full = settings_of(node.GRPOExploration, **EXPLORATION, settings=full)
    full = replace(full, optimizer=replace(full.optimizer, beta2=0.5, eps=1e-3))
    keys, clips = {key for key, _ in leaves(default)}, {"objective.clip_low", "objective.clip_high"}
    exploration = {"noise", "ode_solver"} | {key for key in keys if key.startswith("window.")}
    objective = {key for key in keys if key.startswith(("objective.", "advantage."))}
    objective -= {"advantage.clamp"} | clips  # 0, the default, keeps the clip
    untouched = {
        f"optimizer.{name}" for name in ("learning_rate", "beta1", "beta2", "eps", "fused")
    }
    untouched |= {"lora.rank", "lora.alpha"}
    for one, own in (
        (node.GRPOSettings, keys - exploration - objective - untouched),
        (node.GRPOObjective, objective),
        (node.GRPOExploration, exploration),
    ):
        inputs = {i.id: i.default for i in one.define_schema().inputs if i.id != "settings"}
        reset = settings_of(one, **inputs, settings=full)
        assert differing(reset, full) == own
        assert not differing(reset, default) & own


def test_a_clip_of_0_keeps_the_one_that_comes_in(lab):
    node = nodes(lab)
    no_clip = OBJECTIVE | {"clip_low": 0.0, "clip_high": 0.0}
    basic = settings_of(node.GRPOSettings, **BASIC)
    kept = settings_of(node.GRPOObjective, **no_clip, settings=basic).objective
    assert (kept.clip_low, kept.clip_high) == (3e-4, 3e-4)
    high = settings_of(node.GRPOObjective, **no_clip | {"clip_high": 1e-3}, settings=basic)
    assert (high.objective.clip_low, high.objective.clip_high) == (3e-4, 1e-3)
    alone = settings_of(node.GRPOObjective, **no_clip).objective
    assert (alone.clip_low, alone.clip_high) == (5e-5, 5e-5)


def test_zero_and_auto_mean_none(lab):
    node = nodes(lab)
    off = {"batch_size": 0, "ema_decay": 0.0, "recompute_log_p": "auto"}
    settings = settings_of(node.GRPOSettings, **BASIC | off)
    settings = settings_of(
        node.GRPOObjective, **OBJECTIVE | {"advantage_keep": 0}, settings=settings
    )
    optimizer = settings.optimizer
    assert (settings.batch_size, settings.advantage.keep) == (None, None)
    assert (optimizer.ema_decay, optimizer.recompute_log_p) == (None, None)


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
        out = preset_outputs(nodes(lab).GRPOPreset, name, batch_size=0, curve=curve)
        out |= {"rank": out.pop("lora_rank"), "alpha": out.pop("lora_alpha")}
        del out["text"]
        found = config_of(lab, out.pop("settings"), **out)
        wanted = presets.preset_config(name, curve=curve, seed=OWN["seed"])
        assert differing(found, wanted) <= {"grid"}, name
        assert found.grid.steps == wanted.grid.steps  # SIGMAS are float32
        pairs = zip(found.grid.sigmas, wanted.grid.sigmas, strict=True)
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
        assert all(departure in text for departure in preset.departures)
        assert lines["batch_size"].startswith("3")
    curve = curve_for(lab, presets.PRESETS["gcpo-v3"])
    text = preset_outputs(node, "gcpo-v3", batch_size=0, curve=curve)["text"]
    assert "plan = 4, 4, 4, 4   [arXiv" in text and "the preset says adaptive]" in text


def test_a_preset_that_needs_a_curve_says_how_to_measure_it(lab):
    presets = lab.module("chunk_grpo_core.presets").PRESETS
    asked = []
    for name in presets:
        try:
            nodes(lab).GRPOPreset.execute(name, 0)
        except ValueError as error:
            asked.append(name)
            words = ["plan of gcpo-v3", "no curve is connected", "flow and eta 0.7", "17 steps"]
            assert [word for word in words if word not in str(error)] == [], error
    assert asked == ["gcpo-v3"]
