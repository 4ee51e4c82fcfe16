"""Which attention kernels PyTorch may choose from while a model is trained.

cuDNN's, which PyTorch prefers on Hopper cards from 2.11 on, cannot be trusted: where the gradient
that comes back is a part of a larger tensor, as behind the concatenation in FLUX.1's single blocks,
its backward pass takes the wrong numbers. On an H100 (PyTorch 2.11.0, cuDNN 9.19) the gradients had
nothing to do with the right ones, were NaN, or the process ended with an illegal memory access.
Others found NaN in other models (github.com/pytorch/pytorch/issues/196678). So PyTorch takes its
next choice, which is FlashAttention. Rollouts take it too: old and new log-densities must come from
the same kernel.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["ATTENTION", "without_cudnn_attention"]

ATTENTION = {
    "native": "native",
    "native-flash": "_native_flash",
    "native-efficient": "_native_efficient",
    "native-math": "_native_math",
    "flash": "flash",
    "flash-3": "_flash_3",
    "xformers": "xformers",
}
"""Values of ``model.attention`` -> diffusers' names. All have a backward pass; kernels that have
none (sage), or would be downloaded, are left out, and so is cuDNN's."""


@contextmanager
def without_cudnn_attention() -> Iterator[None]:
    """Inside, PyTorch does not choose cuDNN's kernel.

    Checkpointed blocks are computed again in ``backward()``, so that must be inside, too.
    """
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)
