"""Settings nodes in a real server: the run on disk has the settings of the graph."""

import json

import pytest

from chunk_grpo_core.configfile.record import read_settings
from chunk_grpo_core.presets import PRESETS, preset_config

from . import graphs
from .graphs import node, shown_text


def trained(server, name):
    """Settings and first metrics of a run."""
    folder = server.output / "chunk_grpo" / name
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return read_settings(folder), rows


def test_objective_and_exploration_train_as_they_say(comfy, comfy_server):
    info = comfy.object_info()
    prompt = graphs.training(run_name="tuned", iterations=2)
    objective = {"kl_ref": 0.01, "ratio_norm": "on", "clip_low": 2e-6, "clip_high": 4e-6}
    prompt = graphs.tuned(prompt, "ChunkGRPO_GRPOObjective", info, **objective)
    exploration = {"noise": "drawn", "ode_solver": "dpm2"}
    comfy.run(graphs.tuned(prompt, "ChunkGRPO_GRPOExploration", info, **exploration))
    config, rows = trained(comfy_server, "tuned")
    objective["ratio_norm"] = True
    assert {name: getattr(config.objective, name) for name in objective} == objective
    assert (config.noise, config.ode_solver) == ("drawn", "dpm2")
    assert config.checkpoint_every == 5  # of the GRPO Settings before them
    assert [row["ratio_error_first_update"] for row in rows] == [0.0, 0.0]
    assert rows[1]["reference_gap"] > 0.0  # measured with the adapter off


def test_a_preset_wired_into_train_is_what_trains(comfy, comfy_server):
    own = {"iterations": 1, "prompts_per_iteration": 2, "group_size": 4}
    prompt = graphs.training(run_name="preset", **own)
    prompt = graphs.with_preset(prompt, "safe-lora", *own, batch_size=4)
    prompt["text"] = node("PreviewAny", source=["preset", len(graphs.PRESET_TO_TRAIN)])
    run = comfy.run(prompt)
    config, rows = trained(comfy_server, "preset")
    wanted = preset_config("safe-lora", **own, batch_size=4).flat()
    found = config.flat()
    assert found.pop("grid") == pytest.approx(wanted.pop("grid"), abs=1e-7)
    assert found == wanted
    assert rows[0]["trained_passes"] == 2 * 4 * 2  # the first chunk
    text = shown_text(run, "text")
    assert "batch_size = 4" in text and "objective.kl_ref = 0.003" in text
    assert all(setting.source in text for setting in PRESETS["safe-lora"].values)


def test_a_prompt_of_the_api_names_only_what_it_sets(comfy, comfy_server):
    own = {"iterations": 1, "prompts_per_iteration": 2, "group_size": 4}
    prompt = graphs.training(run_name="patched", **own)
    prompt = graphs.with_preset(prompt, "safe-lora", *own)
    train = graphs.find(prompt, "ChunkGRPO_TrainLoRA")
    prompt["patch"] = node("ChunkGRPO_GRPOSettings", settings=["preset", 0], checkpoint_every=3)
    prompt["text"] = node("PreviewAny", source=["patch", 1])
    prompt[train]["inputs"]["settings"] = ["patch", 0]
    run = comfy.run(prompt)
    config, _ = trained(comfy_server, "patched")
    wanted = preset_config("safe-lora", **own, checkpoint_every=3).flat()
    assert {**config.flat(), "grid": 0} == {**wanted, "grid": 0}
    lines = shown_text(run, "text").splitlines()
    assert "checkpoint_every = 3   [this node]" in lines
    assert "batch_size = 1   [safe-lora]" in lines
    assert "self_test = on   [default]" in lines


def test_settings_without_a_training_say_what_is_in_force(comfy):
    prompt = {
        "preset": node("ChunkGRPO_GRPOPreset", preset="mix-grpo", batch_size=-1),
        "window": node("ChunkGRPO_GRPOExploration", settings=["preset", 0], ode_solver="dpm2"),
    }
    lines = comfy.run(prompt).outputs["window"]["chunk_grpo_settings"]
    assert lines[:3] == [
        {"key": "noise", "value": "window", "source": "mix-grpo"},
        {"key": "ode_solver", "value": "dpm2", "source": "this node"},
        {"key": "window.kind", "value": "sliding", "source": "mix-grpo"},
    ]


@pytest.mark.parametrize("vue", [False, True], ids=["classic", "nodes_2"])
def test_a_settings_node_shows_in_the_page_what_is_in_force(vue, comfy_page):
    prompt = {
        "1": node("ChunkGRPO_GRPOPreset", preset="safe-lora", batch_size=-1),
        "2": node("ChunkGRPO_GRPOObjective", settings=["1", 0], kl_ref=0.002 + vue / 1000),
    }
    comfy_page.load_api(prompt)
    comfy_page.use_vue_nodes(vue)
    comfy_page.show_all()
    before = comfy_page.prompt()
    name, data = comfy_page.queue()
    assert name == "execution_success", data
    comfy_page.page.wait_for_selector(".chunk-grpo .settings .setting.own", state="attached")
    rows = comfy_page.page.eval_on_selector_all(
        ".chunk-grpo .settings .setting",
        "(rows) => rows.map((row) => [...row.children].map((cell) => cell.textContent))",
    )
    assert len(rows) == 14
    assert rows[0] == ["objective.kl_ref", f"{0.002 + vue / 1000:g}", "this node"]
    assert ["advantage.combine", "advantages", "safe-lora"] in rows
    assert ["objective.kl_threshold", "0.00001", "default"] in rows
    assert comfy_page.prompt() == before
    assert comfy_page.alerts() == [] and comfy_page.errors == []


def test_the_page_keeps_every_wire_and_value_of_settings_nodes(comfy, comfy_page):
    info = comfy.object_info()
    prompt = graphs.with_preset(graphs.training(), "safe-lora")
    prompt = graphs.tuned(prompt, "ChunkGRPO_GRPOObjective", info, clip_low=2e-6, kl_threshold=2e-7)
    prompt = graphs.tuned(prompt, "ChunkGRPO_GRPOExploration", info, noise="drawn")
    comfy_page.load_api(prompt)
    assert comfy_page.unknown_types() == []
    shown = comfy_page.prompt()
    comfy_page.load(comfy_page.serialize())
    assert comfy_page.prompt() == shown
    for key, entry in prompt.items():
        got = shown[key]["inputs"]
        assert {name: got.get(name) for name in entry["inputs"]} == entry["inputs"], key
    assert comfy_page.alerts() == []
