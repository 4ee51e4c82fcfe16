"""Randomness of a group: where its samples start and what their steps draw.

Sample i of a group owns one generator, seeded from (seed, iteration, prompt, i), and draws on the
CPU, for every step whether or not the step takes noise. So a picture does not depend on batch size,
device or what else is sampled, the noise of a step does not depend on where else there is noise,
and a resumed run continues with the same noise.

Legend: G samples in a group, ``*latent`` the model's latent shape.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

__all__ = ["Noise", "derive_seed", "draw_normal", "noise_of_batch"]


def derive_seed(*keys: object) -> int:
    """Hash any printable keys to a seed in 0..2^63 - 1, stable across machines and versions."""
    digest = hashlib.blake2b("/".join(map(str, keys)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


@dataclass(frozen=True)
class Noise:
    """Sources of randomness of one group."""

    shared_start: bool
    """Whether all samples start from the same initial noise."""
    seed: int
    """Seed of the group, see :func:`derive_seed`."""
    group_size: int
    """Samples that are rolled out."""
    first: int = 0
    """Number of the first of them, where only a part of the group is rolled out."""

    @property
    def step_seeds(self) -> list[int]:
        """One seed for each sample, for the noise of its steps."""
        return [derive_seed(self.seed, "steps", i) for i in self._numbers]

    def generators(self) -> list[torch.Generator]:
        """One fresh CPU generator for each sample, for the noise of its steps."""
        return [torch.Generator().manual_seed(seed) for seed in self.step_seeds]

    @property
    def _numbers(self) -> range:
        return range(self.first, self.first + self.group_size)

    def initial(self, latent_shape: Sequence[int]) -> Tensor:
        """Draw x_1, CPU float32, shape (G, *latent)."""
        owners = [0] * self.group_size if self.shared_start else self._numbers
        return draw_normal([_generator(self.seed, "start", i) for i in owners], latent_shape)


def draw_normal(generators: Iterable[torch.Generator], latent_shape: Sequence[int]) -> Tensor:
    """Draw N(0, 1), one latent from each generator, CPU float32, shape (B, *latent)."""
    return torch.stack([torch.randn(*latent_shape, generator=g) for g in generators])


def noise_of_batch(seed: int, index: int, latent_shape: Sequence[int]) -> Tensor | None:
    """What one picture of a batch began with, where torch drew the noise of the whole batch at once
    on the CPU, as ComfyUI does; float32, shape (*latent).

    Args:
        seed: Of the batch.
        index: Place of the picture, from 0.
        latent_shape: Shape of one latent.

    Returns:
        None where the size of the whole batch matters, too: torch draws blocks of 16 numbers, and
        the last 16 of all anew where they do not end with a block.
    """
    if prod(latent_shape) % 16:
        return None
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(index + 1, *latent_shape, generator=generator)[index]


def _generator(*keys: object) -> torch.Generator:
    return torch.Generator().manual_seed(derive_seed(*keys))
