"""The nodes do in a real server, through POST /prompt, what their descriptions promise."""

import ast
import inspect
import io
import json
import re
import time
from dataclasses import fields
from itertools import combinations
from types import SimpleNamespace

import pytest
import torch
from each import failures_of_each
from PIL import Image
from safetensors.torch import load_file

from chunk_grpo_core.configfile.record import read_document, read_record, read_run, read_settings
from chunk_grpo_core.lora.adapter import LoraConfig
from chunk_grpo_core.method.advantage import AdvantageConfig
from chunk_grpo_core.method.objective import ObjectiveConfig
from chunk_grpo_core.method.rules import SdeConfig
from chunk_grpo_core.method.schedule import shifted_grid
from chunk_grpo_core.presets import preset_config
from chunk_grpo_core.train.config import OptimizerConfig, TrainConfig
from tools.comfyui.server import PACK_NAME, ROOT

from . import graphs
from .client import ComfyClient
from .graphs import CLIP, MODEL, base_nodes, change, find, node, sampling, shown_text

PREFIX = "ChunkGRPO_"
TRAIN = "ChunkGRPO_TrainLoRA"


def pictures(client, run, key):
    return [Image.open(io.BytesIO(client.view(f))) for f in run.outputs[key].get("images", [])]


def saved_latent(server, prefix):
    (path,) = (server.output / "latents").glob(f"{prefix}_*.latent")
    return load_file(path)["latent_tensor"]


@pytest.fixture(scope="module")
def by_hand(comfy_server):
    """Run the example by hand once, made small; both samplings are saved as latents too."""
    client = ComfyClient(comfy_server.url)
    prompt = graphs.small(graphs.twin(graphs.BY_HAND), run_name="by hand", iterations=2)
    prompt["base latent"] = node("SaveLatent", samples=["23", 0], filename_prefix="latents/base")
    prompt["lora latent"] = node("SaveLatent", samples=["27", 0], filename_prefix="latents/lora")
    log = len(comfy_server.log())
    run = client.run(prompt, 200)
    folder = comfy_server.output / "chunk_grpo" / "by hand"
    return SimpleNamespace(prompt=prompt, run=run, folder=folder, log=comfy_server.log()[log:])


@pytest.fixture
def lora_file(by_hand, comfy_server):
    """Give the saved LoRA under the name that the loaders list."""
    path = shown_text(by_hand.run, find(by_hand.prompt, "ChunkGRPO_SaveLoRA"))
    return path.partition(f"{comfy_server.loras}/")[2]


# What the server says about the nodes


def node_ids():
    source = "".join(path.read_text() for path in sorted((ROOT / "nodes").glob("*.py")))
    return sorted(re.findall(r'node_id="(\w+)"', source))


def test_every_node_of_the_extension_is_registered(comfy):
    tree = ast.parse((ROOT / "nodes" / "extension.py").read_text())
    (listed,) = [
        n.value.elts
        for n in ast.walk(tree)
        if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "nodes"
    ]
    registered = sorted(name for name in comfy.object_info() if name.startswith(PREFIX))
    assert registered == node_ids()
    assert len(registered) == len(listed)


def test_every_node_explains_itself(comfy):
    infos = comfy.object_info()
    assert failures_of_each(lambda name: check_explanation(infos[name]), node_ids()) == {}


def check_explanation(info):
    assert info["category"].startswith("training/chunk-grpo")
    assert info["description"].endswith(".")
    assert info["display_name"] and not info["display_name"].startswith(PREFIX)
    for key, options in graphs.input_options(info).items():
        assert options.get("tooltip"), f"input {key} has no tooltip"
    assert len(info["output_tooltips"]) == len(info["output"])
    assert all(info["output_tooltips"]), info["output_tooltips"]
    assert len(set(info["output_name"])) == len(info["output"]), info["output_name"]
    unnamed = [n for n in info["output_name"] if n.startswith("CHUNK_GRPO_") or n == "STRING"]
    assert not unnamed, f"{unnamed} are types; give the outputs a display_name"


def test_every_node_has_a_help_page(comfy):
    assert failures_of_each(lambda name: check_help_page(name, comfy), node_ids()) == {}


def check_help_page(name, comfy):
    status, body = comfy.request(f"/extensions/{PACK_NAME}/docs/{name}.md")
    assert status == 200, f"web/docs/{name}.md is not served"
    assert body.startswith(b"#")
    inputs = graphs.input_options(comfy.object_info(name))
    assert [key for key in inputs if key.encode() not in body] == []


def dataclass_defaults(kind):
    return {f.name: f.default for f in fields(kind)}


def test_widgets_start_with_the_defaults_of_the_library(comfy):
    sde = dataclass_defaults(SdeConfig)
    of_the_recipe = (
        "prompts_per_iteration", "group_size", "learning_rate", "rank", "alpha",
    )  # fmt: skip
    wanted = {
        "TrainLoRA": {
            **{name: dataclass_defaults(TrainConfig)[name] for name in ("iterations", "seed")},
            "run_name": "",
            "resume": False,
            "recipe": "quick",
            **dict.fromkeys(of_the_recipe, 0),
        },
        "FlowSDESampler": {
            **{name: sde[name] for name in ("rule", "eta")},
            "noise_from": 0.0,
            "noise_to": 1.0,
        },
        "ShiftedSigmas": {"shift": inspect.signature(shifted_grid).parameters["shift"].default},
    }
    for name, values in wanted.items():
        options = graphs.input_options(comfy.object_info(PREFIX + name))
        assert {key: options[key]["default"] for key in values} == values, name


@pytest.mark.parametrize(
    "name", ["GRPOSettings", "GRPOObjective", "GRPOExploration", "ForwardObjective"]
)
def test_inputs_of_settings_nodes_start_by_inheriting_and_say_so(name, comfy):
    options = graphs.input_options(comfy.object_info(PREFIX + name))
    del options["settings"]
    for key, spec in options.items():
        words = {"inherit": "inherit: as the", -1: "-1: as the", "": "Empty: as the"}
        assert spec["tooltip"].splitlines()[-1].startswith(words[spec["default"]]), key
        assert spec["default"] == spec.get("min", spec.get("options", [""])[0]), key


def test_settings_nodes_say_the_defaults_of_the_library(comfy):
    config, optimizer = dataclass_defaults(TrainConfig), dataclass_defaults(OptimizerConfig)
    objective, lora = dataclass_defaults(ObjectiveConfig), dataclass_defaults(LoraConfig)
    assert objective["clip_low"] == objective["clip_high"] == 0.00005
    wanted = {
        "clip": "0.00005",
        "advantage_clamp": f"{dataclass_defaults(AdvantageConfig)['clamp']:g}",
        "chunk_fraction": f"{config['chunk_fraction']:g}",
        "weight_decay": "0.0001" if optimizer["weight_decay"] == 1e-4 else "another",
        "lora_targets": lora["targets"],
        "rs_lora": {False: "off"}[lora["rs"]],
        "batch_size": {None: "0"}[config["batch_size"]],
        "ema_decay": {None: "0"}[optimizer["ema_decay"]],
        "recompute_log_p": {None: "auto"}[optimizer["recompute_log_p"]],
        "self_test": {True: "on"}[config["self_test"]],
        "optimizer": optimizer["name"],
        "activation_offloading": "off",
        "checkpoint_every": str(config["checkpoint_every"]),
        "warmup_updates": str(optimizer["warmup_updates"]),
    }
    options = graphs.input_options(comfy.object_info(f"{PREFIX}GRPOSettings"))
    for key, default in wanted.items():
        assert options[key]["tooltip"].endswith(f"; by default {default}."), key


def test_the_page_can_show_every_number_that_the_server_takes(comfy):
    infos = comfy.object_info()
    rounded = {  # the page shows, and keeps, only the digits of step
        (name, key): spec
        for name in node_ids()
        for key, spec in graphs.input_options(infos[name]).items()
        if "round" in spec
    }
    assert rounded
    assert [where for where, spec in rounded.items() if spec["step"] > spec["round"]] == []


# The examples run


def test_the_example_by_hand_runs_and_shows_pictures(by_hand, comfy):
    prompt, run = by_hand.prompt, by_hand.run
    previews = [key for key in prompt if prompt[key]["class_type"] == "PreviewImage"]
    assert len(previews) >= 4
    for key in previews:
        for picture in pictures(comfy, run, key):
            assert min(picture.size) >= 64
            assert len(picture.convert("RGB").getcolors(10**6)) > 10, f"node {key} shows nothing"
    plot = pictures(comfy, run, "14")[0]
    assert min(plot.size) > 400
    assert "Held-out reward" in shown_text(run, find(prompt, TRAIN))
    assert "Warning" not in shown_text(run, find(prompt, TRAIN))
    assert shown_text(run, find(prompt, "PreviewAny")) == shown_text(run, find(prompt, TRAIN))


def test_the_quick_start_is_a_whole_training_in_ten_nodes(comfy, comfy_server):
    whole = graphs.twin(graphs.QUICK_START)
    assert len(graphs.workflow(graphs.QUICK_START)["nodes"]) <= 10
    prompt = graphs.small(whole, run_name="short", prompts_per_iteration=0)
    run = comfy.run(prompt)
    assert min(pictures(comfy, run, find(prompt, "PreviewImage"))[0].size) >= 128
    assert shown_text(run, find(prompt, "PreviewAny")) == shown_text(run, find(prompt, TRAIN))
    config = read_settings(comfy_server.output / "chunk_grpo" / "short")
    wanted = preset_config("quick", iterations=1, group_size=4, **{"lora.rank": 4})
    trained = {**config.flat(), "grid": len(config.grid.sigmas)}
    changed = {key for key, value in wanted.flat().items() if trained[key] != value}
    assert changed == {"grid", "lora.alpha", "optimizer.learning_rate"}
    assert (trained["grid"], trained["lora.alpha"]) == (9, 8.0)  # 8 steps, the scale of the recipe


def test_a_check_says_what_the_training_will_take_and_keeps_nothing(comfy, comfy_server):
    prompt = graphs.small(graphs.twin(graphs.QUICK_START), check_only=True, seed=5)
    prompt = change(prompt, "ChunkGRPO_SaveLoRA", name="not_trained")
    runs = comfy_server.output / "chunk_grpo"
    before = sorted(runs.iterdir()) if runs.exists() else []
    run = comfy.run(prompt)
    text = shown_text(run, find(prompt, TRAIN))
    for words in ("in all: 1 iterations of 8 pictures", "Self-test: passed", "Nothing was trained"):
        assert words in text
    for line in text.splitlines()[:-1]:
        assert line.endswith("  "), "the older page reads Markdown, where this ends a line"
    assert shown_text(run, find(prompt, "PreviewAny")) == text
    assert find(prompt, "PreviewImage") not in run.outputs
    assert (sorted(runs.iterdir()) if runs.exists() else []) == before
    assert not list(comfy_server.loras.glob("**/not_trained*"))


def test_the_temporal_dynamics_example_runs_and_shows_pictures(comfy):
    prompt = graphs.small(graphs.twin(graphs.DYNAMICS))
    run = comfy.run(prompt)
    previews = [key for key in prompt if prompt[key]["class_type"] == "PreviewImage"]
    sizes = {key: [p.size for p in pictures(comfy, run, key)] for key in previews}
    assert sorted(map(len, sizes.values())) == [1, 1, 2, 2]  # two plots, two groups of 2
    assert all(min(size) >= 64 for shown in sizes.values() for size in shown)


def test_the_example_that_uses_a_lora_runs_and_shows_pictures(comfy):
    prompt = graphs.small(graphs.twin(graphs.USE))
    run = comfy.run(prompt, 200)
    shown = [
        picture
        for key in prompt
        if prompt[key]["class_type"] == "PreviewImage"
        for picture in pictures(comfy, run, key)
    ]
    assert len(shown) == 2
    grids = [key for key in prompt if prompt[key]["class_type"] == "ChunkGRPO_ScoreImages"]
    assert len(grids) == 3
    for key in grids:
        rows = run.outputs[key]["chunk_grpo_scores"]
        assert len(rows) == 2 and all(comfy.view(row["picture"]) for row in rows)
    for picture in shown:
        assert min(picture.size) >= 64 and len(picture.convert("RGB").getcolors(10**6)) > 10
    tables = [shown_text(run, key) for key in prompt if prompt[key]["class_type"] == "PreviewAny"]
    assert len(set(tables)) == 2, "all steps and the first 60 % gave the same numbers"
    assert all("- tiny_world: gain " in table for table in tables)


def test_the_sampler_adds_noise_only_in_its_part_of_the_steps(comfy, comfy_server):
    inputs, names = base_nodes(), ("euler", "old", "whole", "first", "last", "none")
    del inputs["10"]
    flow = {"rule": "flow", "eta": 0.7}
    samplers = {
        "old": flow,  # as graphs from before have it
        "whole": {**flow, "noise_from": 0.0, "noise_to": 1.0},
        "first": {**flow, "noise_from": 0.0, "noise_to": 0.5},
        "last": {**flow, "noise_from": 0.5, "noise_to": 1.0},
        "none": {**flow, "noise_from": 0.0, "noise_to": 0.05},  # less than half a step
    }
    for name in names:
        inputs |= sampling(name, MODEL, "a large red circle", 7, 2)
        if name in samplers:
            inputs[f"{name}.sampler"] = node("ChunkGRPO_FlowSDESampler", **samplers[name])
        inputs[f"{name}.images"] = node(
            "SaveLatent", samples=[f"{name}.sampled", 0], filename_prefix=f"latents/part {name}"
        )
    comfy.run(inputs)
    latent = {name: saved_latent(comfy_server, f"part {name}") for name in names}
    torch.testing.assert_close(latent["none"], latent["euler"], rtol=0, atol=1e-3)
    assert torch.equal(latent["old"], latent["whole"])
    for one, two in combinations(("euler", "whole", "first", "last"), 2):
        assert float((latent[one] - latent[two]).abs().mean()) > 0.01, (one, two)


def test_a_plan_of_another_sampler_is_called_out_in_the_summary(comfy, comfy_server):
    prompt = graphs.small(graphs.twin(graphs.BY_HAND), run_name="other sampler")
    prompt = change(prompt, "ChunkGRPO_AnalyzeTemporalDynamics", distance="cosine")
    prompt = change(prompt, "ChunkGRPO_PlanChunks", chunk_sizes="cut 4 2", weights="softmax 0.5")
    prompt = change(prompt, "ChunkGRPO_RollOutTrajectories", sampler=["still", 0])
    prompt["still"] = node("ChunkGRPO_FlowSDESampler", rule="ode", eta=0.7)
    log = len(comfy_server.log())
    train = find(prompt, TRAIN)
    text = shown_text(comfy.run(graphs.upstream(prompt, train)), train)
    warning = "The plan's curve was measured with rule ode, but training uses flow"
    (line,) = [line for line in text.splitlines() if line.startswith("Warning: ")]
    assert warning in line
    assert warning in comfy_server.log()[log:]
    plan = read_settings(comfy_server.output / "chunk_grpo" / "other sampler").plan
    assert plan.sizes == (2, 2, 2, 2) and sum(plan.weights) == pytest.approx(1.0)
    assert plan.source.distance == "cosine" and plan.source.rule == "ode"


# Several rewards


def colours(**named):
    """Return one target_colour reward for each name."""
    return {
        name: node("ChunkGRPO_LoadReward", name="target_colour", colour=colour)
        for name, colour in named.items()
    }


def test_rewards_are_combined_by_weight(comfy):
    # Red is 2/3 away from white and 1/3 from black, as a mean over its channels.
    prompt = colours(red="#ff0000", white="#ffffff", black="#000000")
    prompt["picture"] = node("EmptyImage", width=8, height=8, batch_size=1, color=0xFF0000)
    two = {"reward_1": ["red", 0], "reward_2": ["white", 0], "weight_1": 1.0, "weight_2": -0.5}
    prompt["two"] = node("ChunkGRPO_CombineRewards", **two)
    prompt["three"] = node(
        "ChunkGRPO_CombineRewards", **two, reward_4=["black", 0], weight_3=9.0, weight_4=3.0
    )
    prompt["nested"] = node(
        "ChunkGRPO_CombineRewards",
        **{"reward_1": ["two", 0], "reward_2": ["black", 0], "weight_1": 2.0, "weight_2": 0.0},
    )
    for key in ("two", "three", "nested"):
        score = {"reward": [key, 0], "images": ["picture", 0], "prompt": "red"}
        prompt[f"{key} score"] = node("ChunkGRPO_ScoreImages", **score)
    run = comfy.run(prompt)
    red, white, black = 1.0, 1 / 3, 2 / 3
    expected = {"two": red - 0.5 * white, "nested": 2 * red - white}
    expected["three"] = expected["two"] + 3 * black
    for key, value in expected.items():
        found = shown_text(run, f"{key} score").split("\t")[1]
        assert float(found) == pytest.approx(value, abs=1e-4), key


def test_a_training_records_every_reward(comfy, comfy_server):
    prompt = graphs.training(run_name="two rewards")
    reward = prompt[find(prompt, TRAIN)]["inputs"]["reward"]
    prompt |= colours(blue="#2060c0")
    prompt["both"] = node(
        "ChunkGRPO_CombineRewards",
        **{"reward_1": reward, "reward_2": ["blue", 0], "weight_1": 1.0, "weight_2": 0.5},
    )
    comfy.run(change(prompt, TRAIN, reward=["both", 0]))
    folder = comfy_server.output / "chunk_grpo" / "two rewards"
    (row,) = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    assert row["rewards"].keys() == {"tiny_world", "target_colour"}
    assert read_record(folder).reward == "1.0*tiny_world + 0.5*target_colour"


# What was trained is what standard nodes load


def test_the_file_and_the_socket_give_the_same_pictures(by_hand, lora_file, comfy, comfy_server):
    inputs = graphs.upstream(by_hand.prompt, "23")
    inputs["file"] = node("LoraLoaderModelOnly", model=MODEL, lora_name=lora_file, strength_model=1)
    inputs["22"]["inputs"]["model"] = ["file", 0]
    inputs["save"] = node("SaveLatent", samples=["23", 0], filename_prefix="latents/file")
    log = len(comfy_server.log())
    comfy.run(inputs)
    base, lora, file = (saved_latent(comfy_server, name) for name in ("base", "lora", "file"))
    assert float((lora - base).abs().max()) > 0.05, "the LoRA changes nothing"
    torch.testing.assert_close(file, lora, rtol=0, atol=1e-3)
    for text in (by_hand.log, comfy_server.log()[log:]):
        assert not re.search(r"not loaded|lora key", text, re.IGNORECASE)


def test_standard_nodes_measure_the_recorded_scores(by_hand, lora_file, comfy):
    record = json.loads((by_hand.folder / "evaluation.json").read_text())
    count = len(record["before"]["rewards"][0])
    inputs = base_nodes()
    inputs["file"] = node("LoraLoaderModelOnly", model=MODEL, lora_name=lora_file, strength_model=1)
    cases = [
        (which, index, model, caption)
        for which, model in (("before", MODEL), ("after", ["file", 0]))
        for index, caption in enumerate(record[which]["prompts"])
    ]
    for which, index, model, caption in cases:
        key = f"{which}{index}"
        inputs |= sampling(key, model, caption, record["noise_seed"] + index, count)
        score = {"reward": ["10", 0], "images": [f"{key}.images", 0], "prompt": caption}
        inputs[key] = node("ChunkGRPO_ScoreImages", **score)
    assert record["noise_seed"] == 20_000
    assert len(cases) == 4
    run = comfy.run(inputs)
    for which, index, *_ in cases:
        table = shown_text(run, f"{which}{index}")
        scores = [float(line.split("\t")[1]) for line in table.splitlines()]
        assert scores == pytest.approx(record[which]["rewards"][index], abs=2e-3)
    assert record["before"]["rewards"] != record["after"]["rewards"]


# Runs are kept and go on


def test_a_run_goes_on_and_its_name_is_not_taken_twice(comfy, comfy_server):
    first = graphs.training(run_name="goes on", iterations=1)
    first = change(first, "ChunkGRPO_GRPOSettings", checkpoint_every=1)
    comfy.run(first)
    message = comfy.run(change(first, TRAIN, iterations=2), check=False).error
    assert "'goes on' exists already" in message
    assert "resume" in message and "run_name" in message
    run = comfy.run(change(first, TRAIN, iterations=2, resume=True))
    assert shown_text(run, find(first, TRAIN)).startswith("2 iterations")
    metrics = comfy_server.output / "chunk_grpo" / "goes on" / "metrics.jsonl"
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert [row["iteration"] for row in rows] == [0, 1]
    other = change(first, TRAIN, iterations=3, resume=True, group_size=6)
    message = comfy.run(other, check=False).error
    assert "group_size = 6, but iterations 1 to 2 were trained with 4" in message
    with pytest.raises(ValueError, match="is a run of ComfyUI.* run_name goes on and resume on"):
        read_run(metrics.parent)
    slower = change(first, TRAIN, iterations=3, resume=True, learning_rate=1e-5)
    comfy.run(slower)
    changes = [(entry.iteration, entry.key) for entry in read_record(metrics.parent).changes]
    assert {(1, "iterations"), (2, "iterations"), (2, "optimizer.learning_rate")} == set(changes)
    assert read_settings(metrics.parent).optimizer.learning_rate == 1e-5


def test_what_guides_the_model_is_recorded_and_compared_when_a_run_goes_on(comfy, comfy_server):
    words = {name: node("CLIPTextEncode", clip=CLIP, text=name) for name in ("black", "red")}
    first = graphs.training(run_name="guided", iterations=1) | words
    first = change(first, TRAIN, cfg=2.0, negative=["black", 0])
    comfy.run(first)
    model = read_document(comfy_server.output / "chunk_grpo" / "guided")["model"]
    assert model["cfg"] == 2.0 and model["negative"].startswith("SHA-256 ")
    for changed, name in (
        (change(first, TRAIN, resume=True, negative=["red", 0]), "model.negative"),
        (change(first, TRAIN, resume=True, cfg=3.0), "model.cfg = 3.0"),
        (
            change(change(first, TRAIN, resume=True), "ChunkGRPO_PromptSet", guidance=2.0),
            "model.guidance",
        ),
    ):
        message = comfy.run(changed, check=False).error
        assert name in message and "iterations 1 to 1 were trained with" in message
    comfy.run(change(first, TRAIN, resume=True, iterations=2))


def test_cancel_stops_at_once_and_leaves_the_model_as_it_was(comfy):
    view = {
        **base_nodes(),
        **sampling("view", MODEL, "a large red circle on a blue background", 7, 2),
    }
    del view["10"]
    view["shown"] = node("PreviewImage", images=["view.images", 0])
    before = pictures(comfy, comfy.run(view), "shown")

    train = graphs.training(iterations=50)
    pressed = []

    def press_cancel(name, data):
        of_training = name == "progress" and data["node"] == find(train, TRAIN)
        if of_training and data["value"] > 110 and not pressed:  # 100 units measure the base
            pressed.append(time.monotonic())
            comfy.interrupt()

    run = comfy.record(train, on_event=press_cancel, check=False)
    assert time.monotonic() - pressed[0] < 10
    assert run.interrupted and run.error is None
    assert run.events[-1][0] == "execution_interrupted"
    assert run.previews >= 1

    after = comfy.record(view)
    cached = {key for data in after.events_named("execution_cached") for key in data["nodes"]}
    assert "1" in cached and "view.sampled" not in cached  # the same MODEL, sampled anew
    shown = pictures(comfy, after, "shown")
    assert [p.tobytes() for p in shown] == [p.tobytes() for p in before]
    assert comfy.run(change(train, TRAIN, iterations=1)).ok
