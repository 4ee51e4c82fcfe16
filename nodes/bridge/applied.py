"""A trained LoRA beside a MODEL in ordinary sampling: the side branch of training, never merged.

ComfyUI's loaders add B A to W and round the sum to the type of W; in bf16 or fp8 this loses most
of a small LoRA. Here each layer gives

    y = W x + strength * (alpha / rank) * B A x

with A and B kept in float32 and W of whatever kind, as in training.

The hooks live for one call of the network. So nothing is left on the weights, which all clones of
a MODEL share, whatever is loaded and unloaded in between, and the LoRAs that act are those of the
patcher that samples. Training on top of them is the exception (:func:`held`): backward recomputes
blocks outside the call, so the hooks stay for the session, and a context variable, which the
recomputation sees as the forward saw it, says which of them act.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import CallbacksMP, WrappersMP
from torch import Tensor, nn

from ...chunk_grpo_core.lora.low_rank import add_low_rank
from .side_branches import side_branches

__all__ = ["COMPILE_KEY", "apply_lora", "check_range", "held"]

#: Key of ComfyUI's wrapper that compiles a MODEL (comfy_api.torch_helpers).
COMPILE_KEY = "torch.compile"

_KEY = "chunk_grpo_applied"
_ROUNDING = 1.0 + 1e-5
"""Sigmas this close are the same; a schedule is float32, the bounds of a range are not."""


def check_range(start_percent: float, end_percent: float) -> None:
    """Check a part of the sampling.

    Raises:
        ValueError: Not 0 <= start_percent <= end_percent <= 1.
    """
    if not 0.0 <= start_percent <= end_percent <= 1.0:
        raise ValueError(
            f"start_percent is {start_percent} and end_percent {end_percent}; they must be "
            "between 0 and 1, and the start not after the end"
        )


def apply_lora(
    model: ModelPatcher,
    lora: Mapping[str, Tensor],
    strength: float = 1.0,
    start_percent: float = 0.0,
    end_percent: float = 1.0,
) -> ModelPatcher:
    """Return a clone of ``model`` that is sampled with ``lora`` beside its weights.

    Args:
        model: Any native MODEL, with or without other LoRAs; it is not changed.
        lora: A LORA_MODEL, or the content of a LoRA file.
        strength: Factor of the branch; 0 is the base model to the last bit.
        start_percent: Where in the MODEL's own schedule the LoRA begins to act, 0..1.
        end_percent: Where it ends. A step that starts exactly here is outside, so two ranges that
            touch share no step, and an empty range is the base model to the last bit.

    Raises:
        ValueError: The range is none, or the LoRA does not fit (see :func:`side_branches`).
    """
    check_range(start_percent, end_percent)
    layers = side_branches(model, lora)
    work = model.clone()
    if strength != 0.0 and start_percent < end_percent:
        applied = _AppliedLora(layers, strength, start_percent, end_percent)
        work.add_wrapper_with_key(WrappersMP.APPLY_MODEL, _KEY, applied)
        work.add_callback_with_key(CallbacksMP.ON_CLEANUP, _KEY, applied.free)
    return work


@contextmanager
def held(work: ModelPatcher) -> Iterator[None]:
    """Keep the hooks of all applied LoRAs on the layers, so that autograd may recompute blocks.

    Args:
        work: The working clone of a session; its wrappers are exchanged.
    """
    loras = list(work.get_wrappers(WrappersMP.APPLY_MODEL, _KEY))
    work.remove_wrappers_with_key(WrappersMP.APPLY_MODEL, _KEY)
    with ExitStack() as hooks:
        for lora in loras:
            work.add_wrapper_with_key(WrappersMP.APPLY_MODEL, _KEY, lora.switched)
            hooks.enter_context(lora.attached(work.model.diffusion_model))
        yield


class _AppliedLora:
    """One LoRA on one MODEL; called by ComfyUI as a wrapper of ``BaseModel.apply_model``."""

    active: ContextVar[frozenset[_AppliedLora]] = ContextVar("applied", default=frozenset())
    """Those that act in the present call."""

    def __init__(
        self,
        layers: Mapping[str, tuple[Tensor, Tensor]],
        strength: float,
        start_percent: float,
        end_percent: float,
    ) -> None:
        self._layers = layers
        self._strength = strength
        self._range = (start_percent, end_percent)
        self._on_device: dict[tuple[str, torch.device], tuple[Tensor, Tensor]] = {}

    def __call__(self, executor: Any, x: Tensor, t: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Run the network once, with hooks for this call only."""
        base_model = executor.class_obj
        if not self._covers(base_model.model_sampling, t):
            return executor(x, t, *args, **kwargs)
        _refuse_compiled(base_model)
        with self.attached(base_model.diffusion_model):
            return self.switched(executor, x, t, *args, **kwargs)

    def switched(self, executor: Any, x: Tensor, t: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Run the network once; the hooks are there already and act if the step is in range."""
        if not self._covers(executor.class_obj.model_sampling, t):
            return executor(x, t, *args, **kwargs)
        token = self.active.set(self.active.get() | {self})
        try:
            return executor(x, t, *args, **kwargs)
        finally:
            self.active.reset(token)

    @contextmanager
    def attached(self, network: nn.Module) -> Iterator[None]:
        """Hook the layers of ``network``; they act where this LoRA is in :attr:`active`."""
        with ExitStack() as handles:
            for name in self._layers:
                handle = network.get_submodule(name).register_forward_hook(self._hook(name))
                handles.callback(handle.remove)
            yield

    def free(self, patcher: ModelPatcher) -> None:
        """Drop the copies on compute devices; ComfyUI calls this after every sampling."""
        self._on_device.clear()

    def _hook(self, name: str) -> Callable[..., Tensor]:
        def hook(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
            if self not in self.active.get():
                return output
            a, b = self._factors(name, inputs[0].device)
            return add_low_rank(output, inputs[0], a, b, 1.0)

        return hook

    def _factors(self, name: str, device: torch.device) -> tuple[Tensor, Tensor]:
        """A and strength * B on ``device``."""
        if (name, device) not in self._on_device:
            a, b = self._layers[name]
            with torch.inference_mode(False):
                self._on_device[name, device] = a.to(device), b.to(device) * self._strength
        return self._on_device[name, device]

    def _covers(self, sampling: Any, sigmas: Tensor) -> bool:
        """Whether a call at these sigmas, all the same, is in the range."""
        if self._range == (0.0, 1.0):
            return True
        start, end = (float(sampling.percent_to_sigma(percent)) for percent in self._range)
        return end * _ROUNDING < float(sigmas.max()) <= start * _ROUNDING


def _refuse_compiled(base_model: nn.Module) -> None:
    """Compiled code keeps or lacks the hooks of its first call, without a word.

    Raises:
        ValueError: Something in the MODEL is compiled.
    """
    patcher: Any = base_model.current_patcher  # set while the MODEL is sampled
    compiled = any("_orig_mod" in module._modules for module in base_model.modules())
    if compiled or patcher.get_wrappers(WrappersMP.APPLY_MODEL, COMPILE_KEY):
        raise ValueError(
            "this MODEL is compiled (torch.compile), and compiled layers do not see a LoRA beside "
            "them; remove the compile node, or load the LoRA with ComfyUI's Load LoRA"
        )
