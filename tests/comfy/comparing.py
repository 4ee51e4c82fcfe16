"""A graph that compares two models on held-out captions, and what the server knows of its duels."""

from __future__ import annotations

import itertools

from . import graphs
from .graphs import node

EVALUATE = "ChunkGRPO_EvaluateLoRA"
SEEDS = itertools.count(100)  # an unchanged graph runs nothing


def compared(**more):
    """Four held-out captions, drawn by the tiny FLUX with its weights and with 95 % of them."""
    base = graphs.base_nodes()
    captions = graphs.upstream(graphs.twin(graphs.BY_HAND), "2")
    captions = graphs.change(captions, "ChunkGRPO_PromptSet", held_out=4)
    prompt = {**base, **captions}
    prompt["size"] = node("EmptySD3LatentImage", width=64, height=64, batch_size=1)
    prompt["other"] = node(
        "ModelMergeSubtract", model1=graphs.MODEL, model2=graphs.MODEL, multiplier=0.05
    )
    prompt["compare"] = node(
        EVALUATE, model=graphs.MODEL, vae=graphs.VAE, prompts=["2", 0], reward=["10", 0],
        sigmas=["4", 0], latent=["size", 0], second_model=["other", 0], pictures_per_prompt=2,
        noise_seed=next(SEEDS), batch_size=0, dark=False, cfg=1.0, **more,
    )  # fmt: skip
    return prompt


def duels_of(client, where):
    """What a page sees of the duels that a node has drawn."""
    return client.get(address(where))


def address(where):
    return f"/chunk_grpo/runs/{where['run']}/duels/{where['number']}"
