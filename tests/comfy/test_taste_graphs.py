"""A taste in a real server: picks, Fit Taste, a training on it, and what its owner really likes."""

import shutil

from . import graphs
from .graphs import change, find, node, shown_text, twin, upstream

TRAIN, EVALUATE = "ChunkGRPO_TrainLoRA", "ChunkGRPO_EvaluateLoRA"


def taught(**training):
    """Return the template, small, but with a training that learns; up to the comparison."""
    prompt = upstream(twin(graphs.TASTE), find(twin(graphs.TASTE), EVALUATE))
    prompt = change(prompt, "ChunkGRPO_PromptSet", held_out=6)
    sizes = {"iterations": 8, "prompts_per_iteration": 4, "group_size": 12, "rank": 16}
    sizes |= {"learning_rate": 2e-3, "pictures_per_held_out": 1, "run_name": "taught"}
    prompt = change(prompt, TRAIN, **{**sizes, **training})
    prompt = change(prompt, "ChunkGRPO_BalanceRewards", balance=0.0)
    return change(prompt, EVALUATE, pictures_per_prompt=2)


def test_training_on_a_fitted_taste_raises_what_its_owner_likes(comfy, comfy_server):
    shutil.rmtree(comfy_server.output / "chunk_grpo" / "taste" / "example", ignore_errors=True)
    prompt = taught()
    run = comfy.run(prompt, 400)
    assert "Better than chance" in shown_text(run, find(prompt, "ChunkGRPO_FitTaste"))
    summary = run.outputs[find(prompt, EVALUATE)]["chunk_grpo_gain"][0]
    print(summary)
    assert summary["gain"] > 0.02  # of the reward saturation, on captions nobody picked from
    folder = comfy_server.output / "chunk_grpo"
    assert (folder / "taste" / "example" / "example.safetensors").is_file()
    other = taught(iterations=9, resume=True)
    other = change(other, "ChunkGRPO_FitTaste", encoder="clip_vision")  # another head: statistics
    refused = comfy.run(other, 200, check=False)
    assert not refused.ok and "reward" in refused.error and "taste" in refused.error


def test_too_few_clicks_are_counted_in_the_error(comfy):
    prompt = {"fit": node("ChunkGRPO_FitTaste", taste="example", encoder="tiny", at_least=100,
                          pessimism=0.0, dark=False)}  # fmt: skip
    run = comfy.run(prompt, 100, check=False)
    assert "example has 64 clicks" in run.error and "pick 36 more" in run.error
