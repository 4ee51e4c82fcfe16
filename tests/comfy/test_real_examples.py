"""Example workflows for real models: the files they ask for, their wiring, and a small stand-in."""

import json
import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from . import graphs
from .client import PromptRejected
from .graphs import MODEL, find, node

TRAIN, EVALUATE, SAVE = "ChunkGRPO_TrainLoRA", "ChunkGRPO_EvaluateLoRA", "ChunkGRPO_SaveLoRA"
OF_THE_TINY_FLUX = {"model": MODEL, "clip": graphs.CLIP, "vae": graphs.VAE}
AS_DRAWN = {
    "12_flux2_dev": (None, "Flux2Scheduler", 8),
    "16_z_image_turbo": ("res_multistep", "ChunkGRPO_ShiftedSigmas", 8),
    "17_flux2_klein": (None, "Flux2Scheduler", 4),
    "19_z_image_turbo_your_taste": ("res_multistep", "ChunkGRPO_ShiftedSigmas", 8),
}
"""Example -> sampler, node of the noise levels, steps; where they are not those of the others."""
PICK, FIT = "ChunkGRPO_PickPictures", "ChunkGRPO_FitTaste"
NEWER = {"18_krea2_turbo": "krea2"}
"""Example -> what an older server does not offer; the note of the example says so."""
NOT_COMFYUIS = {"13_sd35"}
"""Examples of models that ComfyUI's own templates no longer have."""
real_examples = pytest.mark.parametrize("name", graphs.REAL)


def listed(definition, name):
    """Return the values that a server offers for an input, in both forms of /object_info."""
    kind, *options = definition["input"]["required"][name]
    return kind if isinstance(kind, list) else options[0]["options"]


def loaders(prompt, name):
    """Return the nodes that name a model file."""
    names = {file["name"] for _, file in graphs.model_files(name)}
    return {k: entry for k, entry in prompt.items() if names & set(map(str, values_of(entry)))}


def values_of(entry):
    return entry["inputs"].values()


def note(name):
    """Return the text that one reads first."""
    nodes = graphs.workflow(name)["nodes"]
    return next(n["widgets_values"][0] for n in nodes if n.get("title") == "Read me first")


@real_examples
def test_files_addresses_and_encoder_types_are_those_of_comfyuis_own_templates(name):
    package = find_spec("comfyui_workflow_templates_json")
    if package is None or not package.submodule_search_locations:
        pytest.fail("comfyui-workflow-templates-json is not installed: pip install -e '.[dev]'")
    folder = Path(package.submodule_search_locations[0], "templates")
    templates = [file.read_text(encoding="utf-8") for file in sorted(folder.glob("*.json"))]
    assert len(templates) > 100
    for _, file in graphs.model_files(name):
        is_there = [t for t in templates if f'"{file["url"]}"' in t and f'"{file["name"]}"' in t]
        assert is_there or name in NOT_COMFYUIS, file
    kinds = {
        json.dumps(entry["inputs"]["type"])
        for entry in graphs.twin(name).values()
        if entry["class_type"] in ("CLIPLoader", "DualCLIPLoader")
    }
    assert all(any(kind in template for template in templates) for kind in kinds)


@real_examples
def test_the_page_can_offer_exactly_the_files_that_the_loaders_name(name):
    for entry in graphs.workflow(name)["nodes"]:
        named = {v for v in entry.get("widgets_values") or () if str(v).endswith(".safetensors")}
        files = entry["properties"].get("models", [])
        assert {file["name"] for file in files} == named
        for file in files:
            url = rf"https://huggingface\.co/[\w.-]+/[\w.-]+/resolve/main/\S*{file['name']}"
            assert re.fullmatch(url, file["url"])
    assert graphs.model_files(name)


@real_examples
def test_the_note_names_every_file_and_claims_no_measurement(name):
    notes = [n for n in graphs.workflow(name)["nodes"] if n["type"] == "MarkdownNote"]
    text = note(name)
    for _, file in graphs.model_files(name):
        assert f"`models/{file['directory']}/{file['name']}`" in text
    for word in ("**Memory**", "**Time**", "**Watch**", "been measured on a GPU yet"):
        assert word in text
    assert {n["title"] for n in notes} > {"The reward", "What to change first"}


@real_examples
def test_a_recipe_trains_as_the_model_is_drawn_and_the_lora_is_saved_and_measured(name):
    prompt = graphs.twin(name)
    train = find(prompt, TRAIN)
    inputs = prompt[train]["inputs"]
    assert (inputs["recipe"], inputs["iterations"]) == ("quick", 30)
    numbers = ("prompts_per_iteration", "group_size", "learning_rate", "rank", "alpha")
    assert not any(inputs[key] for key in numbers) and not {"settings", "plan"} & set(inputs)
    sampler, levels, steps = AS_DRAWN.get(name, (None, "ChunkGRPO_ShiftedSigmas", 8))
    drawn_with = prompt[inputs["sampler"][0]]["inputs"] if "sampler" in inputs else {}
    assert drawn_with.get("sampler_name") == sampler
    for key in (train, find(prompt, EVALUATE)):
        of_steps = prompt[prompt[key]["inputs"]["sigmas"][0]]
        assert (of_steps["class_type"], of_steps["inputs"]["steps"]) == (levels, steps)
        assert of_steps["inputs"].get("shift", 3.0) == 3.0  # the levels of the recipe
    save, evaluate = (prompt[find(prompt, kind)]["inputs"] for kind in (SAVE, EVALUATE))
    assert (save["lora"], save["log"], evaluate["lora"]) == ([train, 0], [train, 2], [train, 0])
    assert save["name"] == f"chunk_grpo/{name[3:]}"
    shared = ("model", "vae", "prompts", "reward", "cfg", "negative")
    shared += ("sampler",)
    assert [evaluate.get(key) for key in shared] == [inputs.get(key) for key in shared]
    assert (inputs["cfg"] > 1) == ("negative" in inputs)
    kinds = [entry["class_type"] for entry in prompt.values()]
    assert kinds.count("ChunkGRPO_LoadReward") == 1
    assert "ChunkGRPO_GRPOPreset" not in kinds
    assert len(kinds) <= (18 if name != "19_z_image_turbo_your_taste" else 25)


@real_examples
def test_the_server_lists_the_files_and_stops_only_at_reading_them(name, comfy, model_files):
    """Both 0.3.75 and newer servers have every loader and text encoder type of every example, but
    for those that say in their note which server they need.
    """
    prompt, info = graphs.twin(name), comfy.object_info()
    missing = NEWER.get(name)
    if missing and missing not in listed(info["CLIPLoader"], "type"):
        assert f"`{missing}`; 0.3.75 does not" in note(name)
        with pytest.raises(PromptRejected, match=f"type: '{missing}' not in"):
            comfy.run(graphs.for_server(prompt, info), check=False)
        return
    assert [e["class_type"] for e in prompt.values() if e["class_type"] not in info] == []
    found = loaders(prompt, name)
    for entry in found.values():
        for key, value in entry["inputs"].items():
            if key in graphs.input_options(info[entry["class_type"]]):
                offered = info[entry["class_type"]]["input"]["required"].get(key)
                assert offered is None or value in listed(info[entry["class_type"]], key)
    run = comfy.run(graphs.for_server(prompt, info), check=False)  # submit raises if refused
    assert run.error is not None
    stopped = re.match(r"\w+ #(\S+):", run.error)[1]
    assert stopped in found, run.error


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "10_flux1_dev_bf16", "12_flux2_dev", "15_z_image", "16_z_image_turbo", "17_flux2_klein",
        "19_z_image_turbo_your_taste",
    ],
)  # fmt: skip
def test_the_graph_trains_when_the_tiny_flux_stands_in(name, comfy, comfy_server):
    prompt = stand_in(graphs.twin(name), name)
    run = comfy.run(prompt, 280)
    summary = graphs.shown_text(run, find(prompt, TRAIN))
    assert summary.startswith("1 iterations.")
    assert '"follows_prompt"' in json.dumps(run.outputs[find(prompt, EVALUATE)])
    assert list((comfy_server.loras / "chunk_grpo").glob(f"{name[3:]}*.safetensors"))


def test_the_person_picks_before_the_taste_is_fitted_and_judges_blindly_afterwards():
    prompt = graphs.twin("19_z_image_turbo_your_taste")
    pick, fit, train = (find(prompt, kind) for kind in (PICK, FIT, TRAIN))
    assert prompt[pick]["inputs"]["wait"] and prompt[fit]["inputs"]["taste"] == [pick, 2]
    balance = prompt[prompt[train]["inputs"]["reward"][0]]["inputs"]
    assert balance["taste"] == [fit, 0] and balance["balance"] == 0.5
    assert prompt[find(prompt, EVALUATE)]["inputs"]["duels"] == 20
    assert prompt[find(prompt, EVALUATE)]["inputs"]["log"] == [train, 2]


def stand_in(prompt, name):
    """Return a small copy of an example in which the tiny FLUX takes the place of its loaders."""
    gone = loaders(prompt, name)
    prompt = {key: entry for key, entry in prompt.items() if key not in gone}
    prompt["1"] = node("ChunkGRPO_LoadTinyFlux")
    for entry in prompt.values():
        for key, value in entry["inputs"].items():
            if isinstance(value, list) and value[0] in gone:
                entry["inputs"][key] = OF_THE_TINY_FLUX[key]
        if entry["class_type"].startswith("Empty"):
            entry |= node("EmptySD3LatentImage", width=64, height=64, batch_size=1)
    prompt = graphs.change(prompt, PICK, wait=False, taste="untouched")
    prompt = graphs.change(prompt, FIT, taste="example")
    if "duels" in prompt[find(prompt, EVALUATE)]["inputs"]:
        prompt = graphs.change(prompt, EVALUATE, duels=2)
    captions = {"text": ["1", 3], "held_out_text": ["1", 4]}
    prompt = graphs.change(prompt, "ChunkGRPO_PromptSet", **captions)
    return graphs.small(prompt)
