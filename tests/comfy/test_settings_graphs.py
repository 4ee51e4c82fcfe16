"""Settings nodes in a real server: the run on disk has the settings of the graph."""

import json

import pytest

from chunk_grpo_core.presets import PRESETS, preset_config
from chunk_grpo_core.train.config import TrainConfig

from . import graphs
from .graphs import node, shown_text


def trained(server, name):
    """Settings and first metrics of a run."""
    folder = server.output / "chunk_grpo" / name
    record = json.loads((folder / "config.json").read_text())
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return TrainConfig.of(record["config"]), rows


def test_objective_and_exploration_train_as_they_say(comfy, comfy_server):
    info = comfy.object_info()
    prompt = graphs.training(run_name="tuned", iterations=2)
    objective = {"kl_ref": 0.01, "ratio_norm": True, "clip_low": 2e-6, "clip_high": 4e-6}
    prompt = graphs.tuned(prompt, "ChunkGRPO_GRPOObjective", info, **objective)
    exploration = {"noise": "drawn", "ode_solver": "dpm2"}
    comfy.run(graphs.tuned(prompt, "ChunkGRPO_GRPOExploration", info, **exploration))
    config, rows = trained(comfy_server, "tuned")
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
    assert rows[0]["trained_passes"] == 2 * 4 * (2 + 3 + 4)
    text = shown_text(run, "text")
    assert "batch_size = 4" in text and "objective.kl_ref = 0.001" in text
    assert all(setting.source in text for setting in PRESETS["safe-lora"].values)


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
