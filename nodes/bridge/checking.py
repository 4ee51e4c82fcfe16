"""Try a little of a training on a native MODEL, and say what the whole of it will take."""

from __future__ import annotations

from typing import Any

import torch

from ...chunk_grpo_core.runs.check import check_training
from ...chunk_grpo_core.runs.forecast import Check
from ...chunk_grpo_core.train.config import TrainConfig
from ...chunk_grpo_core.train.events import Event
from ..types import PromptSet
from .host import check_interrupt
from .trainee import trainee_of
from .training import Progress

__all__ = ["check_lora"]


def check_lora(
    *, prompts: PromptSet, config: TrainConfig, evaluation_seeds: int, **sockets: Any
) -> Check:
    """Try it; the MODEL and the disk are as before in the end.

    Args:
        prompts: See :func:`~.training.train_lora`.
        config: See there.
        evaluation_seeds: See there.
        sockets: What else :func:`~.trainee.trainee_of` takes.

    Raises:
        ValueError: Something does not fit.
        InterruptProcessingException: The user pressed Cancel.
        NothingScored: The reward scored no picture.
        SelfTestFailed: The training would stop before its first update.
    """
    progress = Progress(1, sockets["model"].get_model_object("latent_format"))

    def listen(event: Event) -> None:
        if getattr(event, "iteration", 0) == 0:  # further ones only make the forecast better
            progress(event)

    with torch.inference_mode(False):
        trainee = trainee_of(prompts=prompts, config=config, **sockets)
        trainee.policy.on_denoised = progress.on_denoised
        return check_training(
            trainee.policy,
            trainee.reward,
            prompts.train,
            prompts.held_out,
            config,
            algorithm=lambda small: trainee.algorithm(small, prompts.train),
            evaluation_seeds=evaluation_seeds,
            listener=listen,
            check_cancel=check_interrupt,
            limit=trainee.limit,
        )
