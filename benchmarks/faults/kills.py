"""Runs that are killed and stopped at any moment, then resumed: the same run must come out.

One trial starts a training, ends it with a signal (or two), goes on with ``resume``, which may be
ended as well, and at last lets it finish. The moment is random: so many seconds after the start, or
the instant at which a file of the run folder appears.
"""

from __future__ import annotations

import random
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .compare import differences, rows_of, whole_iterations
from .material import Material
from .outcomes import Kind, Outcome, message_of
from .warm import Child, Ended, Limits, Warm

__all__ = ["Trial", "finish", "kill_trial", "trials"]

_SIGNALS: tuple[tuple[str, ...], ...] = (
    ("SIGKILL",),
    ("SIGKILL",),
    ("SIGTERM",),
    ("SIGTERM",),
    ("SIGINT",),
    ("SIGINT",),
    ("SIGHUP",),
    ("SIGINT", "SIGINT"),
    ("SIGTERM", "SIGTERM"),
    ("SIGHUP", "SIGTERM"),
    ("SIGTERM", "SIGKILL"),
    ("SIGINT", "SIGKILL"),
)
_FILES = (
    "run.toml",
    "metrics.jsonl",
    "held_out.jsonl",
    "group",
    "samples",
    "checkpoints/*.partial",
    "checkpoints/*.partial/optimizer.safetensors",
    "checkpoints/step_000002",
    "checkpoints/step_000004",
    "checkpoints/step_000006",
    "evaluation.json",
    "*.partial",
    "lora.safetensors",
    "plots",
    "plots/dynamics.png",
)
_GRACE = 15.0
"""Seconds in which a run that was asked to stop must have stopped."""
_LIMITS = Limits(seconds=90)


@dataclass(frozen=True)
class Trial:
    """What became of one trial."""

    outcome: Outcome
    kills: int


def trials(warm: Warm, material: Material, folder: Path, kills: int, seed: int) -> list[Trial]:
    """Trials until ``kills`` signals have hit a running process."""
    done: list[Trial] = []
    while sum(trial.kills for trial in done) < kills:
        done.append(kill_trial(warm, material, folder, seed, len(done)))
    return done


def kill_trial(warm: Warm, material: Material, folder: Path, seed: int, number: int) -> Trial:
    """One trial; its folder stays if something is wrong."""
    rng = random.Random(f"{seed}/kills/{number}")
    place = folder / f"kills-{number}"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    shutil.copy(material.finished.parent / "base.toml", place)
    start = time.monotonic()
    story: list[str] = []
    hits, kind, detail = 0, Kind.accepted, ""
    for _ in range(rng.randrange(1, 4)):
        signals = rng.choice(_SIGNALS)
        child = warm.start(_command(place), place, _LIMITS)
        moment = _wait_for_moment(rng, child, place / "run", material.seconds)
        hit, ended = _hit(rng, child, signals)
        story.append(f"{'+'.join(signals)} {moment}: {_how(ended)}")
        hits += len(signals) if hit else 0
        if hit and (wrong := _stopped_badly(place / "run", ended, signals)):
            kind, detail = wrong
            break
        if not hit and ended.code != 0:
            kind, detail = Kind.difference, f"refused: {message_of(ended.stderr)}"
            break
    if kind is Kind.accepted:
        kind, detail = finish(warm, material, place)
    about = "; ".join(story)
    outcome = Outcome("kills", number, about, kind, detail, time.monotonic() - start, 0.0)
    if kind is Kind.accepted:
        shutil.rmtree(place)
    return Trial(outcome, hits)


def _command(place: Path) -> tuple[str, ...]:
    if (place / "run" / "run.toml").exists():
        return ("resume", "run")
    return ("train", "base.toml", "--out", "run")


def _wait_for_moment(rng: random.Random, child: Child, run: Path, seconds: float) -> str:
    """Wait until a time or a file, whichever the seed says, or until the child ends."""
    has_come: Callable[[], bool]
    if rng.random() < 0.5:
        end = time.monotonic() + rng.uniform(0.0, seconds)
        moment, has_come = f"after {end - time.monotonic():.2f} s", lambda: time.monotonic() > end
    else:
        pattern = rng.choice(_FILES)
        before = set(run.glob(pattern))
        moment = f"when {pattern} appears"

        def has_come() -> bool:
            return bool(set(run.glob(pattern)) - before)

    while not child.ended() and not has_come():
        time.sleep(0.001)
    return moment


def _hit(rng: random.Random, child: Child, signals: tuple[str, ...]) -> tuple[bool, Ended]:
    """Send the signals; returns whether the first one met a running process, and its end."""
    if child.ended():
        return False, child.wait()
    child.send(signal.Signals[signals[0]])
    for name in signals[1:]:
        time.sleep(rng.choice([0.0, 0.01, 0.05, 0.3]))
        child.send(signal.Signals[name])
    return True, child.wait(_GRACE)


def _how(ended: Ended) -> str:
    return "still running" if ended.code is None else f"status {ended.code}"


def _stopped_badly(run: Path, ended: Ended, signals: tuple[str, ...]) -> tuple[Kind, str] | None:
    """What is wrong with the end of a process that was told to stop."""
    if ended.code is None:
        return Kind.timeout, f"still there {_GRACE:.0f} s after {'+'.join(signals)}"
    if "Traceback (most recent call last)" in ended.stderr:
        return Kind.traceback, f"{'+'.join(signals)}: {ended.stderr.splitlines()[-1][:200]}"
    if "SIGKILL" in signals or len(signals) > 1 or ended.code == 0:
        return None
    if "base model" not in ended.stderr:
        return None  # it had not begun: nothing can be lost
    if ended.code < 0:
        return Kind.difference, f"{signals[0]} ended it without a checkpoint and a word"
    said = message_of(ended.stderr)
    done, kept = len(rows_of(run / "metrics.jsonl")), whole_iterations(run)
    if done and kept < done:
        return Kind.difference, f"{signals[0]}: {done} iterations were done, {kept} are kept"
    if (run / "run.toml").exists() and "resume" not in said:
        return Kind.unclear, f"{signals[0]}: nothing says how to go on: {said[:200]}"
    return None


def finish(warm: Warm, material: Material, place: Path) -> tuple[Kind, str]:
    """Let it end undisturbed, and compare."""
    ended = warm.run(_command(place), place, _LIMITS)
    if ended.code is None:
        return Kind.timeout, "the last resume does not end"
    if ended.code != 0:
        is_bug = "Traceback (most recent call last)" in ended.stderr
        kind = Kind.traceback if is_bug else Kind.difference
        return kind, f"cannot be resumed: {message_of(ended.stderr)[-300:]}"
    wrong = differences(place / "run", material.finished)
    return (Kind.difference, wrong) if wrong else (Kind.accepted, "")
