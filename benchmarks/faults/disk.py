"""Disks that are full or read-only, and several processes in one folder."""

from __future__ import annotations

import random
import shutil
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from .compare import differences
from .kills import empty_place, finish
from .material import Material
from .outcomes import FAILURES, Kind, Outcome, crash, message_of, names_one
from .warm import Ended, Limits, Warm

__all__ = ["DISK_TRIALS", "disk_trial"]

Verdict = tuple[Kind, str, str]
"""Kind, detail, and what was done."""
_TRAIN = ("train", "base.toml", "--out", "run")
_TOO_FULL = ("no space is left", "the file is too large")


def disk_trial(warm: Warm, material: Material, folder: Path, seed: int, number: int) -> Outcome:
    """One trial; its folder stays if something is wrong."""
    rng = random.Random(f"{seed}/disk/{number}")
    place = empty_place(folder, f"disk-{number}", material)
    start = time.monotonic()
    kind, detail, about = DISK_TRIALS[number % len(DISK_TRIALS)](warm, material, place, rng)
    if kind not in FAILURES:
        shutil.rmtree(place)
    return Outcome("disk", number, about, kind, detail, time.monotonic() - start, 0.0)


def _largest_file(warm: Warm, material: Material, place: Path, rng: random.Random) -> Verdict:
    """Files may not grow beyond a size, as on a disk that is full."""
    size = int(10 ** rng.uniform(3.5, 6.2))  # what is said goes to files, too, and must fit
    ended = warm.run(_TRAIN, place, Limits(seconds=60, file_bytes=size))
    return _full(warm, material, place, ended, f"no file beyond {size} bytes")


def _small_disk(warm: Warm, material: Material, place: Path, rng: random.Random) -> Verdict:
    """The run folder lies on a disk of its own, which is too small."""
    size = rng.randrange(40, 2500)
    (place / "run").mkdir()
    about = f"a disk of {size} KiB"
    words = ["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", str(place / "run")]
    try:
        mounted = subprocess.run(words, capture_output=True).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        return Kind.skipped, "only root can mount a disk", about
    try:
        ended = warm.run(_TRAIN, place, Limits(seconds=60))
        shutil.copytree(place / "run", place / "kept")
    finally:
        subprocess.run(["umount", "--lazy", str(place / "run")], check=True)
    (place / "run").rmdir()
    (place / "kept").rename(place / "run")
    return _full(warm, material, place, ended, about)


def _full(warm: Warm, material: Material, place: Path, ended: Ended, about: str) -> Verdict:
    """What a full disk must come to: a clear error, and the same numbers once there is room."""
    if wrong := crash(ended, 0, 1, 2):
        return *wrong, about
    said = message_of(ended.stderr)
    if ended.code and not names_one(said, _TOO_FULL):
        return Kind.unclear, f"does not say that the disk is full: {said[:300]}", about
    if ended.code and not names_one(said, ("cannot write run",)):
        return Kind.unclear, f"names no path: {said[:300]}", about
    if ended.code and not names_one(said, ("resume run", "nothing was written")):
        return Kind.unclear, f"does not say how to go on: {said[:300]}", about
    kind, detail = finish(warm, material, place)
    return (
        (Kind.clear, said, about) if kind is Kind.accepted and ended.code else (kind, detail, about)
    )


def _read_only(warm: Warm, material: Material, place: Path, rng: random.Random) -> Verdict:
    """A finished or stopped run in a folder that cannot be written."""
    source = rng.choice([material.finished, material.stopped])
    shutil.copytree(source, place / "run")
    about = f"resume of the {source.parent.name} run in a read-only folder"
    ended = warm.run(
        ("resume", "run"), place, Limits(seconds=60, read_only=str((place / "run").resolve()))
    )
    if "cannot mount" in ended.stderr or "namespace of its own" in ended.stderr:
        return Kind.skipped, "only root can mount a folder read-only", about
    if wrong := crash(ended, 0, 1, 2):
        return *wrong, about
    said = message_of(ended.stderr)
    if ended.code == 0:
        return Kind.silent, "said that all was well", about
    if "read-only" not in said.lower() and "permission" not in said.lower():
        return Kind.unclear, said[:300], about
    kind, detail = finish(warm, material, place)
    return (Kind.clear, said, about) if kind is Kind.accepted else (kind, detail, about)


def _two_resumes(warm: Warm, material: Material, place: Path, rng: random.Random) -> Verdict:
    """Two processes go on with one run."""
    shutil.copytree(material.stopped, place / "run")
    return _together(warm, material, place, ("resume", "run"), rng, "two resumes of one run")


def _two_trainings(warm: Warm, material: Material, place: Path, rng: random.Random) -> Verdict:
    """Two trainings into one folder."""
    return _together(warm, material, place, _TRAIN, rng, "two trainings into one folder")


def _together(
    warm: Warm,
    material: Material,
    place: Path,
    words: tuple[str, ...],
    rng: random.Random,
    about: str,
) -> Verdict:
    first = warm.start(words, place, Limits(seconds=60))
    delay = rng.choice([0.0, 0.0, 0.01, 0.1, 0.5])
    time.sleep(delay)
    second = warm.start(words, place, Limits(seconds=60))
    has_met = not first.ended()
    ends, about = [first.wait(), second.wait()], f"{about}, {delay} s apart"
    for ended in ends:
        if wrong := crash(ended, 0, 1, 2):
            return *wrong, about
    refused = [message_of(ended.stderr) for ended in ends if ended.code]
    if len(refused) == 2:
        return Kind.difference, f"neither works: {refused[0][:200]}", about
    holders = (*(f"process {child.pid}" for child in (first, second)), "already holds a run")
    if not refused and (has_met or words == _TRAIN):
        return Kind.silent, "both say that all was well", about
    if refused and not names_one(refused[0], holders):
        return Kind.unclear, f"does not say who holds it: {refused[0][:300]}", about
    if wrong := differences(place / "run", material.finished):
        return Kind.difference, wrong, about
    return (Kind.clear, refused[0], about) if refused else (Kind.accepted, "one by one", about)


def _free_names(warm: Warm, material: Material, place: Path, rng: random.Random) -> Verdict:
    """Three trainings at once that choose their folder themselves."""
    words, about = ("train", "base.toml"), "three trainings without --out"
    children = [warm.start(words, place, Limits(seconds=90)) for _ in range(3)]
    for child in children:
        ended = child.wait()
        if wrong := crash(ended, 0, 1, 2):
            return *wrong, about
        if ended.code:
            return Kind.difference, f"refused: {message_of(ended.stderr)[:300]}", about
    runs = sorted((place / "runs").iterdir())
    if len(runs) != 3:
        return Kind.difference, f"{len(runs)} folders for three runs", about
    for run in runs:
        if wrong := differences(run, material.finished):
            return Kind.difference, f"{run.name}: {wrong}", about
    return Kind.accepted, "", about


def _vanishing(warm: Warm, material: Material, place: Path, rng: random.Random) -> Verdict:
    """The folder of a run is renamed or deleted while it trains."""
    child = warm.start(_TRAIN, place, Limits(seconds=60))
    pattern = rng.choice(["run.toml", "metrics.jsonl", "checkpoints/step_000002"])
    while not child.ended() and not (place / "run" / pattern).exists():
        time.sleep(0.002)
    is_renamed = rng.random() < 0.5
    about = f"the folder is {'renamed' if is_renamed else 'deleted'} once it has {pattern}"
    if is_renamed:
        (place / "run").rename(place / "moved")
    else:
        for _ in range(3):
            with suppress(OSError):
                shutil.rmtree(place / "run")
    ended = child.wait()
    if wrong := crash(ended, 0, 1, 2):
        return *wrong, about
    if ended.code == 0:
        return Kind.silent, "said that all was well", about
    said = message_of(ended.stderr)
    if not names_one(said, ("the run folder run was moved or deleted", "cannot write run")):
        return Kind.unclear, said[:300], about
    if is_renamed:
        shutil.rmtree(place / "run", ignore_errors=True)
        (place / "moved").rename(place / "run")
        kind, detail = finish(warm, material, place)
        if kind is not Kind.accepted:
            return kind, detail, about
    return Kind.clear, said, about


DISK_TRIALS: tuple[Callable[[Warm, Material, Path, random.Random], Verdict], ...] = (
    _largest_file,
    _small_disk,
    _two_resumes,
    _read_only,
    _two_trainings,
    _vanishing,
    _largest_file,
    _small_disk,
    _free_names,
)
