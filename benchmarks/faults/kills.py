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

from .compare import differences, lines_of, rows_of, whole_iterations
from .material import KILLED, Material
from .outcomes import Kind, Outcome, crash, message_of
from .warm import Child, Ended, Limits, Warm

__all__ = ["Trial", "empty_place", "finish", "kill_trial", "stopped_badly"]

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


def empty_place(folder: Path, name: str, material: Material) -> Path:
    """A new folder that holds nothing but the configuration of the finished run."""
    place = folder / name
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    shutil.copy(material.finished.parent / "base.toml", place)
    return place


def kill_trial(warm: Warm, material: Material, folder: Path, seed: int, number: int) -> Trial:
    """One trial; its folder stays if something is wrong."""
    rng = random.Random(f"{seed}/kills/{number}")
    place = empty_place(folder, f"kills-{number}", material)
    start = time.monotonic()
    story: list[str] = []
    hits, kind, detail = 0, Kind.accepted, ""
    for _ in range(rng.randrange(1, 4)):
        signals = rng.choice(_SIGNALS)
        found = lines_of(place / "run" / "metrics.jsonl")
        child = warm.start(_command(place), place, _LIMITS)
        moment = _wait_for_moment(rng, child, place / "run", material.seconds)
        before = len(rows_of(place / "run" / "metrics.jsonl"))
        hit, ended = _hit(rng, child, signals)
        story.append(f"{'+'.join(signals)} {moment}: {_how(ended)}")
        hits += len(signals) if hit else 0
        if hit and (wrong := stopped_badly(place / "run", ended, signals, before, found)):
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


_EVERY: int = KILLED["checkpoint_every"]


def stopped_badly(
    run: Path, ended: Ended, signals: tuple[str, ...], before: int, found: list[str]
) -> tuple[Kind, str] | None:
    """What is wrong with the end of a process that was told to stop, or nothing.

    Args:
        run: Its run folder.
        ended: How it ended, :data:`_GRACE` seconds later at the latest.
        signals: What it was sent.
        before: Iterations that were done when the first one was sent.
        found: Lines of its metrics when it began; a killed process may have left rows that no
            checkpoint holds, and they stay until their iteration is done again.
    """
    names = "+".join(signals)
    if ended.code is None:
        return Kind.timeout, f"still there {_GRACE:.0f} s after {names}"
    numbers = [signal.Signals[name].value for name in signals]
    killed = [-number for number in numbers]
    if wrong := crash(ended, 0, *killed, *(128 + number for number in numbers)):
        return wrong[0], f"{names}: {wrong[1]}"
    done, kept = len(rows_of(run / "metrics.jsonl")), whole_iterations(run)
    if ended.code == 0 and not (run / "lora.safetensors").is_file():
        return Kind.silent, f"{names}: said that all was well, and there is no LoRA"
    if ended.code in killed and ("SIGKILL" in signals or len(signals) > 1):
        lost = done - kept >= 2 * _EVERY
        return (Kind.difference, f"{names}: {kept} of {done} are kept") if lost else None
    if ended.code in killed:  # before it could hear a signal, nothing may have happened yet
        has_begun = bool(ended.stderr.strip()) or done > before
        return (Kind.difference, f"{names} ended it without a word") if has_begun else None
    if done > before + 1:
        return Kind.difference, f"{names}: {done - before} iterations were done nevertheless"
    if ended.code == 0:
        return None
    if kept < done and lines_of(run / "metrics.jsonl") != found:
        return Kind.difference, f"{names}: {done} iterations were done, {kept} are kept"
    if ended.stderr.strip() in ("", "stopped") and done == before:
        return None  # it was still importing, and had nothing to say yet
    said = ended.stderr.rpartition("stopped")[2]
    way_on = "chunk-grpo resume run" if (run / "run.toml").exists() else "nothing was written"
    if way_on not in said:
        return Kind.unclear, f"{names}: does not say {way_on!r}: {said[:200]}"
    return None


def finish(warm: Warm, material: Material, place: Path) -> tuple[Kind, str]:
    """Let it end undisturbed, and compare; what a checkpoint holds must not be trained again."""
    rows = place / "run" / "metrics.jsonl"
    kept = lines_of(rows)[: whole_iterations(place / "run")]
    ended = warm.run(_command(place), place, _LIMITS)
    if wrong := crash(ended, 0, 1, 2):
        return wrong[0], f"the last resume: {wrong[1]}"
    if ended.code != 0:
        return Kind.difference, f"cannot be resumed: {message_of(ended.stderr)[-300:]}"
    if lines_of(rows)[: len(kept)] != kept:  # with their times
        return Kind.difference, f"iterations 1 to {len(kept)} were trained again"
    wrong = differences(place / "run", material.finished)
    return (Kind.difference, wrong) if wrong else (Kind.accepted, "")
