"""Run a training on a native MODEL: policy, run folder, progress, clean-up."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import torch
from torch import Tensor

from ...chunk_grpo_core.configfile.record import COMFYUI
from ...chunk_grpo_core.disk.atomic import CannotWrite
from ...chunk_grpo_core.lora.files import save_lora
from ...chunk_grpo_core.method.asking import Question
from ...chunk_grpo_core.method.reward import NoReward, NothingScored, Reward
from ...chunk_grpo_core.models.tensor_cache import digest
from ...chunk_grpo_core.runs.experiment import run_experiment
from ...chunk_grpo_core.runs.folder import RunFolder
from ...chunk_grpo_core.runs.outcome import Outcome
from ...chunk_grpo_core.runs.results import write_pictures
from ...chunk_grpo_core.runs.unbegun import dropped_if_unbegun
from ...chunk_grpo_core.train.config import TrainConfig
from ...chunk_grpo_core.train.events import (
    Asked,
    EvaluationProgress,
    Event,
    IterationEnd,
    PhaseProgress,
    RewardWait,
    RolloutEnd,
    RunEnd,
    RunStart,
    broadcast,
)
from ...chunk_grpo_core.watch.pictures import best_first, enlargement, image_grid
from ..types import PromptSet, TrainingLog
from .conditioning import REFERENCE, Conditioning
from .glimpse import Glimpse
from .host import (
    check_interrupt,
    new_run_folder,
    progress_bar,
    run_folder,
    show_progress,
    show_text,
)
from .monitor import Asker, watched_run
from .picked_prompts import as_recorded
from .trainee import trainee_of

__all__ = ["Progress", "RunRequest", "check_request", "open_run", "train_lora"]

logger = logging.getLogger(__name__)

_NOBODY = Asker()
_EVALUATION = 100
_TRAINING = 800
"""Units of the progress bar for one evaluation and for the training."""


@dataclass(frozen=True)
class RunRequest:
    """Where a run is kept, and whether it goes on."""

    name: str
    """Folder under output/chunk_grpo; empty takes the next free number."""
    resume: bool


def check_request(request: RunRequest) -> None:
    """Make sure that a run can begin or go on under this name; nothing is written.

    Raises:
        ValueError: The name cannot be a folder; it is taken by another run; or there is nothing
            to resume.
    """
    if not request.name:
        if request.resume:
            raise ValueError("resume is on, but run_name is empty; write the name of the run")
        return
    is_there = RunFolder(run_folder(request.name)).holds_a_run
    if request.resume and not is_there:
        raise ValueError(f"there is no run called {request.name!r} to resume; turn resume off")
    if is_there and not request.resume:
        raise ValueError(
            f"a run called {request.name!r} exists already; turn resume on to go on with it, "
            "or choose another run_name"
        )


@contextmanager
def open_run(request: RunRequest) -> Iterator[RunFolder]:
    """Lock the run folder for as long as the block lasts.

    Raises:
        ValueError: See :func:`check_request`.
        FileExistsError: Somebody trains there.
        CannotWrite: The folder cannot be made.
    """
    check_request(request)
    named = nullcontext(run_folder(request.name)) if request.name else new_run_folder()
    with named as path, RunFolder(path).locked(goes_on=request.resume) as locked:
        yield locked


class Progress:
    """Turn the trainer's events into ComfyUI's progress bar and live preview: what is being drawn,
    then the first group of each iteration, best first."""

    def __init__(self, iterations: int, latent_format: Any) -> None:
        self._iterations = iterations
        self._bar = progress_bar(2 * _EVALUATION + _TRAINING)
        self._value = 0
        self._shown = -1
        self._is_drawing = True
        self._glimpse = Glimpse(latent_format, self._show_pictures)

    def on_denoised(self, denoised: Tensor) -> None:
        """See :class:`~.policy.NativePolicy`; calls of an update show nothing new."""
        if self._is_drawing:
            self._glimpse(denoised)

    def _show_pictures(self, pictures: Tensor, scale: int) -> None:
        show_progress(self._bar, self._value, image_grid(pictures, scale=scale))

    def __call__(self, event: Event) -> None:
        picture = None
        if isinstance(event, (RolloutEnd, RunStart, IterationEnd, RunEnd)):
            self._is_drawing = not isinstance(event, RolloutEnd)
        if isinstance(event, EvaluationProgress):
            if event.which == "during":
                return
            start = 0 if event.which == "before" else _EVALUATION + _TRAINING
            self._value = start + int(_EVALUATION * event.fraction)
        elif isinstance(event, PhaseProgress):
            self._is_drawing = event.phase == "rollout"
            done = (event.iteration + event.fraction) / self._iterations
            self._value = _EVALUATION + int(_TRAINING * done)
        elif isinstance(event, RolloutEnd) and event.iteration != self._shown:
            self._shown = event.iteration
            images = event.images[best_first(event.rewards)]
            picture = image_grid(images, scale=enlargement(images))
        elif isinstance(event, RewardWait):
            show_text(event.text)
            return
        elif isinstance(event, Asked):
            show_text(_waits_for(event.question) if event.question else "")
            return
        else:
            return
        show_progress(self._bar, self._value, picture)


def _waits_for(question: Question) -> str:
    """What is shown below the node while the run waits for its person."""
    said = f"{question.given} of {question.wanted} clicks" if question.wanted else "your clicks"
    return f"Waits for you ({question.why}; {said}): taste {question.folder.name}"


def train_lora(
    *,
    model: Any,
    vae: Any,
    prompts: PromptSet,
    reward: Reward | None,
    latent: Mapping[str, Any] | None,
    config: TrainConfig,
    request: RunRequest,
    evaluation_seeds: int,
    asker: Asker = _NOBODY,
    continue_from: dict[str, Tensor] | None = None,
    negative: Conditioning | None = None,
    cfg: float = 1.0,
    activation_offloading: bool = False,
    sampler: Any = None,
) -> tuple[dict[str, Tensor], TrainingLog]:
    """Measure, train, measure again.

    The measurement before is that of the MODEL alone, also when ``continue_from`` gives the weights
    the LoRA starts with. A checkpoint of a resumed run takes their place. Pages can watch the run
    and end it early; what was learnt until then is measured and returned. A ``sampler`` (SAMPLER)
    makes rollouts and measurements of the algorithm ``forward``. Without a ``reward``, which the
    algorithm ``preference`` does not need, nothing is measured. Without a ``latent`` pictures have
    the size of :func:`~.own_defaults.empty_latent`.

    Returns:
        The LORA_MODEL and the log.

    Raises:
        ValueError: Something does not fit; nothing has been trained, and no run is left.
        InterruptProcessingException: The user pressed Cancel; the run can be resumed.
        NothingScored: The reward scored no picture; the run can be resumed.
        OSError: Somebody trains in the folder; the disk is full (the run can be resumed); or the
            folder was moved or deleted.
    """
    with torch.inference_mode(False):
        trainee = trainee_of(
            model=model,
            vae=vae,
            prompts=prompts,
            reward=reward,
            latent=latent,
            config=config,
            continue_from=continue_from,
            negative=negative,
            cfg=cfg,
            activation_offloading=activation_offloading,
            sampler=sampler,
        )
        policy, is_judged = trainee.policy, config.algorithm == "preference"
        algorithm = None if is_judged else trainee.algorithm(config, prompts.train)
        is_scored = not isinstance(trainee.reward, NoReward)
        progress = Progress(config.iterations, model.get_model_object("latent_format"))
        policy.on_denoised = progress.on_denoised
        drawn = len(prompts.held_out) * (evaluation_seeds if is_scored else 1)
        with (
            open_run(request) as folder,
            watched_run(folder.path.name, asker, config, drawn, trainee.reward) as run,
            _ended_well(folder, is_new=not request.resume),
        ):
            if is_judged and request.resume:
                prompts = as_recorded(prompts, folder)
            outcome = run_experiment(
                policy,
                trainee.reward,
                prompts.train,
                prompts.held_out,
                config,
                folder,
                resume=request.resume,
                algorithm=algorithm or trainee.algorithm(config, prompts.train),
                evaluation_seeds=evaluation_seeds,
                listener=broadcast(progress, run.listen),
                check_cancel=check_interrupt,
                wants_stop=run.wants_stop,
                goes_on=run.goes_on,
                limit=trainee.limit,
                tables={
                    "model": {**COMFYUI["model"], **_guidance(prompts, negative, cfg)},
                    "run": {
                        "pictures": evaluation_seeds,
                        "continue_from": "" if continue_from is None else _digest(continue_from),
                    },
                },
            )
            lora = policy.lora_model()
            folder.check_in_place()
            save_lora(lora, folder.lora_file, outcome.lora_metadata())
            _draw(outcome, folder)
        return lora, TrainingLog(outcome, str(folder.path))


def _guidance(prompts: PromptSet, negative: Conditioning | None, cfg: float) -> dict[str, object]:
    """What is beside the prompts that guides the MODEL, for the record of the run."""
    entries = [extras for c in prompts.conditioning.values() for _, extras in c]
    embedded = {extras["guidance"] for extras in entries if "guidance" in extras}
    references = next((extras[REFERENCE] for extras in entries if REFERENCE in extras), None)
    return {
        "cfg": float(cfg),
        "negative": "" if cfg == 1.0 or negative is None else _digest(negative),
        "guidance": sorted(map(float, embedded)),
        "reference": "" if references is None else _digest(references),
    }


def _digest(value: Any) -> str:
    return f"SHA-256 {digest(_hashable(value))[:16]}"


def _hashable(value: Any) -> Any:
    """Lists and dicts of tensors and plain values; of anything else the name of its type."""
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, dict):
        return {str(key): _hashable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_hashable(item) for item in value]
    is_plain = value is None or isinstance(value, (bool, int, float, str))
    return value if is_plain else type(value).__name__


@contextmanager
def _ended_well(folder: RunFolder, *, is_new: bool) -> Iterator[None]:
    """Leave no run behind that failed before its first iteration was done; say with the inputs of
    the node how to go on when the reward failed or the disk is full."""
    cancelled = comfy.model_management.InterruptProcessingException
    try:
        with dropped_if_unbegun(folder, cancelled) if is_new else nullcontext():
            yield
    except Exception as error:
        way = (
            "then run again"
            if not folder.holds_a_run
            else f"then write {folder.path.name} into run_name, turn resume on and run again"
        )
        if isinstance(error, NothingScored):
            raise NothingScored(f"{error}, {way}") from error
        if isinstance(error, CannotWrite):
            raise OSError(f"{error}, {way}") from error
        raise


def _draw(outcome: Outcome, folder: RunFolder) -> None:
    """Put the plots into the run folder; without matplotlib the training is not lost."""
    try:
        write_pictures(outcome, folder)
    except ImportError as error:
        logger.warning("the plots of %s are not drawn: %s", folder.path, error)
