"""What Train LoRA trains, as its sockets say: policy, reward, and the algorithm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ...chunk_grpo_core.algorithms import algorithm_of
from ...chunk_grpo_core.algorithms.algorithm import Algorithm
from ...chunk_grpo_core.algorithms.forward import Forward
from ...chunk_grpo_core.algorithms.preference import Preference
from ...chunk_grpo_core.method.policy import trained_adapter
from ...chunk_grpo_core.method.reward import NoReward, Reward
from ...chunk_grpo_core.prompts.example import Example
from ...chunk_grpo_core.runs.held_out import check_needless
from ...chunk_grpo_core.runs.preferences import judged_latents
from ...chunk_grpo_core.settings.blaming import blaming
from ...chunk_grpo_core.train.batch_limit import BatchLimit
from ...chunk_grpo_core.train.config import TrainConfig
from ..types import PromptSet
from .any_sampler import AnySampler
from .conditioning import Conditioning
from .host import check_interrupt
from .latents import latent_shape_of
from .memory import batch_limit
from .own_defaults import empty_latent
from .picked_prompts import check_judged
from .policy import NativePolicy
from .side_branches import start_state
from .taste_heads import named_taste

__all__ = ["Trainee", "trainee_of"]


@dataclass(frozen=True)
class Trainee:
    """A borrowed MODEL with a LoRA, and what trains it."""

    policy: NativePolicy
    reward: Reward
    limit: BatchLimit
    sampler: AnySampler | None
    """Makes the rollouts of the algorithm ``forward``, if it is not the library's walk."""

    def algorithm(self, config: TrainConfig, prompts: Sequence[Example]) -> Algorithm[Any, Any]:
        """How settings train on prompts; the pictures of judged ones are encoded."""
        if config.algorithm == "preference":
            taste = named_taste(config.preference.picks)
            return Preference(config, judged_latents(taste, self.policy, prompts, check_interrupt))
        return Forward(config, self.sampler) if self.sampler else algorithm_of(config)


def trainee_of(
    *,
    model: Any,
    vae: Any,
    prompts: PromptSet,
    reward: Reward | None,
    latent: Mapping[str, Any] | None,
    config: TrainConfig,
    continue_from: dict[str, Tensor] | None = None,
    negative: Conditioning | None = None,
    cfg: float = 1.0,
    activation_offloading: bool = False,
    sampler: Any = None,
) -> Trainee:
    """Put a fresh LoRA beside a MODEL, or that of ``continue_from``; nothing is loaded.

    Raises:
        ValueError: Something does not fit.
    """
    limit, reward = batch_limit(config.batch_size), reward or NoReward()
    check_needless(reward, config)
    if config.algorithm == "preference":
        check_judged(prompts)
    policy = NativePolicy(
        model,
        vae,
        prompts.conditioning,
        latent_shape_of(model, empty_latent(model, vae) if latent is None else latent),
        config.lora,
        config.seed,
        negative=negative,
        cfg=cfg,
        batch=config.batch_size or config.group_size,
        limit=limit,
        activation_offloading=activation_offloading,
        sigmas=config.grid.sigmas,
    )
    handed = None if sampler is None else AnySampler(sampler, policy, limit)
    if continue_from is not None:
        adapter = trained_adapter(policy)
        with blaming("continue_from"):
            state = start_state(model, continue_from, adapter.state_dict(), config.lora.scale)
        adapter.load_state_dict(state)
    return Trainee(policy, reward, limit, handed)
