"""The optimiser of an adapter: AdamW with warm-up, gradient clipping and an average of weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..optional import require
from .config import OptimizerConfig
from .ema import Ema

__all__ = ["AdapterOptimizer"]


class AdapterOptimizer:
    """Steps the adapter's parameters."""

    def __init__(self, parameters: Sequence[nn.Parameter], config: OptimizerConfig) -> None:
        """Set up AdamW, and the average if ``config.ema_decay`` is set.

        Raises:
            ImportError: ``adamw8bit`` is asked for and bitsandbytes is not installed.
        """
        self._parameters, self._config = list(parameters), config
        self._adamw = _adamw_of(config.name)(
            self._parameters,
            lr=config.learning_rate,
            betas=(config.beta1, config.beta2),
            eps=config.eps,
            weight_decay=config.weight_decay,
            **({"fused": True} if config.fused else {}),
        )
        self._ema = Ema(self._parameters, config.ema_decay) if config.ema_decay else None

    def step(self, update: int) -> float:
        """Clip the gradient, step, clear it.

        Args:
            update: How many updates the run has done; fixes the learning rate of the warm-up and
                the decay of the average.

        Returns:
            L2 norm of the gradient before clipping.

        Raises:
            FloatingPointError: The gradient is not finite.
        """
        norm = nn.utils.clip_grad_norm_(self._parameters, self._config.max_grad_norm)
        if not torch.isfinite(norm):
            raise FloatingPointError(
                f"divergence: the gradient of update {update} is {float(norm)}; lower the learning "
                "rate, or check the model for values that are not finite"
            )
        warm = min(1.0, (update + 1) / max(self._config.warmup_updates, 1))
        for group in self._adamw.param_groups:
            group["lr"] = warm * self._config.learning_rate
        self._adamw.step()
        self.clear()
        if self._ema:
            self._ema.update(update)
        return float(norm)

    def clear(self) -> None:
        """Drop accumulated gradients."""
        self._adamw.zero_grad(set_to_none=True)

    def finish(self) -> None:
        """Set the adapter to the average, if there is one."""
        if self._ema:
            self._ema.apply()

    def tensors(self) -> dict[str, Tensor]:
        """Flatten the state to ``"<parameter index>.<name>"`` and ``"ema.<index>"``, on the CPU."""
        state = {
            f"{index}.{name}": torch.as_tensor(value).detach().cpu().contiguous().clone()
            for index, parameter in enumerate(self._parameters)
            # Not state_dict(): that of bitsandbytes has further levels.
            for name, value in self._adamw.state.get(parameter, {}).items()
        }
        return {**state, **(self._ema.tensors() if self._ema else {})}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what :meth:`tensors` took."""
        state: dict[int, dict[str, Any]] = {}
        averages = {key: value for key, value in tensors.items() if key.startswith("ema.")}
        for key in tensors.keys() - averages.keys():
            index, _, name = key.partition(".")
            state.setdefault(int(index), {})[name] = _plain(tensors[key])
        groups = self._adamw.state_dict()["param_groups"]
        self._adamw.load_state_dict({"state": state, "param_groups": groups})
        if self._ema:
            self._ema.restore(averages)


def _adamw_of(name: str) -> Any:
    """The class of an optimiser by its name in the settings."""
    if name == "adamw":
        return torch.optim.AdamW
    return require("bitsandbytes", "For the optimizer adamw8bit").optim.AdamW8bit


def _plain(value: Tensor) -> Tensor | int:
    """Undo ``as_tensor`` of an int: bitsandbytes counts its steps in one, torch in a float32."""
    return int(value) if value.ndim == 0 and not value.is_floating_point() else value
