"""Judged pictures of the toy model, and settings that train on them."""

from __future__ import annotations

import torch
from fakes import ToyPolicy, toy_config

from chunk_grpo_core.method.objective import ObjectiveConfig
from chunk_grpo_core.method.preference import PreferenceConfig
from chunk_grpo_core.method.rules import SdeConfig
from chunk_grpo_core.prompts.judged import Judged, StartingNoise
from chunk_grpo_core.train.config import OptimizerConfig

TEXTS = ("warm", "cold", "bright", "dark")
SHAPE = ToyPolicy.latent_shape


def config_of(kind="dpo", **changes):
    settings = {
        "algorithm": "preference",
        "plan": None,
        "objective": ObjectiveConfig(),
        "chunk_fraction": 0.5,
        "sde": SdeConfig(),
        "share_initial_noise": True,
        "preference": PreferenceConfig(objective=kind, beta=200.0, noise="stored"),
        "group_size": 2,
        "prompts_per_iteration": 4,
        "iterations": 5,
        "optimizer": OptimizerConfig(learning_rate=1e-2, updates_per_rollout=1),
    }
    return toy_config(**(settings | changes))


def name(number):
    return f"{number:064x}"


def world(bright=1.0):
    """Pairs of latents, of which the brighter one is preferred."""
    generator = torch.Generator().manual_seed(0)
    latents = {name(i): 0.5 * torch.randn(SHAPE, generator=generator) for i in range(16)}
    examples = []
    for pair in range(8):
        better, worse = name(2 * pair), name(2 * pair + 1)
        latents[better] = latents[better] + bright
        noise = {better: StartingNoise(7, pair)}
        judged = Judged(better=(better,), worse=(worse,), noise=noise)
        examples.append(judged.example(TEXTS[pair % 4]))
    return examples, latents
