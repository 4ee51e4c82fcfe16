"""The two loops that ``iteration.py`` compares: the trainer and the authors' loop, each watched.

Both train the tiny FLUX from the same weights with the same prompts, noise, chunks and settings.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from chunk_grpo_core.lora.adapter import PeftAdapter
from chunk_grpo_core.method import streaming
from chunk_grpo_core.method.objective import group_loss
from chunk_grpo_core.models.flux.config import FluxModel
from chunk_grpo_core.models.flux.policy import FluxPolicy
from chunk_grpo_core.models.speed import speed_up
from chunk_grpo_core.models.tiny.model import LATENT_SHAPE, load_tiny_flux
from chunk_grpo_core.models.tiny.policy import tiny_policy
from chunk_grpo_core.models.tiny.world import TRAIN, caption
from chunk_grpo_core.presets import preset_config
from chunk_grpo_core.prompts.example import Prompt
from chunk_grpo_core.rewards import load_reward
from chunk_grpo_core.train.config import TrainConfig
from chunk_grpo_core.train.events import Event, IterationEnd
from chunk_grpo_core.train.trainer import Trainer

from .reference_loop import ReferenceLoop

__all__ = ["GROUP", "PROMPTS", "Ours", "Passes", "Theirs", "compare", "config_of"]

PROMPTS, GROUP = 2, 12
BUDGET = 0.9
"""``activation_budget`` of compiled blocks, which take a little more memory for themselves."""
TEXTS = tuple(caption(scene) for scene in TRAIN[:6])


def config_of(**changes: Any) -> TrainConfig:
    """The settings of both loops."""
    values: dict[str, Any] = {
        "prompts_per_iteration": PROMPTS,
        "iterations": 1000,
        "self_test": False,
        "update_batch_size": 7,
        "lora.rank": 16,
        "lora.alpha": 32.0,
    }
    return preset_config("gcpo-script", **{**values, **changes})


@dataclass
class Passes:
    """Calls of the network and samples in them."""

    calls: int = 0
    forward: int = 0
    backward: int = 0

    def count(self, rows: int) -> None:
        """One call."""
        self.calls += 1
        self.forward += rows
        self.backward += rows * torch.is_grad_enabled()


class Ours:
    """The trainer, one iteration at a time. As a context, it stops watching at the end."""

    def __init__(self, config: TrainConfig, *, is_compiled: bool = False) -> None:
        self.policy = tiny_policy(config.lora)
        _speed_up(self.policy.transformer, is_compiled)
        self.losses: list[float] = []
        self.gradients: list[Tensor] = []
        self.scores: list[float] = []
        self.passes = Passes()
        self._trainer = Trainer(
            self.policy, load_reward("target_colour"), TEXTS, config, listener=self._listen
        )
        self._watch()

    def __enter__(self) -> Ours:
        return self

    def __exit__(self, *error: object) -> None:
        streaming.chunk_statistics = self._statistics

    @property
    def weights(self) -> list[Tensor]:
        """Of the base, which memory does not count."""
        return list(self.policy.transformer.parameters())

    def adapter(self) -> Tensor:
        """The adapter as one vector."""
        return torch.cat([p.detach().flatten() for p in self.policy.adapter.parameters()])

    def state_dict(self) -> dict[str, Tensor]:
        """The adapter by names."""
        return self.policy.adapter.state_dict()

    def start_from(self, adapter: dict[str, Tensor]) -> None:
        """Set the adapter, of which the trainer has taken in the same gradients so far."""
        self.policy.adapter.load_state_dict(adapter)

    def iterate(self) -> None:
        """One iteration."""
        self._trainer._iterate()

    def _listen(self, event: Event) -> None:
        if isinstance(event, IterationEnd):
            self.scores.append(event.metrics["reward_mean"])  # type: ignore[arg-type]

    def _watch(self) -> None:
        optimizer, step = self._trainer._optimizer, self._trainer._optimizer.step
        velocity = self.policy._velocity
        self._statistics = statistics = streaming.chunk_statistics

        def watched_step(update: int) -> float:
            self.gradients.append(_flat(self.policy.adapter.parameters()))
            return step(update)

        def watched_velocity(x_t: Tensor, t: Any, example: Prompt) -> Tensor:
            self.passes.count(len(x_t))
            return velocity(x_t, t, example)

        def watched_statistics(
            terms: Any, group_facts: Any, counted: Any, config: Any, dimensions: int
        ) -> Any:
            self.losses.append(float(group_loss(terms, group_facts, config)))
            return statistics(terms, group_facts, counted, config, dimensions)

        optimizer.step = watched_step  # type: ignore[method-assign]
        self.policy._velocity = watched_velocity  # type: ignore[method-assign]
        streaming.chunk_statistics = watched_statistics


class Theirs:
    """The reference loop, one iteration at a time."""

    def __init__(self, config: TrainConfig, *, is_compiled: bool = False) -> None:
        flux = load_tiny_flux()
        self.gradients: list[Tensor] = []
        self.scores: list[float] = []
        self.passes = Passes()
        self.peft = PeftAdapter(flux.transformer, config.lora, 0)
        self.weights = list(flux.transformer.parameters())
        _speed_up(flux.transformer, is_compiled)
        self._loop = ReferenceLoop(
            transformer=flux.transformer.eval(),
            adapter=self.peft,
            encode=lambda text: flux.text.encode([text]),
            decode=flux.codec.decode,
            latent_shape=LATENT_SHAPE,
            reward=load_reward("target_colour"),
            prompts=TEXTS,
            config=config,
            on_gradient=lambda: self.gradients.append(_flat(self.peft.parameters())),
            on_call=self.passes.count,
            on_scores=lambda scores: self.scores.append(float(scores.mean())),
        )
        self._iteration = 0

    @property
    def losses(self) -> list[float]:
        """Of each update."""
        return self._loop.losses

    @property
    def clipped(self) -> float:
        """Share of the ratios that the clip took out of the gradient."""
        return self._loop.clipped / max(self._loop.ratios, 1)

    def adapter(self) -> Tensor:
        """The adapter as one vector."""
        return torch.cat([p.detach().flatten() for p in self.peft.parameters()])

    def state_dict(self) -> dict[str, Tensor]:
        """The adapter by names."""
        return self.peft.state_dict()

    def start_from(self, adapter: dict[str, Tensor]) -> None:
        """Set the adapter."""
        self.peft.load_state_dict(adapter)

    def iterate(self) -> None:
        """One iteration."""
        self._loop.iterate(self._iteration)
        self._iteration += 1


def _speed_up(transformer: Any, is_compiled: bool) -> None:
    budget = BUDGET if is_compiled else 1.0
    model = FluxModel(compile=is_compiled, activation_budget=budget, gradient_checkpointing=False)
    speed_up(transformer, model, FluxPolicy.blocks)


def _flat(parameters: list[torch.nn.Parameter]) -> Tensor:
    """All gradients as one vector."""
    return torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])


def compare(ours: Ours | Theirs, theirs: Ours | Theirs) -> dict[str, float]:
    """Largest differences so far, of gradients relative to their length; of the adapter now."""
    pairs = zip(ours.gradients, theirs.gradients, strict=True)
    losses = zip(ours.losses, theirs.losses, strict=True)
    scores = zip(ours.scores, theirs.scores, strict=True)
    return {
        "gradient": max(float((a - b).norm() / b.norm()) for a, b in pairs),
        "loss": max(abs(a - b) for a, b in losses),
        "reward_mean": max(abs(a - b) for a, b in scores),
        "adapter": float((ours.adapter() - theirs.adapter()).abs().max()),
    }
