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
        ValueError: The kernel does not work here; the message has diffusers' reason.
    """
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
        # Only the blocks: one compilation serves all of a kind, and a second one batches of all
        # sizes, if there is more than one.
        for name in blocks:
            for block in transformer.get_submodule(name):
                block.compile()
