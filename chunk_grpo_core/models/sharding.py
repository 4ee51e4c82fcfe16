"""A diffusers model, its frozen weights spread over processes (FSDP2), its LoRA whole in each.

Each block is gathered when it is computed and let go afterwards. Nothing is ever scattered back:
the weights are frozen, and the LoRA's gradients are summed like those of unsharded processes.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..lora.adapter import PeftAdapter
from ..method.policy import Velocity
from ..processes.collective import TorchProcesses
from ..prompts.example import Prompt
from .diffusers_policy import DiffusersPolicy

__all__ = ["ShardedPolicy"]

T = TypeVar("T")


class ShardedPolicy:
    """A policy that every process must call equally often; ``processes/equal_calls.py`` sees to
    that."""

    mixes_times = True
    """See :class:`~chunk_grpo_core.method.policy.Policy`."""

    def __init__(
        self, policy: DiffusersPolicy[Any], processes: TorchProcesses, example: Prompt
    ) -> None:
        """Spread the weights; from now on each process has its part of them.

        Args:
            policy: With its adapter; the transformer may still be on the CPU.
            processes: All that train.
            example: One that the model knows, for calls that only help the others.

        Raises:
            ValueError: PyTorch is too old.
        """
        self._policy, self._example, self._lock_step = policy, example, processes.lock_step
        _shard(policy.transformer, policy.blocks, policy.adapter, policy.device)
        processes.lock_step.start(self._idle)

    @property
    def name(self) -> str:
        """See :class:`~chunk_grpo_core.method.policy.Policy`."""
        return self._policy.name

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """See :class:`~chunk_grpo_core.method.policy.Policy`."""
        return self._policy.latent_shape

    @property
    def device(self) -> torch.device:
        """See :class:`~chunk_grpo_core.method.policy.Policy`."""
        return self._policy.device

    @property
    def adapter(self) -> PeftAdapter:
        """See :class:`~chunk_grpo_core.method.policy.Policy`."""
        return self._policy.adapter

    @property
    def is_compiled(self) -> bool:
        """See :class:`~chunk_grpo_core.method.policy.Policy`."""
        return self._policy.is_compiled

    def unguided(self) -> AbstractContextManager[None]:
        """See :class:`~chunk_grpo_core.method.policy.Guided`."""
        return self._policy.unguided()

    def run(self, work: Callable[[Velocity], T]) -> T:
        """See :class:`~chunk_grpo_core.method.policy.Policy`."""

        def phase(velocity: Velocity) -> T:
            def in_step(x_t: Tensor, t: float | Tensor, example: Prompt) -> Tensor:
                self._lock_step.before_call()
                return velocity(x_t, t, example)

            return work(in_step)

        return self._policy.run(phase)

    def decode(self, x_0: Tensor) -> Tensor:
        """See :class:`~chunk_grpo_core.method.policy.Policy`."""
        return self._policy.decode(x_0)

    def encode(self, images: Tensor) -> Tensor | None:
        """See :class:`~chunk_grpo_core.method.policy.PictureEncoder`."""
        return self._policy.encode(images)

    def _idle(self, with_gradient: bool) -> None:
        """One call, and one backward pass that leaves no gradient in the adapter."""
        x_t = torch.zeros(1, *self.latent_shape, device=self.device)

        def work(velocity: Velocity) -> None:
            v_t = velocity(x_t, 0.5, self._example)
            if with_gradient:
                torch.autograd.grad(v_t.sum(), self.adapter.parameters(), allow_unused=True)

        self._policy.run(work)


def _shard(
    transformer: nn.Module, blocks: Sequence[str], adapter: PeftAdapter, device: torch.device
) -> None:
    """Spread a transformer, each module in the lists named ``blocks`` on its own."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    if "ignored_params" not in inspect.signature(fully_shard).parameters:
        raise ValueError(f"sharding needs PyTorch 2.7 or newer, and this is {torch.__version__}")
    factors = set(adapter.parameters())
    for factor in factors:
        factor.data = factor.data.to(device)
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    # Blocks return views, which is a danger where the next one writes into them; diffusers' do not.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
    for name in blocks:
        for block in transformer.get_submodule(name).children():
            fully_shard(block, mesh=mesh, ignored_params=factors)
    fully_shard(transformer, mesh=mesh, ignored_params=factors)
