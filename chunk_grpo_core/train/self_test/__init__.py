"""Before the first update: are these the gradients of the policy that sampled?

See :mod:`.gradients` for how it is measured, :mod:`.replays` for the ratio and :mod:`.reward_chain`
for pictures and scores. What it catches, in which precision: ``benchmarks/README.md``.
"""

from __future__ import annotations

from .cells import STANDARD, THOROUGH, Effort
from .reward_chain import RewardChain
from .run import SelfTests, self_test
from .verdict import SelfTest, SelfTestFailed

__all__ = [
    "STANDARD",
    "THOROUGH",
    "Effort",
    "RewardChain",
    "SelfTest",
    "SelfTestFailed",
    "SelfTests",
    "self_test",
]
