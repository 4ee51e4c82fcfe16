"""A model, and the batches in which sample-steps may go through it."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass

import torch

from .cancel import CheckCancel, never_cancel
from .policy import Policy, Velocity

__all__ = ["Stream"]


@dataclass(frozen=True)
class Stream:
    """What everything that calls the model again and again needs to know, valid as long as its
    velocity is."""

    velocity: Velocity
    _: KW_ONLY
    device: torch.device | str = "cpu"
    """Where the model wants its input."""
    batch_size: int | None = None
    """Most sample-steps in one call of the model, 1 or more; as many as there are samples when
    None."""
    mixes_times: bool = False
    """The model takes a time for each sample; see :class:`~.policy.Policy`."""
    check_cancel: CheckCancel = never_cancel
    """Raises to stop; called after every call of the model."""

    @classmethod
    def of(
        cls,
        policy: Policy,
        velocity: Velocity,
        *,
        batch_size: int | None,
        check_cancel: CheckCancel,
    ) -> Stream:
        """The stream through a policy, in one of its phases."""
        return cls(
            velocity,
            device=policy.device,
            batch_size=batch_size,
            mixes_times=policy.mixes_times,
            check_cancel=check_cancel,
        )
