"""A LoRA leaves a real server as files and comes back in, through our nodes and standard ones."""

import json
import re
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from chunk_grpo_core.version import __version__

from . import graphs
from .client import ComfyClient, PromptRejected
from .graphs import change, find, node, shown_text

TRAIN = "ChunkGRPO_TrainLoRA"
MODEL = ["1", 0]
SAMPLED, GUIDER, TRAINED = "27", "26", ["12", 0]  # in the example by hand


def latents_of(client, server, prompt, name, model):
    """Draw with the standard nodes of the example by hand on another MODEL; return the latents."""
    prompt = change(prompt, "none")
    prompt[GUIDER]["inputs"]["model"] = model
    save = node("SaveLatent", samples=[SAMPLED, 0], filename_prefix=f"latents/{name}")
    prompt = graphs.upstream({**prompt, "save latent": save}, "save latent")
    client.run(prompt, 200)
    (path,) = (server.output / "latents").glob(f"{name}_*.latent")
    return load_file(path)["latent_tensor"]


def load_model(lora):
    """The standard node; newer servers have one more input, which others overlook."""
    return node("LoraModelLoader", model=MODEL, lora=lora, strength_model=1.0, bypass=False)


@pytest.fixture(scope="module")
def trained(comfy_server):
    """Train one small rsLoRA; save it with our node, in both layouts, and with the standard one."""
    client = ComfyClient(comfy_server.url)
    prompt = graphs.small(graphs.twin(graphs.BY_HAND), run_name="lora files", rank=3)
    prompt = change(prompt, "ChunkGRPO_GRPOSettings", rs_lora="on")
    prompt = change(prompt, "ChunkGRPO_SaveLoRA", name="files/fox", for_diffusers=True)
    plan = find(prompt, "ChunkGRPO_PlanChunks")
    del prompt[plan]["inputs"]["curve"]
    prompt["standard"] = node("SaveLoRA", lora=TRAINED, prefix="loras/standard", steps=1)
    log = len(comfy_server.log())
    save = find(prompt, "ChunkGRPO_SaveLoRA")
    run = client.run(graphs.upstream(prompt, save, "standard"), 200)
    files = shown_text(run, save).splitlines()
    wanted = latents_of(client, comfy_server, prompt, "trained", ["17", 0])
    assert not re.search(r"not loaded|lora key", comfy_server.log()[log:], re.IGNORECASE)
    return SimpleNamespace(prompt=prompt, files=files, latents=wanted)


def test_our_files_lie_where_loaders_look(trained, comfy_server):
    names = [path.partition(f"{comfy_server.loras}/")[2] for path in trained.files]
    assert names == ["files/fox.safetensors", "files/fox_diffusers.safetensors"]
    prefixes = [{name.partition(".")[0] for name in load_file(path)} for path in trained.files]
    assert prefixes == [{"diffusion_model"}, {"transformer"}]


def test_the_header_says_how_the_lora_was_made(trained):
    for path in trained.files:
        with safe_open(path, "pt") as file:
            facts = file.metadata()
        recipe = json.loads(facts["chunk_grpo_recipe"])
        made_of = {key: value for key, value in recipe.items() if key.startswith("lora.")}
        assert made_of == {
            "lora.rank": 3, "lora.alpha": 32.0, "lora.rs": True, "lora.targets": "attention+mlp",
        }  # fmt: skip
        assert "Flux" in facts["base_model"] and facts["reward"] == "tiny_world"
        assert facts["chunk_plan"] == "1, 2, 2, 3" and recipe["plan"]["sizes"] == [1, 2, 2, 3]
        assert (facts["steps"], facts["iterations"], facts["seed"]) == ("9", "1", "0")
        assert facts["held_out_seed"] == "20000"
        assert json.loads(facts["held_out_reward"]).keys() == {"before", "after"}
        assert facts["chunk_grpo_version"] == __version__


def test_a_file_without_a_log_still_names_its_maker(trained, comfy):
    prompt = {"load": node("ChunkGRPO_LoadLoRAFile", lora_name="files/fox.safetensors")}
    prompt["save"] = node(
        "ChunkGRPO_SaveLoRA", lora=["load", 0], name="files/copy", for_diffusers=False
    )
    path = shown_text(comfy.run(prompt), "save")
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"chunk_grpo_version": __version__}
    copy, original = load_file(path), load_file(trained.files[0])
    assert all(torch.equal(copy[name], original[name]) for name in original)


def test_the_standard_node_saves_the_same_tensors(trained, comfy_server):
    (path,) = (comfy_server.output / "loras").glob("standard_1_steps_*.safetensors")
    theirs, ours = load_file(path), load_file(trained.files[0])
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[name], ours[name]) for name in ours)


@pytest.mark.parametrize(
    "loader",
    ["native file", "diffusers file", "Load LoRA File", "Load LoRA File, diffusers", "trained on"],
)
def test_every_way_back_gives_the_same_pictures(loader, trained, comfy, comfy_server):
    native, diffusers = "files/fox.safetensors", "files/fox_diffusers.safetensors"
    prompt = dict(trained.prompt)
    name = diffusers if "diffusers" in loader else native
    prompt["file"] = node("ChunkGRPO_LoadLoRAFile", lora_name=name)
    if loader.endswith(" file"):
        prompt["model"] = node(
            "LoraLoaderModelOnly", model=MODEL, lora_name=name, strength_model=1.0
        )
    elif loader == "trained on":  # with steps too small to see, in an adapter of another scale
        prompt = change(
            prompt, TRAIN, run_name=loader, learning_rate=1e-7, rank=5, continue_from=["file", 0]
        )
        prompt = change(prompt, "ChunkGRPO_GRPOSettings", rs_lora="off")
        prompt["model"] = load_model(TRAINED)
    else:
        prompt["model"] = load_model(["file", 0])
    log = len(comfy_server.log())
    found = latents_of(comfy, comfy_server, prompt, loader.replace(" ", "_"), ["model", 0])
    base = latents_of(comfy, comfy_server, prompt, f"base_{loader.replace(' ', '_')}", MODEL)
    assert not re.search(r"not loaded|lora key", comfy_server.log()[log:], re.IGNORECASE)
    assert float((trained.latents - base).abs().max()) > 0.05
    torch.testing.assert_close(found, trained.latents, rtol=0, atol=2e-3)


def test_a_lora_that_does_not_fit_is_refused_in_words(trained, comfy):
    prompt = change(trained.prompt, TRAIN, run_name="small", rank=2, continue_from=["file", 0])
    prompt["file"] = node("ChunkGRPO_LoadLoRAFile", lora_name="files/fox.safetensors")
    prompt = graphs.upstream(prompt, "12")
    message = comfy.run(prompt, check=False).error
    assert "continue_from: lora.rank is 2, and this LoRA needs 3" in message
    assert "set rank to 3 or more" in message
    narrow = change(prompt, TRAIN, rank=3)
    narrow = change(narrow, "ChunkGRPO_GRPOSettings", lora_targets="attention")
    message = comfy.run(narrow, check=False).error
    assert "double_blocks.0.img_mlp.0" in message and "lora.targets that take" in message


def test_a_lora_file_that_is_gone_is_refused_before_anything_runs(comfy):
    prompt = {"file": node("ChunkGRPO_LoadLoRAFile", lora_name="gone.safetensors")}
    prompt["save"] = node(
        "ChunkGRPO_SaveLoRA", lora=["file", 0], name="files/gone", for_diffusers=False
    )
    with pytest.raises(PromptRejected) as caught:
        comfy.submit(prompt)
    assert "no LoRA file 'gone.safetensors'" in " ".join(caught.value.messages())


def test_a_file_that_is_no_lora_is_refused_before_anything_heavy_runs(comfy, comfy_server):
    folder = comfy_server.loras / "files"
    folder.mkdir(parents=True, exist_ok=True)
    save_file({"blocks.0.hada_w1_a": torch.ones(2, 2)}, folder / "loha.safetensors")
    prompt = graphs.training(seed=77, run_name="loha")
    prompt = change(prompt, TRAIN, continue_from=["file", 0])
    prompt["file"] = node("ChunkGRPO_LoadLoRAFile", lora_name="files/loha.safetensors")
    prompt = change(prompt, "ChunkGRPO_LoadReward", name="target_colour", colour="#123456")
    run = comfy.record(prompt, check=False)
    assert "continue_from: " in run.error and "LoHa" in run.error
    ran = {event["node"] for event in run.events_named("executing")}
    assert graphs.find(prompt, "ChunkGRPO_LoadReward") not in ran
