"""How long the velocity has become, compared with the model's own without its adapter.

A cheap sign that pictures may spoil while the reward still rises: NormGuard (arXiv 2606.27771) saw
|v| / |v_ref| grow to 1.05 to 1.15 with three methods. It is a sign and no proof. In
``benchmarks/race`` all five runs without a leash passed 1.1, and two of them were spoiled in the
end; of the fifteen with one, those of the forward form touched 1.16 early and came back. So every
iteration measures it, whatever the algorithm, with a few calls of the model.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..algorithms.algorithm import SampledGroup
from ..method.noise import derive_seed
from ..method.policy import Policy, base_model
from ..method.stream import Stream

__all__ = ["CALLS", "velocity_norm"]

_SAMPLES = 2
CALLS = 2 * 2 * _SAMPLES
"""Samples that go through the model for it: two levels, with the adapter and without."""


@torch.no_grad()
def velocity_norm(stream: Stream, policy: Policy, groups: Sequence[SampledGroup]) -> float | None:
    """|v| / |v_ref| at noised pictures of one group, at two levels of its grid.

    Args:
        stream: The model, adapter on.
        policy: For its adapter, which is switched off meanwhile.
        groups: Sampled ones, of this process; the first is looked at.

    Returns:
        The mean over samples and levels; None if there is no group.
    """
    if not groups:
        return None
    trajectory, seed = groups[0].trajectory, groups[0].request.noise.seed
    count, levels = trajectory.grid.steps, trajectory.grid.sigmas
    x_0 = trajectory.x_0[:_SAMPLES]
    times = [levels[(count + 3) // 4], levels[count // 2]]
    noised = []
    for t in times:
        generator = torch.Generator().manual_seed(derive_seed(seed, "velocity norm", t))
        noised.append((1.0 - t) * x_0 + t * torch.randn(x_0.shape, generator=generator))

    def lengths() -> Tensor:
        calls: list[tuple[Tensor, float | Tensor]] = list(zip(noised, times, strict=True))
        if stream.mixes_times:
            repeated = torch.tensor(times).repeat_interleave(len(x_0))
            calls = [(torch.cat(noised), repeated.to(stream.device))]
        found = []
        for x_t, t in calls:
            v_t = stream.velocity(x_t.to(stream.device), t, trajectory.example).float()
            found.append(v_t.flatten(1).norm(dim=1))
            stream.check_cancel()
        return torch.cat(found)

    trained = lengths()
    with base_model(policy):
        reference = lengths()
    return float((trained / reference.clamp_min(1e-12)).mean())
