"""What the light inputs of Train LoRA say, checked before anything heavy is loaded.

ComfyUI runs what stands before a *lazy* input only when the node asks for it. Train LoRA asks for
noise levels and plan first, then for the reward, for the prompts and their text encoder, and in the
end for the MODEL: each time when all that is there has been found right. A LoRA to train on comes
first where it is read from a file, and with the MODEL where something trains it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ..chunk_grpo_core.algorithms import algorithm_of
from ..chunk_grpo_core.algorithms.forward import Forward
from ..chunk_grpo_core.lora.contents import read_lora
from ..chunk_grpo_core.method.chunks import ChunkPlan
from ..chunk_grpo_core.method.reward import NoReward
from ..chunk_grpo_core.method.schedule import TimeGrid, shifted_grid
from ..chunk_grpo_core.runs.held_out import check_held_out, check_needless
from ..chunk_grpo_core.settings.blaming import blaming
from ..chunk_grpo_core.train.config import TrainConfig
from .bridge.any_sampler import rollouts_of
from .bridge.conditioning import check_guided
from .bridge.picked_prompts import check_judged
from .bridge.training import RunRequest, check_request
from .lazy import ask_next, is_awaited
from .patch import Patch, declared, model_settings
from .recipes import BY_HAND, NUMBERS, check_plan, training_patch

__all__ = ["TrainInputs", "check_and_ask", "grid_without_model"]

_STAGES = (
    ("sigmas", "plan"),
    ("reward",),
    ("prompts",),
    ("model", "vae", "negative", "latent", "continue_from"),
)
_NOTHING_MAY_COME = ("plan",)
"""GRPO Preset has no plan for a recipe that trains none."""
_ANY_GRID = shifted_grid(17)
"""In the place of noise levels that are not there yet."""


@dataclass(frozen=True, kw_only=True)
class TrainInputs:
    """Inputs of Train LoRA that say how to train."""

    recipe: str
    settings: Patch
    numbers: Mapping[str, float]
    """Name of an input -> its value."""
    plan: ChunkPlan | str | None
    sampler: Any
    cfg: float
    seed: int
    is_whole: bool = True
    """False while noise levels or plan have not arrived: whether they fit is not looked at."""

    def config(self, grid_of: Callable[[Patch], TimeGrid]) -> tuple[TrainConfig, Any]:
        """All settings of the training, and the SAMPLER if it samples instead of the library.

        Args:
            grid_of: The noise levels, of all other settings.

        Raises:
            ValueError: A setting is out of range, or two contradict each other.
        """
        patch = training_patch(self.recipe, self.settings, self.numbers)
        algorithm = str(patch.get("algorithm", declared("algorithm").default))
        if self.is_whole:
            check_plan(self.plan, patch, algorithm, self.recipe)
        handed = None
        if self.sampler is not None or algorithm == "preference" or "sde.rule" not in patch:
            sde, handed = rollouts_of(self.sampler, algorithm, self.cfg)
            patch |= {f"sde.{name}": value for name, value in asdict(sde).items()}
        patch |= {"grid": grid_of(patch), "seed": self.seed}
        if self.plan is not None or not self.is_whole:
            patch["plan"] = self.plan if self.is_whole else None
        return TrainConfig.of(patch), handed


def check_and_ask(inputs: Mapping[str, Any], *, reads_lora: bool = False) -> list[str]:
    """Refuse what is wrong with the inputs that are there, and say which are needed next.

    Args:
        inputs: Those that are connected or have a widget; None if they have not arrived.
        reads_lora: Whether ``continue_from`` comes from a file and takes no time.

    Returns:
        Names of inputs.

    Raises:
        ValueError: Something is wrong; nothing heavy has been loaded for it.
    """
    check_request(RunRequest(inputs["run_name"].strip(), inputs["resume"]))
    check_guided(inputs.get("cfg", 1.0), has_negative="negative" in inputs)
    settings = inputs.get("settings") or {}
    model_settings(settings)
    asked = TrainInputs(
        recipe=inputs.get("recipe", BY_HAND),
        settings=settings,
        numbers={name: inputs[name] for name in NUMBERS},
        plan=inputs.get("plan"),
        sampler=inputs.get("sampler"),
        cfg=inputs.get("cfg", 1.0),
        seed=inputs["seed"],
        is_whole=not any(is_awaited(inputs, name) for name in _STAGES[0]),
    )
    config, handed = asked.config(lambda patch: _stand_in(inputs, patch))
    if asked.is_whole:
        Forward(config, handed) if handed is not None else algorithm_of(config)
    if "reward" not in inputs:
        check_needless(NoReward(), config)
    if (prompts := inputs.get("prompts")) is not None:
        check_held_out(prompts.held_out)
        if config.algorithm == "preference":
            check_judged(prompts)
    if (lora := inputs.get("continue_from")) is not None:
        with blaming("continue_from"):
            read_lora(lora)
    stages = (("continue_from",), *_STAGES) if reads_lora else _STAGES
    return ask_next(inputs, stages, _NOTHING_MAY_COME)


def _stand_in(inputs: Mapping[str, Any], patch: Patch) -> TimeGrid:
    """Noise levels as many as there will be, where that is known."""
    if is_awaited(inputs, "sigmas"):
        return _ANY_GRID
    return grid_without_model(inputs.get("sigmas"), patch)


def grid_without_model(sigmas: Any, patch: Patch) -> TimeGrid:
    """The noise levels that are connected, or those of the settings.

    Raises:
        ValueError: Nothing says how many steps there are, or they are no noise levels.
    """
    if sigmas is not None:
        return TimeGrid.of(sigmas.tolist())
    stated = patch.get("grid")
    if not isinstance(stated, TimeGrid):
        raise ValueError(
            "sigmas is not connected; connect noise levels, such as those of BasicScheduler or "
            "Shifted Sigmas, or choose a recipe"
        )
    return stated
