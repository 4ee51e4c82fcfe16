"""What samples are becoming, shown while they are drawn: rough pictures from latents, without a
VAE."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import latent_preview
import numpy
import torch
from torch import Tensor

__all__ = ["Glimpse"]

logger = logging.getLogger(__name__)

_MOST = 16
"""Samples shown at most."""
_PAUSE = 1.0
"""Least seconds between two pictures."""
_SIDE = 96
"""A picture is enlarged to about so many pixels."""


class Glimpse:
    """Shows the samples of a call every second, as ComfyUI's own sampler does (latent2rgb).

    A MODEL whose latents have no such colours in ComfyUI shows nothing. One whose colours do not
    fit its latents says so once in the log: a rough picture ends no training.
    """

    def __init__(
        self, latent_format: Any, show: Callable[[Tensor, int], None], *, pause: float = _PAUSE
    ) -> None:
        """Prepare.

        Args:
            latent_format: Of the MODEL.
            show: Takes pictures (B, h, w, 3) in 0..1, and how many times to enlarge them.
            pause: Least seconds between two pictures.
        """
        factors = getattr(latent_format, "latent_rgb_factors", None)
        self._previewer = None
        if factors is not None:
            self._previewer = latent_preview.Latent2RGBPreviewer(
                factors,
                getattr(latent_format, "latent_rgb_factors_bias", None),
                getattr(latent_format, "latent_rgb_factors_reshape", None),
            )
        self._show, self._pause, self._shown = show, pause, -pause

    def __call__(self, denoised: Tensor) -> None:
        """See what a call of the MODEL expects its samples to become, (B, *latent)."""
        now = time.monotonic()
        if self._previewer is None or now - self._shown < self._pause:
            return
        self._shown = now
        samples = denoised.detach()[:_MOST].float().split(1)
        try:
            images = [self._previewer.decode_latent_to_preview(sample) for sample in samples]
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            logger.warning("no rough pictures are shown while this MODEL draws: %s", error)
            self._previewer = None
            return
        pictures = torch.from_numpy(numpy.stack([numpy.asarray(image) for image in images]))
        scale = max(1, round(_SIDE / max(pictures.shape[1:3])))
        self._show(pictures.float() / 255.0, scale)
