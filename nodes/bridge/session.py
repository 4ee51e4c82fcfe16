"""Borrow a MODEL for training and give it back as it was.

Everything is done to a clone, which shares the weights but not the options, and the weights
themselves are touched only between ``inject`` and ``eject`` of the adapter.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import comfy.model_management as memory
import comfy.ops
import torch
from comfy.ldm.modules.attention import attention_pytorch
from comfy.model_patcher import ModelPatcher
from comfy.model_sampling import CONST
from comfy.patcher_extension import PatcherInjection, WrappersMP

from ...chunk_grpo_core.models.attention import without_cudnn_attention
from .adapter import HookLora
from .applied import COMPILE_KEY, held

__all__ = ["OURS", "check_flow_model", "training_session", "without_dynamic_vram"]

logger = logging.getLogger(__name__)

OURS = "chunk_grpo"
"""Key of what a session hangs on the MODEL."""
_ROPE_KERNELS = (
    "apply_rope_split_half", "apply_rope_split_half1", "rms_rope", "rms_rope1",
    "rms_rope_split_half", "rms_rope_split_half1",
)  # fmt: skip
"""Kernels of comfy-kitchen that models call without asking whether they are trained."""


def check_flow_model(model: ModelPatcher) -> None:
    """Accept MODELs whose time is x_t = (1 - t) x_0 + t noise with t = sigma in (0, 1].

    Raises:
        ValueError: The MODEL samples in another way; the message names the way.
    """
    sampling = model.get_model_object("model_sampling")
    kind = type(sampling)
    # Some kinds derive from CONST and replace its formulas, so the formulas are compared.
    is_flow = (
        isinstance(sampling, CONST)
        and kind.calculate_denoised is CONST.calculate_denoised
        and kind.noise_scaling is CONST.noise_scaling
        and getattr(sampling, "noise_scale", 1.0) == 1.0
    )
    if not is_flow:
        samplings = [base.__name__ for base in kind.__mro__ if base.__module__ == CONST.__module__]
        scale = getattr(sampling, "noise_scale", 1.0)
        scaled = f" and noise of {scale:g} times the usual size (noise_scale)" if scale != 1 else ""
        raise ValueError(
            f"this MODEL ({type(model.model).__name__}) samples with {' and '.join(samplings)}"
            f"{scaled}; Chunk-GRPO needs a flow-matching MODEL whose noise is N(0, 1) (model "
            "sampling CONST, as FLUX.1, FLUX.2, Chroma, SD3, Qwen-Image, Z-Image and Krea 2 have)"
        )


@contextmanager
def _exchanged(exchanges: Iterable[tuple[Any, str, Any]]) -> Iterator[None]:
    """Inside this context attributes (owner, name, value) that are there have these values."""
    with ExitStack() as undo:
        for owner, name, value in exchanges:
            if hasattr(owner, name):
                undo.callback(setattr, owner, name, getattr(owner, name))
                setattr(owner, name, value)
        yield


def _kernels(diffusion_model: torch.nn.Module) -> Iterator[tuple[Any, str, Any]]:
    """What gives the blocks of a model kernels that have a derivative.

    It stays in force for rollouts too: old and new log-probabilities must come from the same
    kernels. Newer ComfyUI has a switch. Anima, Cosmos and Ernie-Image do not ask for it and call
    comfy-kitchen's fused kernels for positions; its plain code gives the same numbers, on a CPU to
    the last bit. Ernie-Image hands no options to its attention, where :func:`_sdpa` would act.
    """
    yield memory, "in_training", True
    plain = sys.modules.get("comfy_kitchen.backends.eager.rope")
    for name in _ROPE_KERNELS:
        if hasattr(plain, name):
            yield sys.modules.get("comfy_kitchen"), name, getattr(plain, name)
    for file in {sys.modules.get(type(module).__module__) for module in diffusion_model.modules()}:
        yield file, "optimized_attention", attention_pytorch
        yield file, "optimized_attention_masked", attention_pytorch


@contextmanager
def _trusted_attention() -> Iterator[None]:
    """Without cuDNN's kernel; on Windows, ComfyUI puts it first on a list of its own."""
    priority = getattr(comfy.ops, "SDPA_BACKEND_PRIORITY", [])
    before = list(priority)
    priority[:] = [kernel for kernel in before if kernel.name != "CUDNN_ATTENTION"]
    try:
        with without_cudnn_attention():
            yield
    finally:
        priority[:] = before


def _sdpa(func: Callable[..., Any], *args: Any, **kwargs: Any) -> torch.Tensor:
    """Attention override: some fast kernels have no backward and cut the graph silently."""
    return attention_pytorch(*args, **kwargs)


def _load_in_inference_mode(executor: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Sampling wrapper: whatever ComfyUI loads or merges, it does as in ordinary sampling.

    Outside inference mode, merging a LoRA into fp8 weights fails and replaced weights are copied.
    """
    with torch.inference_mode():
        return executor(*args, **kwargs)


def without_dynamic_vram(model: ModelPatcher) -> ModelPatcher:
    """Return ``model``, or a copy of it that ComfyUI does not stream through dynamic VRAM.

    Dynamic VRAM lets weights come and go at any moment. ComfyUI can read the model's file again
    for a patcher without it, LoRAs included; keep the copy as long as training lasts. A MODEL made
    in Python has no file. Its layers fetch their weights again in backward instead (see
    :func:`.autograd.refetching`).
    """
    if not getattr(model, "is_dynamic", lambda: False)():
        return model
    if getattr(model, "cached_patcher_init", None) is None:
        logger.warning("this MODEL has no file to read again; training it with dynamic VRAM")
        return model
    return model.clone(disable_dynamic=True)


def _prepare(model: ModelPatcher) -> ModelPatcher:
    work = model.clone()
    if hasattr(work, "remove_additional_models"):
        work.remove_additional_models("multigpu")  # its worker threads run under no_grad
    options = dict(work.model_options.get("transformer_options", {}))
    options["optimized_attention_override"] = _sdpa
    work.model_options["transformer_options"] = options
    # Compiled blocks would not see the hooks.
    work.remove_wrappers_with_key(WrappersMP.APPLY_MODEL, COMPILE_KEY)
    work.add_wrapper_with_key(WrappersMP.PREPARE_SAMPLING, OURS, _load_in_inference_mode)
    return work


@contextmanager
def training_session(
    model: ModelPatcher, adapter: HookLora | None, batch_shape: tuple[int, ...]
) -> Iterator[ModelPatcher]:
    """Load ``model`` with ``adapter`` attached; inside, autograd works and inference mode is off.

    Without an adapter the same kernels run, but nothing can be differentiated.

    Args:
        model: A flow-matching MODEL, with or without LoRAs stacked on it; better not a dynamic one
            (see :func:`without_dynamic_vram`).
        adapter: Its LoRA; None leaves the MODEL as it is.
        batch_shape: Shape of the largest batch of latents, for the memory estimate.

    Yields:
        The working clone. Sample with this one.

    Raises:
        ValueError: The MODEL is not a flow model.
    """
    check_flow_model(model)
    work = _prepare(model)
    if adapter:
        work.set_injections(OURS, [PatcherInjection(inject=adapter.inject, eject=adapter.eject)])
    try:
        with (
            _exchanged(_kernels(work.model.diffusion_model)),
            _trusted_attention(),
            held(work),
        ):
            with torch.inference_mode():
                needed = work.memory_required([2 * batch_shape[0], *batch_shape[1:]])
                memory.load_models_gpu([work], memory_required=needed)
            if adapter and not adapter.attached:
                raise RuntimeError("ComfyUI loaded the MODEL without attaching the LoRA to it")
            with torch.inference_mode(False), torch.set_grad_enabled(adapter is not None):
                yield work
    finally:
        work.eject_model()
        if adapter:
            adapter.eject(work)  # an inject that failed halfway is unknown to the patcher
            work.remove_injections(OURS)
