"""Keep gradients within the range of float16.

A log-density is a mean over the latent's dimensions, 10^5 of them for a large picture. Its gradient
with respect to the velocity is as much smaller, and vanishes below the 6e-8 of a model that
computes in float16. So gradients are multiplied by a power of two where they enter the model and
divided where they reach the adapter; in other types that changes no bit.

References:
    Mixed Precision Training (Micikevicius et al., 2018), arXiv 1710.03740v3, section 3.2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

__all__ = ["LossScale"]


class LossScale:
    """Scales the gradients of one policy; call it on every velocity."""

    def __init__(self, parameters: Sequence[nn.Parameter], latent_shape: Sequence[int]) -> None:
        """Make the adapter divide.

        Args:
            parameters: The adapter's, on which hooks are left.
            latent_shape: Shape of one latent, whose size fixes the scale.
        """
        self.factor = 2.0 ** (math.ceil(math.log2(math.prod(latent_shape))) + 4)
        for parameter in parameters:
            parameter.register_hook(lambda gradient: gradient / self.factor)

    def __call__(self, v_t: Tensor) -> Tensor:
        """Make gradients larger that flow into ``v_t``, shape (B, *latent); returns it."""
        if v_t.requires_grad:
            v_t.register_hook(lambda gradient: gradient * self.factor)
        return v_t
