"""The whole method on the embedded tiny FLUX, from base model to measured gain, in minutes.

Prompts, rollout, relative-L1 curve, chunks, reward, training, a LoRA file, and a fair before and
after on captions that neither base training nor RL has seen.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..method.cancel import CheckCancel, never_cancel
from ..method.schedule import shifted_grid
from ..models.tiny.model import SHIFT
from ..models.tiny.policy import tiny_policy
from ..models.tiny.reward import TinyWorldReward
from ..models.tiny.world import HELD_OUT, TRAIN, caption
from ..runs.experiment import run_experiment
from ..runs.folder import RunFolder
from ..runs.outcome import Outcome
from ..runs.results import write_results
from ..train.config import TrainConfig
from ..train.events import Listener

__all__ = ["RECIPES", "DemoResult", "run_demo", "tiny_config"]

_SHARED: Mapping[str, object] = {
    "lora.rank": 16,
    "lora.alpha": 32.0,
    "prompts_per_iteration": 4,
    "group_size": 12,
    "checkpoint_every": 2,
}
_CHUNKS: Mapping[str, object] = {
    "grid": shifted_grid(6, SHIFT),
    "window.kind": "fixed",
    "noise": "window",
    "chunk_fraction": 1.0,
    "objective.clip_low": 1e-4,
    "objective.clip_high": 1e-4,
    "objective.kl_ref": 0.003,
    "optimizer.learning_rate": 1e-3,
    "iterations": 50,
}
RECIPES: Mapping[str, Mapping[str, object]] = {
    "chunk": {**_CHUNKS, "plan": "2, 3", "window.chunks": 1},
    "step": {**_CHUNKS, "plan": "step", "window.chunks": 2},
    "forward": {
        "grid": shifted_grid(5, SHIFT),
        "algorithm": "forward",
        "sde.rule": "ode",
        "share_initial_noise": False,
        "forward.times": 2,
        "forward.kl_ref": 0.3,
        "optimizer.learning_rate": 2e-3,
        "iterations": 40,
    },
}
"""Where they come from: ``benchmarks/race``. Of Chunk-GRPO the first chunk alone takes noise and
trains, because that is where a picture of this world gets its colours, shapes and count. ``step``
differs from ``chunk`` in nothing but the plan: the same two steps, each a chunk of its own."""


def tiny_config(
    algorithm: str = "chunk", iterations: int | None = None, seed: int = 0
) -> TrainConfig:
    """Settings that train the tiny FLUX on one CPU core in a minute or two.

    Args:
        algorithm: One of :data:`RECIPES`: ``chunk`` (Chunk-GRPO), ``step`` (step-level GRPO) or
            ``forward`` (the forward form).
        iterations: Rollouts; those of the recipe when None.
        seed: Seed of everything.
    """
    if algorithm not in RECIPES:
        raise ValueError(f"algorithm is {algorithm!r}; it must be one of {', '.join(RECIPES)}")
    length = {} if iterations is None else {"iterations": iterations}
    return TrainConfig.of({**_SHARED, **RECIPES[algorithm], **length, "seed": seed})


@dataclass(frozen=True)
class DemoResult:
    """What the demo ends with."""

    outcome: Outcome
    seconds: float
    run_dir: Path
    lora: Path
    pictures: tuple[Path, ...]

    def to_json(self) -> dict[str, object]:
        """The object that ``chunk-grpo demo --json`` prints."""
        before, after, gain = self.outcome.before, self.outcome.after, self.outcome.gain
        return {
            "reward_before": before.mean,
            "reward_after": after.mean,
            "gain": gain.mean,
            "gain_ci95": [gain.low, gain.high],
            "strict_before": before.extra_mean("strict"),
            "strict_after": after.extra_mean("strict"),
            "clean_before": before.extra_mean("clean"),
            "clean_after": after.extra_mean("clean"),
            "ratio_error_first_update": self.outcome.ratio_error_first_update,
            "seconds": round(self.seconds, 1),
            "iterations": self.outcome.iterations,
            **self.outcome.warnings_json(),
            "run_dir": str(self.run_dir),
            "lora": str(self.lora),
        }


def run_demo(
    config: TrainConfig,
    run_dir: Path,
    *,
    resume: bool = False,
    evaluation_seeds: int = 4,
    listener: Listener = lambda event: None,
    check_cancel: CheckCancel = never_cancel,
) -> DemoResult:
    """Train on the tiny FLUX and measure the gain.

    Args:
        config: Settings, usually from :func:`tiny_config`.
        run_dir: Run folder to create, or to resume.
        resume: Go on with the run in ``run_dir``.
        evaluation_seeds: Pictures of each of the 96 held-out captions.
        listener: Hears all events.
        check_cancel: Raises to stop; called after every micro-step.

    Raises:
        FileExistsError: ``run_dir`` holds a run and ``resume`` is False, or somebody trains there.
        FileNotFoundError: ``run_dir`` holds no run and ``resume`` is True.
        ValueError: The run was started with other settings.
    """
    start = time.perf_counter()
    with RunFolder(run_dir).locked(goes_on=resume) as folder:
        policy = tiny_policy(config.lora, config.seed)
        prompts = [caption(scene) for scene in TRAIN]
        outcome = run_experiment(
            policy,
            TinyWorldReward(),
            prompts,
            [caption(scene) for scene in HELD_OUT],
            config,
            folder,
            resume=resume,
            evaluation_seeds=evaluation_seeds,
            listener=listener,
            check_cancel=check_cancel,
            tables={
                "model": {"type": "tiny"},
                "prompts": {"held_out": len(HELD_OUT)},
                "reward": [{"name": "tiny_world", "weight": 1.0}],
                "run": {"pictures": evaluation_seeds},
            },
        )
        files = write_results(outcome, policy, folder, prompts[:4], check_cancel)
    return DemoResult(
        outcome=outcome,
        seconds=time.perf_counter() - start,
        run_dir=run_dir,
        lora=files.lora,
        pictures=files.pictures,
    )
