"""Low-rank adapters: y = W x + scale B A x, with A, B kept in float32 and W untouched.

Two implementations share this file's initialisation, scale and names: :class:`PeftAdapter` here,
for diffusers models, and forward hooks in the ComfyUI nodes, for native models.

References:
    LoRA: Low-Rank Adaptation of Large Language Models (Hu et al., 2021), arXiv 2106.09685v2.
    A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA (Kalajdzievski, 2023), arXiv
    2312.03732v1.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from ..optional import require
from ..settings.declared import Range, check_settings, shortened
from .low_rank import add_low_rank
from .targets import TARGET_PRESETS, target_pattern

__all__ = [
    "LoraConfig",
    "PeftAdapter",
    "copy_state",
    "initial_factors",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraConfig:
    """Size and place of the adapter."""

    rank: Annotated[int, Range(1, 4096)] = 16
    """Rank r."""
    alpha: Annotated[float, Range(1e-3, 65536)] = 32.0
    """Numerator of the scale."""
    rs: bool = False
    """Scale by alpha / sqrt(rank) (rsLoRA) instead of alpha / rank: the size of the update then
    does not shrink as the rank grows."""
    targets: str = "attention+mlp"
    """A preset (attention, attention+mlp, all-linear) or a regular expression that must match the
    whole module name."""

    def __post_init__(self) -> None:
        check_settings(self, "lora")
        target_pattern(self.targets)

    @property
    def scale(self) -> float:
        """alpha / rank, or alpha / sqrt(rank) with ``rs``."""
        return self.alpha / (math.sqrt(self.rank) if self.rs else self.rank)

    @property
    def file_alpha(self) -> float:
        """The alpha to write into files: loaders know only alpha / rank."""
        return self.alpha * math.sqrt(self.rank) if self.rs else self.alpha


def initial_factors(
    name: str, in_features: int, out_features: int, rank: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Draw the factors a module starts from; they depend on seed and module name alone.

    Returns:
        A ~ U(-1, 1) / sqrt(in_features), shape (rank, in_features), and B = 0, shape
        (out_features, rank), both CPU float32. B = 0 makes the fresh adapter the identity.
    """
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}/{name}".encode()))
    a = torch.empty(rank, in_features).uniform_(-1.0, 1.0, generator=generator)
    return a * in_features**-0.5, torch.zeros(out_features, rank)


def copy_state(target: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """Copy ``state`` into the tensors of ``target``, which must agree in names and shapes.

    Raises:
        ValueError: They do not agree; the message lists up to three names of each kind.
    """
    problems = {
        "missing": sorted(target.keys() - state.keys()),
        "unexpected": sorted(state.keys() - target.keys()),
        "wrong shape": [
            f"{name} {tuple(state[name].shape)} instead of {tuple(target[name].shape)}"
            for name in sorted(target.keys() & state.keys())
            if state[name].shape != target[name].shape
        ],
    }
    misfits = [f"{kind}: {', '.join(names[:3])}" for kind, names in problems.items() if names]
    if misfits:
        raise ValueError(f"these LoRA weights do not fit this adapter ({'; '.join(misfits)})")
    with torch.no_grad():
        for name, tensor in target.items():
            tensor.copy_(state[name])


class _Branch:
    """How peft's layers compute the branch; peft's own way makes float32 copies of all it meets."""

    @staticmethod
    def forward(module: Any, active_adapter: str, x: Tensor, result: Tensor, **_: object) -> Tensor:
        """Add the branch of the active adapter to what the layer gave."""
        a, b = module.lora_A[active_adapter].weight, module.lora_B[active_adapter].weight
        # Autograd would copy the gradient of a view that is overwritten.
        in_place = not torch.is_grad_enabled()
        return add_low_rank(result, x, a, b, module.scaling[active_adapter], in_place=in_place)


class PeftAdapter:
    """A LoRA that peft injected into a torch module."""

    def __init__(
        self,
        module: nn.Module,
        config: LoraConfig,
        seed: int,
        presets: Mapping[str, str] = TARGET_PRESETS,
    ) -> None:
        """Freeze ``module`` and inject a LoRA beside every linear layer that config.targets names.

        Args:
            module: A model of diffusers.
            config: Size and place.
            seed: Seed of the initial weights.
            presets: See :func:`~.targets.target_pattern`.

        Raises:
            ValueError: No linear layer matches.
            ImportError: peft is not installed.
        """
        peft = require("peft", "To train a LoRA on a diffusers model")
        self.config = config
        pattern = target_pattern(config.targets, presets)
        names = [
            name
            for name, child in module.named_modules()
            if isinstance(child, nn.Linear) and pattern.fullmatch(name)
        ]
        if not names:
            raise ValueError(f"lora.targets {shortened(config.targets)} matches no linear layer")
        module.requires_grad_(False)
        peft.inject_adapter_in_model(
            peft.LoraConfig(
                r=config.rank,
                lora_alpha=config.alpha,
                use_rslora=config.rs,
                target_modules=names,
            ),
            module,
        )
        self._is_on = True
        self._layers: dict[str, Any] = {name: module.get_submodule(name) for name in names}
        with torch.no_grad():
            for name, layer in self._layers.items():
                down, up = layer.lora_A["default"], layer.lora_B["default"]
                down.float()  # peft gives the factors the dtype of the base weight
                up.float()
                a, b = initial_factors(name, down.in_features, up.out_features, config.rank, seed)
                down.weight.copy_(a)
                up.weight.copy_(b)
                layer.lora_variant["default"] = _Branch
                layer.cast_input_dtype_enabled = False

    def _tensors(self) -> dict[str, nn.Parameter]:
        return {
            f"{name}.lora_{side}.weight": getattr(layer, f"lora_{side}")["default"].weight
            for name, layer in self._layers.items()
            for side in "AB"
        }

    def parameters(self) -> list[nn.Parameter]:
        """See :class:`~chunk_grpo_core.method.policy.Adapter`."""
        return list(self._tensors().values())

    def state_dict(self) -> dict[str, Tensor]:
        """See :class:`~chunk_grpo_core.method.policy.Adapter`."""
        return {
            name: tensor.detach().to("cpu", torch.float32, copy=True).contiguous()
            for name, tensor in self._tensors().items()
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """See :class:`~chunk_grpo_core.method.policy.Adapter`."""
        copy_state(self._tensors(), state)

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Switch every layer's LoRA off inside the context, which may be inside another one."""
        before, self._is_on = self._is_on, False
        self._switch(False)
        try:
            yield
        finally:
            self._is_on = before
            self._switch(before)

    def _switch(self, is_on: bool) -> None:
        for layer in self._layers.values():
            layer.enable_adapters(is_on)
