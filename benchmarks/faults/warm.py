"""Real command lines that do not pay for importing PyTorch: one warm process forks them.

Every command line is a process of its own: it runs ``python -m chunk_grpo_core`` with its own
arguments, folder, standard streams and limits, and is killed, crashes and runs out of memory alone.
Only its imports are those of the process that it was forked from. ``Warm(cold=True)`` starts
each of them from nothing instead, five seconds slower.

The two ends talk in JSON, one line each way::

    {"do": "start", "argv": [...], "cwd": "...", ...}    {"pid": 123}
    {"do": "wait", "pid": 123, "seconds": 20}            {"status": 0, "mib": 410}  null: late
"""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["Child", "Ended", "Limits", "Warm"]

ROOT = Path(__file__).resolve().parents[2]
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a command line may take."""

    seconds: float = 30.0
    memory_mib: int = 3000
    """Of address space beyond what the warm process has; more is refused by the kernel."""
    file_bytes: int | None = None
    """Largest file that it may write: what is beyond fails as on a full disk."""
    read_only: str = ""
    """Folder that it sees read-only; needs root on Linux."""


@dataclass(frozen=True)
class Ended:
    """How a command line ended."""

    code: int | None
    """Exit status; minus the signal's number if one ended it; None if it was out of time."""
    stdout: str
    stderr: str
    seconds: float
    mib: float
    """Largest resident memory."""


@dataclass
class Child:
    """A command line that runs."""

    warm: Warm
    pid: int
    folder: Path
    number: int
    limits: Limits
    started: float = field(default_factory=time.monotonic)

    def send(self, number: int) -> None:
        """Send a signal; one that has ended already gets none."""
        if not self.ended():
            os.kill(self.pid, number)

    def ended(self) -> bool:
        """Whether it has ended; :meth:`wait` then tells how."""
        return self.warm.ask(do="peek", pid=self.pid)["ended"]

    def text(self, stream: str) -> str:
        """What it has written so far to ``stdout`` or ``stderr``."""
        file = self.warm.stream(self.folder, self.number, stream)
        return file.read_text("utf-8", "replace") if file.exists() else ""

    def wait(self, seconds: float | None = None) -> Ended:
        """Wait until it ends; one that takes longer than its limit is killed."""
        left = self.limits.seconds - (time.monotonic() - self.started)
        left = max(0.0, left) if seconds is None else seconds
        told = self.warm.ask(do="wait", pid=self.pid, seconds=left)
        status = told["status"]
        code = None if status is None else os.waitstatus_to_exitcode(status)
        taken = time.monotonic() - self.started
        return Ended(code, self.text("stdout"), self.text("stderr"), taken, told["mib"])


class Warm:
    """The warm process, seen from outside; a context manager."""

    def __init__(self, *, cold: bool = False) -> None:
        """Start it.

        Args:
            cold: Let every command line import everything by itself.
        """
        words = [sys.executable, "-m", "benchmarks.faults.warm", *(["--cold"] if cold else [])]
        self._process = subprocess.Popen(
            words,
            cwd=ROOT,
            env=_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is for the campaign, not for what it tests
        )
        self._count = 0

    def __enter__(self) -> Warm:
        return self

    def __exit__(self, *error: object) -> None:
        assert self._process.stdin
        self._process.stdin.close()  # it kills what still runs, and ends
        self._process.wait()

    def ask(self, **question: Any) -> dict[str, Any]:
        """Say one line, hear one."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def start(self, argv: list[str] | tuple[str, ...], folder: Path, limits: Limits) -> Child:
        """Start a command line in a folder.

        Args:
            argv: What stands behind ``chunk-grpo``.
            folder: Where it runs.
            limits: What it may take.
        """
        self._count += 1
        files = {name: str(self.stream(folder, self._count, name)) for name in ("stdout", "stderr")}
        told = self.ask(
            do="start",
            argv=list(argv),
            cwd=str(folder),
            memory=limits.memory_mib,
            file_bytes=limits.file_bytes,
            read_only=limits.read_only,
            **files,
        )
        return Child(self, told["pid"], folder, self._count, limits)

    def run(
        self, argv: list[str] | tuple[str, ...], folder: Path, limits: Limits | None = None
    ) -> Ended:
        """Run a command line to its end."""
        return self.start(argv, folder, limits or Limits()).wait()

    @staticmethod
    def stream(folder: Path, number: int, name: str) -> Path:
        """Where a command line's standard stream goes: beside its folder, not into it."""
        return folder.parent / f".{folder.name}-{number}-{name}"


def _environment() -> dict[str, str]:
    fixed = {"HF_HUB_OFFLINE": "1", "MPLBACKEND": "Agg", "COLUMNS": "400", "TERM": "dumb"}
    threads = {"OMP_NUM_THREADS": "1", "MKL_CBWR": "AUTO,STRICT"}
    return {**os.environ, **fixed, **threads, "NO_COLOR": "1", "PYTHONFAULTHANDLER": "1"}


# What follows runs in the warm process.


def _serve(cold: bool) -> None:
    """Do as told until nobody tells anything."""
    if not cold:
        _import_everything()
    running: set[int] = set()
    for line in sys.stdin:
        question = json.loads(line)
        if question["do"] == "start":
            answer: dict[str, Any] = {"pid": _fork(question, cold)}
            running.add(answer["pid"])
        elif question["do"] == "peek":
            answer = {"ended": _ends_within(question["pid"], 0.0)}
        elif question["do"] == "memory":
            answer = {"mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}
        else:
            answer = _wait(question["pid"], question["seconds"])
            running.discard(question["pid"])
        print(json.dumps(answer), flush=True)
    for pid in running:
        os.kill(pid, signal.SIGKILL)


def _import_everything() -> None:
    """What commands import while they work."""
    from importlib import import_module

    import torch

    torch.set_num_threads(1)
    for name in ("matplotlib.pyplot", "peft.tuners.lora", "safetensors.torch", "PIL.Image"):
        import_module(name)
    diffusers = import_module("diffusers")
    assert diffusers.FluxTransformer2DModel
    import_module("chunk_grpo_core.cli.app")
    for name in ("models.tiny.family", "models.tiny.reward", "rewards.analytic", "watch.plots"):
        import_module(f"chunk_grpo_core.{name}")


def _wait(pid: int, seconds: float) -> dict[str, Any]:
    if not _ends_within(pid, seconds):
        os.killpg(pid, signal.SIGKILL)
        _, _, usage = os.wait4(pid, 0)
        return {"status": None, "mib": usage.ru_maxrss / 1024}
    _, status, usage = os.wait4(pid, 0)
    return {"status": status, "mib": usage.ru_maxrss / 1024}


def _ends_within(pid: int, seconds: float) -> bool:
    handle = os.pidfd_open(pid)
    try:
        return bool(select.select([handle], [], [], seconds)[0])
    finally:
        os.close(handle)


def _fork(question: dict[str, Any], cold: bool) -> int:
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        _limit(question)
        if cold:
            _as_after_exec()
            words = [sys.executable, "-m", "chunk_grpo_core", *question["argv"]]
            os.execve(sys.executable, words, {**os.environ, "PYTHONPATH": str(ROOT)})
        code = _run(question["argv"])
    finally:
        os._exit(code)


def _as_after_exec() -> None:
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_DFL)


def _limit(question: dict[str, Any]) -> None:
    """Become the process that a question describes."""
    os.setsid()
    for number, name in ((0, os.devnull), (1, question["stdout"]), (2, question["stderr"])):
        handle = os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(handle, number)
        os.close(handle)
    if question["read_only"]:
        _see_read_only(question["read_only"])
    os.chdir(question["cwd"])
    sys.stdin = open(0, encoding="utf-8", closefd=False)
    _as_after_exec()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + question["memory"] * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    if question["file_bytes"] is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (question["file_bytes"],) * 2)


def _see_read_only(folder: str) -> None:
    """Mount a folder read-only, for this process alone."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    place, private, bind, read_only = folder.encode(), 1 << 18 | 1 << 14, 4096, 1 | 32 | 4096
    for source, target, flags in (
        (b"none", b"/", private),
        (place, place, bind),
        (place, place, read_only),
    ):
        if flags == private and libc.unshare(0x20000):
            raise OSError(ctypes.get_errno(), "no mount namespace of its own")
        if libc.mount(source, target, None, flags, None):
            raise OSError(ctypes.get_errno(), f"cannot mount {folder} read-only")


def _run(argv: list[str]) -> int:
    """What ``python -m chunk_grpo_core`` does, in this process; returns its exit status."""
    import runpy
    import traceback

    sys.argv = ["chunk-grpo", *argv]
    try:
        runpy.run_module("chunk_grpo_core", run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    return code


if __name__ == "__main__":
    _serve(cold="--cold" in sys.argv)
