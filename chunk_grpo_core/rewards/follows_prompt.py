"""Does a picture follow its prompt? The model that is trained says so itself, for free.

A flow model knows more than it shows: noise a finished picture, and let the model without its LoRA
find the way back, once with the caption and once with an empty one. The more the caption helps, the
better the picture follows it:

    score = mean over k of e_k(empty) - e_k(caption)
    e_k(c) = mean over latent dimensions of (v(x_t, t_k, c) - (eps_k - x_0))^2

with x_t = (1 - t_k) x_0 + t_k eps_k. It needs no file and no server.

References:
    Your Diffusion Model is Secretly a Zero-Shot Classifier (Li et al., 2023), arXiv 2303.16203v3:
    differences of errors, the same noise for all captions. The levels and the empty caption were
    chosen on the tiny FLUX (``benchmarks.own_judge``).

Legend: B pictures, ``*latent`` the model's own latent shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

import torch
from torch import Tensor

from ..method.noise import derive_seed
from ..method.policy import PictureEncoder, Policy, Velocity, base_model, without_guidance
from ..method.policy_reward import Fit, without_policy
from ..method.reward import Fingerprint, RewardBatch, checked_inputs
from ..prompts.example import Example, Prompt

__all__ = ["EMPTY", "FollowsPrompt"]

EMPTY = Example("")
"""The caption that says nothing; whoever makes a policy gives it conditioning for this one, too."""
_LEVELS = (0.95, 0.9, 0.8, 0.7)
"""Where captions matter: on the tiny FLUX 0.95 alone has a correlation of 0.81 with true adherence
inside groups, 0.7 alone of 0.32, all four together of 0.87."""
_MOST_DRAWS = 64
_NAME = "follows_prompt"


@dataclass(frozen=True)
class FollowsPrompt:
    """See :class:`~chunk_grpo_core.method.reward.Reward`; it scores once it is bound to a policy.

    Noise depends on the caption and on ``seed`` alone: all pictures of a group get the same, in
    every iteration, so that their scores can be compared and a resumed run gives the same ones.
    """

    draws: int = 1
    """Noises at each of the levels 0.95, 0.9, 0.8 and 0.7, 1 to 64; two calls of the model each."""
    seed: int = 0
    """Of the noise."""

    def __post_init__(self) -> None:
        if not 1 <= self.draws <= _MOST_DRAWS:
            raise ValueError(f"draws is {self.draws}; it must be from 1 to {_MOST_DRAWS}")

    needs_policy = True

    @property
    def name(self) -> str:
        """``"follows_prompt"``."""
        return _NAME

    @property
    def fingerprint(self) -> Fingerprint:
        """Scores depend on the model, too; a run records and compares that one itself."""
        return {
            "judge": "the model that is trained, without its LoRA",
            "levels": ", ".join(map(str, _LEVELS)),
            "draws": self.draws,
            "seed": self.seed,
            "version": 1,
        }

    @property
    def units_per_picture(self) -> int:
        """Samples that go through the model for each picture."""
        return 2 * len(_LEVELS) * self.draws

    def bind(self, policy: Policy, fit: Fit) -> ModelJudge:
        """See :class:`~chunk_grpo_core.method.policy_reward.PolicyReward`.

        Raises:
            ValueError: The policy cannot encode pictures.
        """
        if not isinstance(policy, PictureEncoder):
            raise _without_encoder(policy)
        return ModelJudge(self, policy, policy, fit)

    def score(self, images: Tensor, examples: Sequence[Prompt]) -> NoReturn:
        """Refuse: there is no model.

        Raises:
            ValueError: Always.
        """
        raise without_policy(_NAME)


@dataclass(frozen=True)
class ModelJudge:
    """The same reward with a model."""

    reward: FollowsPrompt
    policy: Policy
    encoder: PictureEncoder
    """The policy again."""
    fit: Fit

    needs_policy = False

    @property
    def name(self) -> str:
        """See :class:`~chunk_grpo_core.method.reward.Reward`."""
        return self.reward.name

    @property
    def fingerprint(self) -> Fingerprint:
        """See :class:`~chunk_grpo_core.method.reward.Reward`."""
        return self.reward.fingerprint

    @property
    def units_per_picture(self) -> int:
        """See :class:`FollowsPrompt`."""
        return self.reward.units_per_picture

    def bind(self, policy: Policy, fit: Fit) -> ModelJudge:
        """Stay bound."""
        return self

    @torch.no_grad()
    def score(self, images: Tensor, examples: Sequence[Prompt]) -> RewardBatch:
        """See :class:`~chunk_grpo_core.method.reward.Reward`; one phase of the policy.

        Raises:
            ValueError: Also if the policy was made without an encoder.
        """
        images, examples = checked_inputs(images, examples)
        values = torch.full((len(images),), torch.nan)
        x_0 = [self._encoded(image) for image in images.split(1)]
        if not x_0:
            return RewardBatch.of(values)

        def judge(velocity: Velocity) -> None:
            for caption in dict.fromkeys(examples):
                numbers = [i for i, example in enumerate(examples) if example == caption]
                of_caption = torch.cat([x_0[i] for i in numbers])
                values[numbers] = self._helped(self.fit(velocity), of_caption, caption)

        with base_model(self.policy), without_guidance(self.policy):
            self.policy.run(judge)
        return RewardBatch.of(values)

    def _encoded(self, image: Tensor) -> Tensor:
        """(1, *latent): one picture at a time, so that no other has a part in its last bits."""
        latent = self.encoder.encode(image)
        if latent is None:
            raise _without_encoder(self.policy)
        return latent.detach().to(self.policy.device, torch.float32)

    @torch.no_grad()
    def _helped(self, velocity: Velocity, x_0: Tensor, caption: Example) -> Tensor:
        """How much smaller the error is with the caption, (B,), on the CPU."""
        seed = derive_seed(_NAME, self.reward.seed, caption.text)
        dice = torch.Generator().manual_seed(seed)
        helped = torch.zeros(len(x_0))
        for t in _LEVELS:
            for _ in range(self.reward.draws):
                eps = torch.randn(x_0.shape[1:], generator=dice).to(x_0.device)
                x_t, target = (1.0 - t) * x_0 + t * eps, eps - x_0
                without, with_it = (
                    (velocity(x_t, t, c) - target).square().flatten(1).mean(1).cpu()
                    for c in (EMPTY, caption)
                )
                helped += without - with_it
        return helped / (len(_LEVELS) * self.reward.draws)


def _without_encoder(policy: Policy) -> ValueError:
    return ValueError(
        f"{_NAME} must encode pictures, and {policy.name} has no encoder for them; choose another "
        "reward, such as clipscore"
    )
