"""What makes a diffusers transformer faster without changing what it computes, up to rounding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .attention import ATTENTION
from .diffusers_model import DiffusersModel

__all__ = ["speed_up"]


def speed_up(transformer: Any, model: DiffusersModel, blocks: Sequence[str]) -> None:
    """Set the attention kernel, checkpointing and compilation that a user chose.

    Args:
        transformer: A model of diffusers, before or after a LoRA is put on it.
        model: The choices.
        blocks: Names of the transformer's lists of blocks.

    Raises:
        ValueError: The kernel does not work here; the message has diffusers' reason. Or activations
            have a budget, and nothing is compiled that could keep it.
    """
    if model.activation_budget < 1.0 and not model.compile:
        raise ValueError(
            f"model.activation_budget is {model.activation_budget:g}, which needs model.compile; "
            "turn compile on, or leave activation_budget at 1"
        )
    if model.attention:
        try:
            transformer.set_attention_backend(ATTENTION[model.attention])
        except (ImportError, RuntimeError, ValueError) as error:
            raise ValueError(
                f"model.attention is {model.attention}, which does not work here: {error}"
            ) from error
    if model.gradient_checkpointing:
        transformer.enable_gradient_checkpointing()
    if model.compile:
        from torch._functorch import config as functorch_config

        # Of the process, as PyTorch has it; it is read when blocks are compiled.
        functorch_config.activation_memory_budget = model.activation_budget
        # Only the blocks: one compilation serves all of a kind, and a second one batches of all
        # sizes, if there is more than one.
        for name in blocks:
            for block in transformer.get_submodule(name):
                block.compile()
