"""Worlds, policies and rewards small enough to test with; nothing here imitates our own code.

Legend: B samples, G group size, N steps, ``*latent`` latent shape.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from chunk_grpo_core.method.advantage import AdvantageConfig
from chunk_grpo_core.method.cancel import Cancelled
from chunk_grpo_core.method.chunks import ChunkPlan
from chunk_grpo_core.method.dynamics import DynamicsCurve
from chunk_grpo_core.method.noise import derive_seed
from chunk_grpo_core.method.objective import ObjectiveConfig
from chunk_grpo_core.method.reward import Fingerprint, RewardBatch, RewardFailed
from chunk_grpo_core.method.schedule import shifted_grid
from chunk_grpo_core.prompts.example import Example, Prompt
from chunk_grpo_core.train.config import OptimizerConfig, RunSettings, TrainConfig

PROMPTS = ("warm", "cold", "bright", "dark", "plain")


@dataclass(frozen=True)
class GaussianWorld:
    """Data N(mean, std^2 I): every marginal and the velocity E[eps - x_0 | x_t] are known."""

    mean: float = 0.8
    std: float = 0.5

    def mean_at(self, t: float) -> float:
        """Mean of x_t = (1 - t) x_0 + t eps."""
        return (1.0 - t) * self.mean

    def variance_at(self, t: float) -> float:
        """Variance of x_t."""
        return (1.0 - t) ** 2 * self.std**2 + t**2

    def velocity(self, x_t: Tensor, t: float, example: Prompt = "") -> Tensor:
        """Regress eps - x_0 on x_t: the mean of eps - x_0 plus covariance over variance."""
        slope = (t - (1.0 - t) * self.std**2) / self.variance_at(t)
        return -self.mean + slope * (x_t - self.mean_at(t))


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """Multiply as ``x @ weight.T``, each row alone: a matrix kernel's last bits depend on B."""
    return (x[:, None, :] * weight).sum(2)


class ToyAdapter:
    """Low-rank factors beside two frozen linear layers."""

    def __init__(self, sizes: dict[str, tuple[int, int]], rank: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.factors = {}
        for name, (inputs, outputs) in sizes.items():
            a = torch.randn(rank, inputs, generator=generator) * inputs**-0.5
            self.factors[f"{name}.lora_A.weight"] = nn.Parameter(a)
            self.factors[f"{name}.lora_B.weight"] = nn.Parameter(torch.zeros(outputs, rank))
        self.is_on = True

    def delta(self, name: str, x: Tensor) -> Tensor | float:
        """The adapter's share of a layer's output."""
        if not self.is_on:
            return 0.0
        a, b = (self.factors[f"{name}.lora_{side}.weight"] for side in "AB")
        return linear(linear(x, a), b)

    def parameters(self) -> list[nn.Parameter]:
        return list(self.factors.values())

    @contextmanager
    def disabled(self) -> Iterator[None]:
        before, self.is_on = self.is_on, False
        try:
            yield
        finally:
            self.is_on = before

    def state_dict(self) -> dict[str, Tensor]:
        return {name: factor.detach().clone() for name, factor in self.factors.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, factor in self.factors.items():
                factor.copy_(state[name])


class ToyPolicy:
    """A Gaussian world bent by a small frozen MLP that an adapter steers."""

    name = "toy"
    latent_shape = (4, 4, 4)
    device = torch.device("cpu")
    mixes_times = False
    is_compiled = False
    hidden = 32

    def __init__(self, seed: int = 0, rank: int = 4) -> None:
        generator = torch.Generator().manual_seed(seed)
        size = math.prod(self.latent_shape)
        sizes = {"enter": (size + 2, self.hidden), "leave": (self.hidden, size)}
        self.weights = {
            name: torch.randn(outputs, inputs, generator=generator) * inputs**-0.5
            for name, (inputs, outputs) in sizes.items()
        }
        self.world = GaussianWorld(mean=0.0, std=0.5)
        self.adapter = ToyAdapter(sizes, rank, seed + 1)
        self.calls: list[int] = []
        """Batch size of every call of the model."""

    def run(self, work: Callable) -> Any:
        return work(self.velocity)

    def velocity(self, x_t: Tensor, t: float, example: Prompt) -> Tensor:
        self.calls.append(len(x_t))
        caption = derive_seed(Example.of(example).text) % 1000 / 1000.0
        facts = torch.tensor([t, caption]).expand(len(x_t), 2)
        x = torch.cat([x_t.flatten(1), facts], 1)
        x = torch.tanh(self._layer("enter", x))
        bend = self._layer("leave", x).view_as(x_t)
        return self.world.velocity(x_t, t) + 0.3 * bend

    def _layer(self, name: str, x: Tensor) -> Tensor:
        return linear(x, self.weights[name]) + self.adapter.delta(name, x)

    def decode(self, x_0: Tensor) -> Tensor:
        return torch.sigmoid(x_0[:, :3]).permute(0, 2, 3, 1).contiguous()


class MixingPolicy(ToyPolicy):
    """A toy policy that takes a time for each sample."""

    mixes_times = True

    def velocity(self, x_t: Tensor, t: Any, example: Prompt) -> Tensor:
        if not isinstance(t, Tensor):
            return super().velocity(x_t, t, example)
        before = list(self.calls)
        rows = [
            super(MixingPolicy, self).velocity(x, float(time), example)
            for x, time in zip(x_t.split(1), t, strict=True)
        ]
        self.calls = [*before, len(x_t)]
        return torch.cat(rows)


class Brightness:
    """Mean of all pixels, and their spread as a further number."""

    name = "brightness"
    fingerprint: Fingerprint = {}

    def score(self, images: Tensor, examples: Sequence[Prompt]) -> RewardBatch:
        return RewardBatch.of(images.mean((1, 2, 3)), spread=images.std((1, 2, 3)))


@dataclass
class Broken:
    """Brightness, but some samples of every group get a value that is no score."""

    samples: Sequence[int]
    value: float = math.nan
    name: str = field(default="broken")
    fingerprint: Fingerprint = field(default_factory=dict)

    def score(self, images: Tensor, examples: Sequence[Prompt]) -> RewardBatch:
        values = images.mean((1, 2, 3))
        if len(values) > 1:  # one picture alone is none of a group
            values[list(self.samples)] = self.value
        # Claims that all is well: the trainer has to look for itself.
        return RewardBatch(values, torch.ones(len(values), dtype=torch.bool))


@dataclass
class FailsAfter(Brightness):
    """Brightness that is scored so many times, then no more."""

    calls: int
    error: str | None = "no answer from the server"
    """What it raises; None gives scores that are not finite."""

    def score(self, images: Tensor, examples: Sequence[Prompt]) -> RewardBatch:
        self.calls -= 1
        if self.calls >= 0:
            return super().score(images, examples)
        if self.error is not None:
            raise RewardFailed(self.error)
        return RewardBatch.of(torch.full((len(images),), math.nan))


class CancelAfter:
    """A cancel check that raises at its n-th call."""

    def __init__(self, calls: int) -> None:
        self.left = calls

    def __call__(self) -> None:
        self.left -= 1
        if self.left <= 0:
            raise Cancelled


def toy_config(**changes: Any) -> TrainConfig:
    """Settings that train :class:`ToyPolicy` in a second or two."""
    settings: dict[str, Any] = {
        "grid": shifted_grid(6, 2.0),
        "plan": ChunkPlan((1, 2, 2)),
        "chunk_fraction": 0.67,  # 2 of the 3
        "advantage": AdvantageConfig(),
        "objective": ObjectiveConfig(clip_low=1e-3, clip_high=1e-3),
        "optimizer": OptimizerConfig(learning_rate=5e-2),
        "iterations": 20,
        "prompts_per_iteration": 2,
        "group_size": 8,
        "checkpoint_every": 3,
        "seed": 7,
        "run": RunSettings(reward_retries=2, reward_wait=0.0),
    }
    return TrainConfig(**{**settings, **changes})


def curve_of(*changes: float, **settings: Any) -> DynamicsCurve:
    """A curve of the given trainable steps; the untrained last one is added."""
    mean = (*changes, 9.0)
    facts: dict[str, Any] = {
        "mean": mean,
        "std": (0.0,) * len(mean),
        "prompts": 1,
        "samples": 1,
        "sigmas": shifted_grid(len(mean)).sigmas,
        "rule": "flow",
        "eta": 0.7,
        "model": "toy",
    }
    return DynamicsCurve(**{**facts, **settings})
