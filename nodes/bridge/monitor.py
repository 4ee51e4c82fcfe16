"""Trainings that run in this ComfyUI: where each stands, who is told, and how one is ended early.

What was learnt and sampled lies in the run folder (``runs/view.py``). Here is only what no file
holds: the phase, the time that is left, what the person is asked, the wishes to stop and to go on,
and how a run ended.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import comfy.model_management

from ...chunk_grpo_core.method.asking import Question
from ...chunk_grpo_core.method.policy_reward import units_of_reward
from ...chunk_grpo_core.method.reward import Reward
from ...chunk_grpo_core.presets.cost import units_of
from ...chunk_grpo_core.train.config import TrainConfig
from ...chunk_grpo_core.train.events import (
    AdvantagesEnd,
    AlarmRaised,
    Asked,
    EvaluationProgress,
    Event,
    HeldOutEnd,
    IterationEnd,
    PhaseProgress,
    RewardWait,
    RunEnd,
    RunStart,
)
from .host import send_event

__all__ = ["Asker", "LiveRun", "live_run", "run_of_node", "watched_run"]

_PAUSE = 0.2
"""Seconds between two messages about progress."""
_REMEMBERED = 5
"""Iterations whose time tells what the next ones will take."""

_NEWS = (RunStart, AdvantagesEnd, IterationEnd, AlarmRaised, HeldOutEnd, RunEnd)
"""Events after which the run folder holds something new."""

_runs: dict[str, LiveRun] = {}
"""Name -> run, of all trainings since ComfyUI started."""
_lock = threading.Lock()


@dataclass(frozen=True)
class Asker:
    """The node that trains, as pages know it."""

    node: str = ""
    """Its execution id, such as 7 or 12:7."""
    workflow: str = ""
    """Id of the workflow; empty when the prompt came from no page."""


class LiveRun:
    """One training; listens to its events and tells every open page."""

    def __init__(
        self,
        name: str,
        asker: Asker,
        config: TrainConfig,
        held_out: int,
        reward: Reward | None = None,
    ) -> None:
        """Remember; ``held_out`` pictures are drawn in a measurement, and ``reward`` scores all."""
        self.name, self.asker = name, asker
        pictures = config.prompts_per_iteration * config.group_size
        judged = units_of_reward(reward) if reward else 0
        self._units = units_of(config, reward=reward)
        # What an iteration takes, in measurements, as long as none has been sampled.
        self._in_measurements = (
            pictures * self._units.total / (max(held_out, 1) * (config.grid.steps + judged))
        )
        self._iterations, self._every = config.iterations, config.evaluate_every
        self._state, self._message = "running", ""
        self._phase, self._iteration, self._fraction = "before", 0, 0.0
        self._seconds: deque[float] = deque(maxlen=_REMEMBERED)
        self._iterations_timed = 0
        self._measuring = 0.0
        self._first: tuple[float, float] | None = None
        self._phases: dict[str, float] = {}
        self._expected = 0.0
        self._began, self._told = time.monotonic(), 0.0
        self._news = 0
        self._stop = threading.Event()
        self._question: Question | None = None
        self._goes_on: tuple[str, ...] = ()

    @property
    def is_running(self) -> bool:
        """Whether it has not ended yet."""
        return self._state == "running"

    def wants_stop(self) -> bool:
        """Whether somebody pressed Stop and keep."""
        return self._stop.is_set()

    def stop(self) -> None:
        """End after the current update and keep what was learnt."""
        self._stop.set()
        self._tell()

    @property
    def question(self) -> Question | None:
        """What the person is asked, if the run waits for them."""
        return self._question

    def go_on(self) -> None:
        """Go on with what was said about the question, if there is one."""
        if (question := self._question) is not None:
            self._goes_on = question.batches

    def goes_on(self, question: Question) -> bool:
        """Whether somebody wants to go on with what was said about this question."""
        return self._goes_on == question.batches

    def end(self, state: str, message: str = "") -> None:
        """Say how it ended: finished, stopped, cancelled or failed."""
        self._state, self._message, self._question = state, message, None
        self._news += 1
        self._tell()

    def status(self) -> dict[str, Any]:
        """Where it stands, JSON-ready; ``news`` counts what has changed in the run folder."""
        question = self._question
        return {
            "run": self.name,
            "node": self.asker.node,
            "workflow": self.asker.workflow,
            "state": self._state,
            "message": self._message,
            "phase": "ask" if question else self._phase,
            "asks": question and question.to_json(),
            "iteration": self._iteration,
            "iterations": self._iterations,
            "fraction": round(self._fraction, 4),
            "seconds_left": self._seconds_left() if self.is_running and not question else None,
            "stopping": self.is_running and self.wants_stop(),
            "news": self._news,
        }

    def listen(self, event: Event) -> None:
        """Hear one event of the training."""
        is_waiting = isinstance(event, RewardWait | Asked)
        self._message = event.text if isinstance(event, RewardWait) else ""
        if isinstance(event, Asked):
            self._question, self._goes_on = event.question, ()
        if is_waiting:
            self._phases.clear()  # they tell how long somebody waited, too
        if isinstance(event, EvaluationProgress):
            self._phase, self._fraction = event.which, event.fraction
            if event.which == "before":
                self._time_measurement(event.fraction)
        elif isinstance(event, RunStart):
            self._measuring = self._measuring or time.monotonic() - self._began
            self._phase, self._fraction = "rollout", 0.0
            self._iteration = event.first_iteration
        elif isinstance(event, PhaseProgress):
            self._iteration, self._fraction = event.iteration, event.fraction
            self._phase = event.phase
            self._time_phase(event.phase)
        elif isinstance(event, IterationEnd):
            seconds: Any = event.metrics["seconds"]
            if self._iterations_timed == 1:
                self._seconds.clear()  # the first one is slower than all others
            self._iterations_timed += 1
            self._seconds.append(seconds["total"])
            self._iteration, self._fraction = event.iteration + 1, 0.0
            self._phase = "rollout"
        elif isinstance(event, RunEnd):
            self._iteration, self._fraction = event.iterations, 1.0
        is_news = isinstance(event, _NEWS)
        self._news += is_news
        if is_news or is_waiting or time.monotonic() - self._told >= _PAUSE:
            self._tell()

    def _time_measurement(self, fraction: float) -> None:
        """Learn what a measurement takes, without what came before its first news: models load
        there."""
        now = time.monotonic()
        if self._first is None:
            self._first = now, fraction
        elif (done := fraction - self._first[1]) > 0:
            self._measuring = (now - self._first[0]) / done

    def _time_phase(self, phase: str) -> None:
        """Learn from the rollouts and scores of the first iteration what all of it takes.

        They call the model with as many samples at once as the update does. A measurement has few
        at once, and a sample takes longer there.
        """
        self._phases.setdefault(phase, time.monotonic())
        if phase != "update" or self._expected or len(self._phases) < 3 or not self._units.rollout:
            return
        began, scored, now = (self._phases[name] for name in ("rollout", "score", "update"))
        of_model = (self._units.total - self._units.judged) / self._units.rollout
        self._expected = (scored - began) * of_model + now - scored

    def _seconds_left(self) -> float | None:
        """For all that is still to be trained and measured; None before anything is known.

        Until an iteration is done, its time comes from that of its rollouts, and before them from
        that of the first measurement, by units of work (``presets/cost.py``).
        """
        measuring, left_of_it = self._measuring, 0.0
        if self._phase == "before":
            if not measuring:
                return None
            left_of_it = measuring * (1 - self._fraction)
        if self._phase == "after":
            return measuring * (1 - self._fraction)
        seconds = self._seconds or [self._expected or self._in_measurements * measuring]
        is_between = self._phase in ("before", "during")
        done = self._iteration + (0.0 if is_between else self._fraction)
        left = max(self._iterations - done, 0.0)
        between = range(self._iteration + 1, self._iterations)
        measurements = 1 + sum(1 for i in between if self._every and i % self._every == 0)
        of_iterations = left * sum(seconds) / len(seconds)
        return left_of_it + of_iterations + measurements * measuring

    def _tell(self) -> None:
        self._told = time.monotonic()
        send_event("chunk_grpo.status", self.status())


@contextmanager
def watched_run(
    name: str, asker: Asker, config: TrainConfig, held_out: int, reward: Reward | None = None
) -> Iterator[LiveRun]:
    """Let pages watch a training for as long as the block lasts, and remember how it ended; a
    measurement draws ``held_out`` pictures, and ``reward`` scores all."""
    run = LiveRun(name, asker, config, held_out, reward)
    with _lock:
        for old in [n for n, r in _runs.items() if r.asker == asker and not r.is_running]:
            del _runs[old]
        _runs[name] = run
    try:
        yield run
    except comfy.model_management.InterruptProcessingException:
        run.end("cancelled")
        raise
    except BaseException as error:
        run.end("failed", f"{type(error).__name__}: {error}")
        raise
    run.end("stopped" if run.status()["iteration"] < config.iterations else "finished")


def live_run(name: str) -> LiveRun | None:
    """The training of this name, if ComfyUI has run it since it started."""
    return _runs.get(name)


def run_of_node(asker: Asker) -> LiveRun | None:
    """The newest training of a node; else one that runs now in a node of that id, of a workflow
    that the page has under another id."""
    with _lock:
        runs = list(_runs.values())[::-1]
    same_id = [run for run in runs if run.asker.node == asker.node]
    same_workflow = [run for run in same_id if run.asker.workflow in ("", asker.workflow)]
    return next(iter(same_workflow), next((run for run in same_id if run.is_running), None))
