"""Policies in each precision, and what they have sampled, for the power of the self-test."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from chunk_grpo_core.lora.adapter import LoraConfig
from chunk_grpo_core.method.noise import Noise
from chunk_grpo_core.method.policy import Velocity
from chunk_grpo_core.method.rollout import Trajectory, rollout
from chunk_grpo_core.method.rules import SdeConfig
from chunk_grpo_core.method.schedule import shifted_grid
from chunk_grpo_core.models.flux.policy import FluxPolicy
from chunk_grpo_core.models.fp8 import replace_linears, to_fp8
from chunk_grpo_core.models.tiny.model import LATENT_SHAPE, load_tiny_flux
from chunk_grpo_core.models.tiny.world import TRAIN, caption
from chunk_grpo_core.optional import require

__all__ = ["MODELS", "PRECISIONS", "RANDOM", "TINY", "Run", "load", "start"]

PRECISIONS = ("float32", "bfloat16", "fp8")
STEPS, GROUP, PROMPTS = 17, 4, 4
TRAINED = 0.03
"""Standard deviation of a trained LoRA's factors B."""
TINY, RANDOM = "tiny FLUX", "random FLUX"
MODELS = (TINY, RANDOM)
_RANDOM_SHAPE = (4, 8, 8)


@dataclass(frozen=True)
class Run:
    """A policy and what it has sampled."""

    policy: FluxPolicy
    velocity: Velocity
    groups: list[Trajectory]

    @property
    def layers(self) -> list[tuple[nn.Parameter, nn.Parameter]]:
        """Factors A and B of each layer."""
        tensors = self.policy.adapter.parameters()
        return list(zip(tensors[::2], tensors[1::2], strict=True))


def load(precision: str, is_trained: bool, seed: int, model: str = TINY) -> FluxPolicy:
    """One of the MODELS with a LoRA, in one of the PRECISIONS."""
    policy_of = _tiny(precision) if model == TINY else _random(precision, seed)
    policy = policy_of(lora=LoraConfig(rank=16, alpha=32.0), seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for b in policy.adapter.parameters()[1::2] if is_trained else ():
            b.add_(TRAINED * torch.randn(b.shape, generator=generator))
    return policy


def _tiny(precision: str) -> Callable[..., FluxPolicy]:
    flux = load_tiny_flux()
    _narrow(flux.transformer, precision)
    return partial(
        FluxPolicy,
        name="tiny-flux",
        transformer=flux.transformer,
        encode=lambda text: flux.text.encode([text]),
        decode=flux.codec.decode,
        latent_shape=LATENT_SHAPE,
    )


def _random(precision: str, seed: int) -> Callable[..., FluxPolicy]:
    """Of diffusers' class with random weights and with guidance, two blocks of each kind."""
    diffusers = require("diffusers", "To build FLUX")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        transformer = diffusers.FluxTransformer2DModel(
            in_channels=16,
            num_layers=2,
            num_single_layers=2,
            attention_head_dim=32,
            num_attention_heads=2,
            joint_attention_dim=24,
            pooled_projection_dim=16,
            guidance_embeds=True,
            axes_dims_rope=(8, 12, 12),
        ).eval()
    _narrow(transformer, precision)

    def encode(text: str) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(sum(map(ord, text)))
        features = torch.randn(1, 8, 24, generator=generator)
        return features, torch.randn(1, 16, generator=generator)

    return partial(
        FluxPolicy,
        name="random-flux",
        guidance=3.5,
        transformer=transformer,
        encode=encode,
        decode=lambda x_0: torch.sigmoid(x_0[:, :3]).permute(0, 2, 3, 1),
        latent_shape=_RANDOM_SHAPE,
    )


def _narrow(transformer: nn.Module, precision: str) -> None:
    if precision != "float32":
        transformer.bfloat16()
    if precision == "fp8":
        linears = {n: m for n, m in transformer.named_modules() if isinstance(m, nn.Linear)}
        for name in replace_linears(transformer, lambda n: "blocks" in n and "norm" not in n):
            narrow, wide = transformer.get_submodule(name), linears[name]
            weight, scale = to_fp8(wide.weight)
            narrow.weight = nn.Parameter(weight, requires_grad=False)
            narrow.scale_weight, narrow.bias = scale, wide.bias


def start(
    precision: str,
    is_trained: bool,
    seed: int,
    work: Callable[[Run], object],
    *,
    model: str = TINY,
) -> None:
    """Sample, and call ``work`` with the result."""
    policy = load(precision, is_trained, seed, model)

    def phase(velocity: Velocity) -> None:
        groups = [
            rollout(
                velocity,
                caption(TRAIN[(PROMPTS * seed + number) % len(TRAIN)]),
                shifted_grid(STEPS, 3.0),
                SdeConfig(),
                Noise(True, 100 * seed + number, GROUP),
                policy.latent_shape,
            )
            for number in range(PROMPTS)
        ]
        work(Run(policy, velocity, groups))

    policy.run(phase)
