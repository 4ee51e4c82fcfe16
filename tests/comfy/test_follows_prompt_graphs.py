"""The model that is trained as the judge of its own pictures, in a real server."""

import json
from statistics import mean

import pytest

from . import graphs
from .client import PromptFailed
from .graphs import MODEL, change, find, node
from .test_architecture_graphs import graph as of_architecture
from .test_forward_graphs import training

TRAIN = "ChunkGRPO_TrainLoRA"


def judged(prompt, taste, balance=0.5):
    """The graph with a balance of a reward and what the model itself says."""
    prompt = {
        **prompt,
        "liked": node("ChunkGRPO_LoadReward", name=taste, colour="#ffffff"),
        "own": node("ChunkGRPO_LoadReward", name="follows_prompt", colour="#ffffff"),
        "both": node(
            "ChunkGRPO_BalanceRewards", taste=["liked", 0], prompt_following=["own", 0],
            balance=balance,
        ),
    }  # fmt: skip
    return change(prompt, TRAIN, reward=["both", 0])


def gains(folder):
    """What the last measurement on held-out prompts says of each reward."""
    rows = [json.loads(line) for line in (folder / "held_out.jsonl").read_text().splitlines()]
    return rows[-1]["rewards"]


def test_the_tiny_flux_learns_what_it_recognises_itself(comfy, comfy_server):
    sizes = {"iterations": 4, "group_size": 8, "run_name": "own_judge"}
    prompt = judged(training(comfy, "euler", **sizes), "brightness", balance=1.0)
    train = find(prompt, TRAIN)
    links = {"model": MODEL, "vae": ["1", 2], "prompts": ["2", 0], "reward": ["own", 0]}
    links |= {"sigmas": ["4", 0], "latent": ["5", 0], "lora": [train, 0], "sampler": ["ks", 0]}
    widgets = {"pictures_per_prompt": 2, "noise_seed": 20_000, "batch_size": 0}
    prompt["evaluate"] = node("ChunkGRPO_EvaluateLoRA", dark=False, **links, **widgets)
    run = comfy.run(prompt, 1000)
    folder = comfy_server.output / "chunk_grpo" / "own_judge"
    told = gains(folder)
    print(told)
    assert told["follows_prompt"]["gain"] > 0
    # The LoRA's pictures are judged by the base model in both places.
    summary = run.outputs["evaluate"]["chunk_grpo_gain"][0]
    assert summary["gain"] == pytest.approx(told["follows_prompt"]["gain"], abs=1e-3)
    before = json.loads((folder / "evaluation.json").read_text())["before"]["extras"]
    assert mean(mean(row) for row in before["follows_prompt"]) > 0.05
    assert "the model that is trained, without its LoRA" in (folder / "run.toml").read_text()


@pytest.mark.parametrize(("name", "cfg"), [("z_image", 1.0), ("sd3", 3.0)])
def test_other_architectures_judge_themselves_too_with_and_without_guidance(
    name, cfg, comfy, comfy_server
):
    sizes = {"iterations": 1, "prompts_per_iteration": 2, "group_size": 4, "cfg": cfg}
    prompt = judged(of_architecture(name, run_name=f"own_{name}", **sizes), "target_colour")
    if cfg > 1:
        prompt["negative"] = node("CLIPTextEncode", clip=["tiny", 1], text="ugly")
        prompt = change(prompt, TRAIN, negative=["negative", 0])
    comfy.run(prompt, 200)
    folder = comfy_server.output / "chunk_grpo" / f"own_{name}"
    row = graphs.read_lines(folder / "metrics.jsonl")[0]["rewards"]["follows_prompt"]
    assert row["masked"] == 0 and row["std"] > 0
    resumed = change(prompt, TRAIN, iterations=2, resume=True)
    comfy.run(resumed, 200)
    assert len(graphs.read_lines(folder / "metrics.jsonl")) == 2


def test_score_images_says_that_there_is_no_model(comfy):
    prompt = {
        "own": node("ChunkGRPO_LoadReward", name="follows_prompt", colour="#ffffff"),
        "picture": node("EmptyImage", width=64, height=64, batch_size=1, color=0),
        "score": node(
            "ChunkGRPO_ScoreImages", reward=["own", 0], images=["picture", 0], prompt="a"
        ),
    }
    with pytest.raises(PromptFailed, match="asks the model that is trained, and there is none"):
        comfy.run(prompt, 60)


def test_draws_out_of_range_are_refused_by_name(comfy):
    prompt = judged(training(comfy, "euler", run_name="never"), "brightness")
    prompt["own"]["inputs"]["settings"] = "draws=0"
    run = comfy.run(prompt, 60, check=False)
    assert "draws is 0; it must be from 1 to 64" in run.error
