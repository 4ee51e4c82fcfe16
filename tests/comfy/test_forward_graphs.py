"""The forward form in a real server: any sampler trains, and standard nodes show the gain."""

import json
import re

import pytest

from chunk_grpo_core.configfile.record import read_record, read_settings

from . import graphs
from .graphs import MODEL, find, node, sampling, shown_text

TRAIN = "ChunkGRPO_TrainLoRA"
PICTURES, NOISE_SEED = 2, 20_000


def training(comfy, sampler, **inputs):
    """Return a small training of the tiny FLUX that learns."""
    sizes = {"iterations": 6, "prompts_per_iteration": 4, "group_size": 12, "rank": 16}
    sizes |= {"learning_rate": 2e-3, "pictures_per_held_out": PICTURES}
    prompt = graphs.change(
        graphs.training(**{**sizes, **inputs}), "ChunkGRPO_PromptSet", held_out=6
    )
    return graphs.forward(prompt, comfy.object_info(), sampler, kl_ref=0.3)


def mean(values):
    return sum(values) / len(values)


@pytest.mark.parametrize("sampler", ["euler", "res_multistep"])
def test_it_learns_with_a_sampler_of_comfyui_and_standard_nodes_show_the_gain(
    sampler, comfy, comfy_server
):
    name = f"forward_{sampler}"
    prompt = training(comfy, sampler, run_name=name)
    train = find(prompt, TRAIN)
    log = [train, 2]
    prompt["save"] = node(
        "ChunkGRPO_SaveLoRA", lora=[train, 0], log=log, name=name, for_diffusers=False
    )
    prompt["plot"] = node("ChunkGRPO_PlotTraining", log=log, dark=False)
    prompt["shown"] = node("PreviewImage", images=["plot", 0])
    run = comfy.run(prompt, 400)
    folder = comfy_server.output / "chunk_grpo" / name
    settings, record = read_settings(folder), read_record(folder)
    assert (settings.algorithm, settings.plan, settings.grid.steps) == ("forward", None, 5)
    assert record.sampler == sampler and f"Sampler: {sampler}." in shown_text(run, train)
    measured = json.loads((folder / "evaluation.json").read_text())
    rewards = {
        side: [mean(row) for row in measured[side]["rewards"]] for side in ("before", "after")
    }
    gain = mean(rewards["after"]) - mean(rewards["before"])
    print(sampler, "gain", gain, "from", mean(rewards["before"]))
    assert gain > 0.02

    shows = graphs.change(graphs.base_nodes(), "ChunkGRPO_ShiftedSigmas", steps=5)
    file = shown_text(run, "save").partition(f"{comfy_server.loras}/")[2]
    shows["lora"] = node("LoraLoaderModelOnly", model=MODEL, lora_name=file, strength_model=1.0)
    for side, model in (("before", MODEL), ("after", ["lora", 0])):
        for index, caption in enumerate(measured["before"]["prompts"]):
            key = f"{side}{index}"
            shows |= sampling(key, model, caption, NOISE_SEED + index, PICTURES, sampler)
            pictures = [f"{key}.images", 0]
            shows[key] = node(
                "ChunkGRPO_ScoreImages", reward=["10", 0], images=pictures, prompt=caption
            )
    drawn = comfy.run(shows, 300)
    for side, wanted in rewards.items():
        for index, value in enumerate(wanted):
            lines = shown_text(drawn, f"{side}{index}").splitlines()
            got = mean([float(line.split("\t")[1]) for line in lines])
            assert got == pytest.approx(value, abs=2e-3), (side, index)


def test_evaluate_lora_draws_with_the_sampler_that_is_connected(comfy, comfy_server):
    sizes = {"iterations": 1, "prompts_per_iteration": 2, "group_size": 4}
    prompt = training(comfy, "er_sde", run_name="er_sde", **sizes)
    train = find(prompt, TRAIN)
    links = {"model": MODEL, "vae": ["1", 2], "prompts": ["2", 0], "reward": ["10", 0]}
    links |= {"sigmas": ["4", 0], "latent": ["5", 0], "lora": [train, 0], "sampler": ["ks", 0]}
    widgets = {"pictures_per_prompt": PICTURES, "noise_seed": NOISE_SEED, "batch_size": 1}
    prompt["evaluate"] = node("ChunkGRPO_EvaluateLoRA", dark=False, **links, **widgets)
    run = comfy.run(prompt, 300)
    folder = comfy_server.output / "chunk_grpo" / "er_sde"
    measured = json.loads((folder / "evaluation.json").read_text())
    (means_of_sides,) = re.findall(
        r"tiny_world: .*\n.*\n  - base (.*), LoRA (.*)\n", shown_text(run, "evaluate")
    )
    for shown, side in zip(means_of_sides, ("before", "after"), strict=True):
        assert float(shown) == pytest.approx(mean(means(measured[side]["rewards"])), abs=1e-3)


def means(rows):
    return [mean(row) for row in rows]


def refusal(comfy, prompt):
    run = comfy.run(prompt, 200, check=False)
    assert not run.ok
    return run.error.partition("\n")[0]


def test_what_does_not_belong_together_is_named(comfy, comfy_server):
    small = {"iterations": 1, "prompts_per_iteration": 2, "group_size": 4}
    prompt = training(comfy, "er_sde", run_name="named", **small)
    comfy.run(prompt, 300)
    train = find(prompt, TRAIN)
    other = graphs.change(prompt, "KSamplerSelect", sampler_name="lcm")
    other = graphs.change(other, TRAIN, resume=True, iterations=2)
    message = refusal(comfy, other)
    assert 'sampler = "lcm"' in message and '"er_sde"' in message
    on = graphs.change(prompt, TRAIN, resume=True, iterations=2)
    comfy.run(on, 300)
    assert (
        len((comfy_server.output / "chunk_grpo/named/metrics.jsonl").read_text().splitlines()) == 2
    )

    chunks = graphs.training(run_name="never")
    chunks["ks"] = node("KSamplerSelect", sampler_name="dpmpp_2m")
    with_plan = graphs.change(prompt, TRAIN, plan=["plan", 0], run_name="never")
    with_plan["plan"] = node(
        "ChunkGRPO_PlanChunks", chunk_sizes="step", weights="uniform", dark=False
    )
    foreign = graphs.change(chunks, TRAIN, sampler=["ks", 0])
    no_plan = graphs.change(chunks, TRAIN)
    del no_plan[find(no_plan, TRAIN)]["inputs"]["plan"]
    cfg_pp = graphs.change(prompt, "KSamplerSelect", sampler_name="euler_cfg_pp")
    for wrong, words in (
        (with_plan, ["plan is connected", "take the link off"]),
        (foreign, ["sample_dpmpp_2m", "Forward Objective"]),
        (no_plan, ["plan is not connected", "Forward Objective"]),
        (graphs.change(cfg_pp, TRAIN, run_name="never"), ["euler_cfg_pp", "cfg is 1"]),
    ):
        message = refusal(comfy, wrong)
        assert [word for word in words if word not in message] == [], message
    assert train and not (comfy_server.output / "chunk_grpo/never").exists()
