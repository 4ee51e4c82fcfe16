"""The LoRA beside a native MODEL: forward hooks, attached and removed by ModelPatcher itself.

No module is replaced and no key renamed (ModelPatcher works by key), any weight class will do
(quantised layers are no ``nn.Linear``), and nothing is merged or rounded. The factors live here, so
they survive every unloading of the model.

References:
    LoRA: Low-Rank Adaptation of Large Language Models (Hu et al., 2021), arXiv 2106.09685v2.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import comfy.ops
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

from ...chunk_grpo_core.lora.adapter import LoraConfig, copy_state, initial_factors
from ...chunk_grpo_core.lora.low_rank import add_low_rank
from ...chunk_grpo_core.lora.targets import layer_kinds, target_pattern
from ...chunk_grpo_core.settings.declared import shortened
from .activations import Activations, kept_or_recomputed
from .autograd import alias, checkpointed, refetching, with_weights_cast_again
from .quantised import differentiable, is_quantised

__all__ = ["HookLora", "blocks", "is_linear"]

logger = logging.getLogger(__name__)


def blocks(diffusion_model: nn.Module) -> list[nn.Module]:
    """Transformer blocks: the elements of every top-level ModuleList.

    Where there are none, as in models around a language model, the elements of the outermost ones
    inside its parts.
    """
    lists = [child for child in diffusion_model.children() if isinstance(child, nn.ModuleList)]
    return [block for modules in lists or _inner_lists(diffusion_model) for block in modules]


def _inner_lists(module: nn.Module) -> Iterator[nn.ModuleList]:
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield child
        else:
            yield from _inner_lists(child)


def is_linear(module: nn.Module) -> bool:
    """A layer y = W x; ComfyUI's quantised Linear is one but does not derive from nn.Linear."""
    sizes = (getattr(module, "in_features", None), getattr(module, "out_features", None))
    return all(isinstance(size, int) for size in sizes) and hasattr(module, "weight")


def _in_blocks(diffusion_model: nn.Module) -> dict[str, Any]:
    inside = {id(module) for block in blocks(diffusion_model) for module in block.modules()}
    modules = diffusion_model.named_modules()
    return {name: module for name, module in modules if id(module) in inside}


def _linears(diffusion_model: nn.Module) -> dict[str, Any]:
    modules = _in_blocks(diffusion_model)
    return {name: module for name, module in modules.items() if is_linear(module)}


class HookLora:
    """A LoRA on a MODEL; implements the core's ``Adapter``.

    :meth:`inject` and :meth:`eject` are the two callbacks of a ``PatcherInjection``. ModelPatcher
    calls them many times in one run (around loading, partial unloading, patching); the parameters
    are the same objects every time.
    """

    def __init__(
        self,
        model: ModelPatcher,
        config: LoraConfig,
        seed: int,
        *,
        activations: Activations | None = None,
    ) -> None:
        """Create the factors on the MODEL's compute device; the MODEL is not changed.

        Args:
            model: Any native MODEL.
            config: Size and place.
            seed: Seed of the factors A.
            activations: Which of them stay in memory until backward. None: those of no block; what
                goes into the blocks waits in system memory.

        Raises:
            ValueError: ``config.targets`` matches no linear layer inside a block.
        """
        self.config = config
        self.enabled = True
        #: Whether the MODEL carries the adapter at this moment.
        self.attached = False
        self._undo = ExitStack()
        self._activations = activations
        layers = _linears(model.model.diffusion_model)
        pattern = target_pattern(config.targets)
        chosen = {name: layer for name, layer in layers.items() if pattern.fullmatch(name)}
        if not chosen:
            some = ", ".join(layer_kinds(layers)[:12]) or "none"
            raise ValueError(
                f"lora.targets {shortened(config.targets)} matches none of the {len(layers)} "
                "linear layers inside the blocks of this MODEL; choose all-linear, which takes "
                "all of them, or a regular expression over whole names. Some of their names, "
                f"without the numbers of the blocks: {some}"
            )
        _tell_what_is_left_out(model.model.diffusion_model, chosen)
        self._factors: dict[str, tuple[nn.Parameter, nn.Parameter]] = {}
        # An execute() runs under inference mode, and tensors made there can never be trained.
        with torch.inference_mode(False):
            for name, layer in chosen.items():
                factors = initial_factors(
                    name, layer.in_features, layer.out_features, config.rank, seed
                )
                a, b = (nn.Parameter(factor.to(model.load_device)) for factor in factors)
                self._factors[name] = (a, b)

    def _tensors(self) -> dict[str, nn.Parameter]:
        return {
            f"{name}.lora_{side}.weight": factor
            for name, factors in self._factors.items()
            for side, factor in zip("AB", factors, strict=True)
        }

    def parameters(self) -> list[nn.Parameter]:
        """See :class:`~chunk_grpo_core.method.policy.Adapter`."""
        return list(self._tensors().values())

    def state_dict(self) -> dict[str, Tensor]:
        """See :class:`~chunk_grpo_core.method.policy.Adapter`; modules have their native names."""
        with torch.inference_mode(False):
            return {
                name: tensor.detach().to("cpu", torch.float32, copy=True).contiguous()
                for name, tensor in self._tensors().items()
            }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """See :class:`~chunk_grpo_core.method.policy.Adapter`."""
        with torch.inference_mode(False):
            copy_state(self._tensors(), state)

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Inside this context the model is the reference policy.

        Leave it before ``backward()``: blocks are recomputed there, in the state they find.
        """
        before, self.enabled = self.enabled, False
        try:
            yield
        finally:
            self.enabled = before

    def inject(self, patcher: ModelPatcher) -> None:
        """Attach to ``patcher``'s model; the patcher calls this after it has loaded the weights."""
        self.eject(patcher)
        model = patcher.model.diffusion_model
        layers = _linears(model)
        with torch.inference_mode(False), ExitStack() as undo:
            for module in model.modules():
                self._freeze(undo, module)
                if is_quantised(module) and is_linear(module):
                    _set_forward(undo, module, differentiable(module, module.forward))
                elif _is_fetched(module, patcher.load_device):
                    _set_forward(undo, module, refetching(module.forward))
                elif _is_cast(module, patcher.model.manual_cast_dtype):
                    _set_forward(undo, module, with_weights_cast_again(module, module.forward))
            for name, factors in self._factors.items():
                handle = layers[name].register_forward_hook(self._hook(*factors))
                undo.callback(handle.remove)
            for number, block in enumerate(blocks(model)):
                _set_forward(undo, block, self._trained(block, number))
            self._undo = undo.pop_all()
        self.attached = True

    def _trained(self, block: nn.Module, number: int) -> Callable[..., Any]:
        if self._activations is None:
            return checkpointed(block.forward, offload=True)
        return kept_or_recomputed(block, number, self._activations, block.forward)

    def eject(self, patcher: ModelPatcher) -> None:
        """Undo :meth:`inject` in reverse order; without an injection nothing happens."""
        self._undo.close()
        self.attached = False

    @staticmethod
    def _freeze(undo: ExitStack, module: nn.Module) -> None:
        """Stand in for every parameter that autograd must not see as it is."""
        for name, parameter in list(module._parameters.items()):
            if parameter is None or not (parameter.is_inference() or parameter.requires_grad):
                continue
            data = alias(parameter.data) if parameter.is_inference() else parameter.detach()
            frozen = nn.Parameter(data, requires_grad=False)
            for note, value in parameter.__dict__.items():  # ComfyUI keeps notes on its weights
                frozen.__dict__.setdefault(note, value)
            module._parameters[name] = frozen
            undo.callback(module._parameters.__setitem__, name, parameter)

    def _hook(self, a: nn.Parameter, b: nn.Parameter) -> Callable[..., Tensor]:
        scale = self.config.scale

        def hook(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
            if not self.enabled:
                return output
            return add_low_rank(output, inputs[0], a, b, scale)

        return hook


def _tell_what_is_left_out(diffusion_model: nn.Module, chosen: Iterable[str]) -> None:
    """Name the weights inside blocks that get no LoRA, by kind."""
    modules, taken = _in_blocks(diffusion_model), set(layer_kinds(chosen))
    linears = [name for name, module in modules.items() if is_linear(module)]
    left = [kind for kind in layer_kinds(linears) if kind not in taken]
    others = layer_kinds(
        name
        for name, module in modules.items()
        if not is_linear(module) and any(p.ndim >= 2 for p in module.parameters(recurse=False))
    )
    if left or others:
        no_linear = f"; no linear layers, so never trained: {', '.join(others)}" if others else ""
        logger.info(
            "the LoRA takes %d kinds of layers; left out: %s%s",
            len(taken), ", ".join(left) or "none", no_linear,
        )  # fmt: skip


def _is_fetched(module: nn.Module, device: torch.device) -> bool:
    """Whether ComfyUI brings this layer's weights to ``device`` for each call (see refetching)."""
    if not hasattr(module, "comfy_cast_weights"):
        return False
    weight = getattr(module, "weight", None)
    return weight is not None and (weight.device != device or hasattr(module, "_v"))


def _is_cast(module: nn.Module, products: torch.dtype | None) -> bool:
    """Whether this is ComfyUI's plain linear layer with weights of another type than its products,
    and nothing changes them on the way."""
    plain = comfy.ops.disable_weight_init.Linear
    if products is None or not isinstance(module, plain) or module.weight.dtype == products:
        return False
    is_own = type(module).forward_comfy_cast_weights is plain.forward_comfy_cast_weights
    return is_own and not (module.weight_function or module.bias_function)


def _set_forward(undo: ExitStack, module: nn.Module, forward: Callable[..., Any]) -> None:
    """Give one instance another forward."""
    before = module.__dict__.get("forward")
    module.forward = forward

    def restore() -> None:
        # Someone who was here before us (a bypass LoRA) may have restored the original already.
        if module.__dict__.get("forward") is not forward:
            return
        if before is None:
            del module.__dict__["forward"]
        else:
            module.forward = before

    undo.callback(restore)
