"""What the command line shows while it works, on standard error."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from ..disk.atomic import CannotWrite
from ..method.reward import NothingScored, RewardFailed
from ..processes.collective import PeerFailed
from ..processes.environment import is_launched
from ..processes.launch import PeerLost
from ..settings.declared import shortened
from ..train.alarms import AlarmStop
from ..train.batch_limit import NothingFits
from ..train.events import (
    AlarmRaised,
    Asked,
    EvaluationProgress,
    Event,
    IterationEnd,
    Measured,
    PhaseProgress,
    RewardWait,
    RunStart,
)
from ..train.self_test import SelfTestFailed
from .outcome import Failed
from .signals import Stopped

__all__ = ["ProgressBar", "clear_errors"]

_screen = Console(stderr=True)
#: Their messages are written for users, who can put it right.
_MISTAKES = (ValueError, OSError, ImportError)
_NETWORK = (ConnectionError, TimeoutError)
_DISK = {errno.ENOSPC, errno.EIO, getattr(errno, "EDQUOT", None)}
#: What was asked was right, and cannot be done here.
_UNABLE = (SelfTestFailed, NothingFits, MemoryError)
#: What a run cannot help: a reward that fails, a model that gives NaN, an alarm.
_FAILURES = (NothingScored, RewardFailed, FloatingPointError, AlarmStop)
_TITLES: dict[Measured, str] = {
    "curve": "relative L1",
    "before": "base model",
    "during": "LoRA so far",
    "after": "with LoRA",
}


class ProgressBar:
    """One bar for each phase of a run: time left, reward, peak memory."""

    def __init__(self) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=_screen,
        )
        self._tasks: dict[str, TaskID] = {}
        self._iterations = 1
        self._alarm = ""
        self._waiting = ""
        """Which of the bars says that the run waits for a reward."""

    def __enter__(self) -> ProgressBar:
        return self  # it appears with the first update, so that a mistake is one line

    def __exit__(self, *error: object) -> None:
        if self._tasks:
            self._progress.stop()

    def update(self, name: str, fraction: float | None, note: str | None = None) -> None:
        """Show how much of something is done; None leaves that as it is."""
        self._progress.start()
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(name, total=1.0, note="")
        task = self._tasks[name]
        self._progress.update(task, completed=fraction)
        if note is not None:
            self._progress.update(task, note=note)

    def listen(self, event: Event) -> None:
        """Show one event."""
        if self._waiting:  # the reward has answered
            self.update(self._waiting, None, "")
            self._waiting = ""
        if isinstance(event, EvaluationProgress):
            self.update(_TITLES[event.which], event.fraction)
        elif isinstance(event, RunStart):
            self._iterations = event.iterations
            self.update("training", event.first_iteration / event.iterations)
        elif isinstance(event, PhaseProgress):
            self.update("training", (event.iteration + event.fraction) / self._iterations)
        elif isinstance(event, RewardWait):
            note = f"waiting {event.seconds:g} s for the reward ({event.number}/{event.tries})"
            self._waiting = next(reversed(self._tasks), "training")
            self.update(self._waiting, None, note)
        elif isinstance(event, Asked) and event.question:
            question = event.question
            wanted, given = question.wanted, question.given
            said = f"{given}/{wanted} clicks" if wanted else "your clicks"
            self._waiting = next(reversed(self._tasks), "training")
            self.update(self._waiting, None, f"waiting for {said} ({question.why})")
        elif isinstance(event, AlarmRaised):
            self._alarm = f"  {event.alarm.name}!"
        elif isinstance(event, IterationEnd):
            row = event.metrics
            reward, memory = row["reward_mean"], row["peak_memory_gib"]
            text = "no valid reward" if reward is None else f"reward {reward:.3f}"
            if memory is not None:
                text += f"  {memory:.1f} GiB"
            done = event.iteration + 1
            note = f"{done}/{self._iterations}  {text}{self._alarm}"
            self.update("training", done / self._iterations, note)


@contextmanager
def clear_errors(hint: str | Callable[[], str]) -> Iterator[None]:
    """Turn what may happen to a command into :class:`~chunk_grpo_core.cli.outcome.Failed`.

    What is not known here is a bug, or a lack of memory (``outcome.py``).

    Args:
        hint: How to go on after a signal or a full disk, or a function that finds it out then.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except PeerFailed as error:
        raise _failed(error, 2, "") from error  # the first process shows it
    except CannotWrite as error:
        raise _failed(error, 1, f"{error}; {_text(hint)}") from error
    except _FAILURES as error:
        is_first = os.environ.get("RANK", "0") == "0"  # all processes have the same error
        raise _failed(error, 1, f"{error}; {_text(hint)}" if is_first else "") from error
    except PeerLost as error:
        text = f"{error}. What the run folder holds is whole; {_text(hint)}"
        raise _failed(error, 1, text) from error
    except _UNABLE as error:
        if not str(error):
            raise
        raise _failed(error, 1, str(error)) from error
    except _MISTAKES as error:
        number = getattr(error, "errno", None)
        is_mistake = not isinstance(error, _NETWORK) and number not in _DISK
        raise _failed(error, 2 if is_mistake else 1, _words(error)) from error
    except Stopped as stop:
        text, code = f"{stop}. What the run folder holds is whole; {_text(hint)}", 128 + stop.signal
        if is_launched():  # each process says so; launchers send SIGTERM when one has failed
            raise _failed(stop, code, text) from None
        raise _failed(stop, code, f"{stop}; {_text(hint)}", is_error=False) from None
    except KeyboardInterrupt as stop:
        raise _failed(stop, 130, f"stopped; {_text(hint)}", is_error=False) from None


def _failed(error: BaseException, code: int, message: str, *, is_error: bool = True) -> Failed:
    return Failed(message, exit_code=code, kind=type(error).__name__, is_error=is_error)


def _words(error: BaseException) -> str:
    """The message of an error; that of the system, with a path of bearable length."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.strerror}: {shortened(str(error.filename))}"
    return str(error) or repr(error)


def _text(hint: str | Callable[[], str]) -> str:
    return hint if isinstance(hint, str) else hint()
