"""What a case is, and what became of it."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from chunk_grpo_core.cli.outcome import BUG

from .warm import Ended

__all__ = [
    "FAILURES",
    "Case",
    "Check",
    "Expected",
    "Kind",
    "Outcome",
    "crash",
    "judge",
    "message_of",
    "names_one",
    "table",
]

_LONGEST_MESSAGE = 1500
_CRASHES = (
    "Traceback (most recent call last)",
    BUG,
    "Exception ignored in",
    "Fatal Python error",
    "was never retrieved",
    "was never awaited",
)
"""What no output of a command may hold. The command line hides tracebacks without ``--debug``."""
_BAR = re.compile(r"[━╸╺]|^\s*$")
_BOX = re.compile(r"[─│╭╮╰╯\s]+")


class Kind(str, Enum):
    """How a case ended."""

    clear = "clear error"
    """Exit status 2 or 1, and one short message that names the input."""
    accepted = "accepted"
    """Done, and rightly as far as the case can tell."""
    skipped = "skipped"
    """This machine cannot try it."""
    unclear = "unclear error"
    """A message that does not name the input, is empty, or is endless; the wrong exit status."""
    traceback = "traceback"
    """A traceback, an error that the program calls its own bug, an exit status that no command
    has."""
    timeout = "time-out"
    """Longer than its time limit."""
    silent = "silent acceptance"
    """Done, although the case is known to be nonsense."""
    difference = "difference"
    """Another result than the right one, or a right input that was refused."""


FAILURES = (Kind.unclear, Kind.traceback, Kind.timeout, Kind.silent, Kind.difference)


class Expected(Enum):
    """What a case's author knows of it."""

    refused = "refused"
    accepted = "accepted"
    either = "either"


Check = Callable[[Path, Ended], str]
"""Looks at what an accepted case left in its folder; says what is wrong with it, or nothing."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One input, in a folder of its own, and the command line that takes it."""

    argv: tuple[str, ...]
    about: str
    """What is unusual about it, on one line."""
    names: tuple[str, ...]
    """A clear message has one of them, as a whole word; none lets any message pass."""
    expected: Expected = Expected.either
    check: Check | None = None
    codes: tuple[int, ...] = (2,)
    """Exit statuses that an error may have: 2 is a mistake of the user's, 1 is everything else."""
    never: tuple[str, ...] = ()
    """A message with one of them shows that the input was taken for something else."""
    seconds: float = 30.0
    close: Callable[[], None] | None = None
    """Ends what the case started beside the command line."""


@dataclass(frozen=True)
class Outcome:
    """What became of one case."""

    gate: str
    number: int
    about: str
    kind: Kind
    detail: str
    seconds: float
    mib: float

    @property
    def name(self) -> str:
        """As ``--only`` takes it."""
        return f"{self.gate}:{self.number}"


def judge(case: Case, ended: Ended, folder: Path) -> tuple[Kind, str]:
    """What kind of end it is, and a line about it."""
    if ended.code is None:
        return Kind.timeout, f"more than {case.seconds:.0f} s"
    if wrong := crash(ended, 0, 1, 2):
        return wrong
    said = message_of(ended.stderr)
    if not ended.code and case.expected is Expected.refused:
        return Kind.silent, said or ended.stdout[:200]
    if "--json" in case.argv and (wrong := _not_json(ended)):
        return Kind.difference, wrong
    if ended.code:
        return _judge_error(case, ended, said)
    wrong = case.check(folder, ended) if case.check else ""
    return (Kind.difference, wrong) if wrong else (Kind.accepted, "")


def crash(ended: Ended, *codes: int) -> tuple[Kind, str] | None:
    """What no command line may come to, whatever it was given.

    Args:
        ended: How it ended.
        codes: Exit statuses that it may have.
    """
    if ended.code is None:
        return Kind.timeout, "does not end"
    printed = ended.stderr + ended.stdout
    if any(sign in printed for sign in _CRASHES):
        return Kind.traceback, _last_line(ended.stderr)
    if ended.code not in codes:
        return Kind.traceback, f"exit status {ended.code}: {_last_line(ended.stderr)}"
    return None


def _judge_error(case: Case, ended: Ended, said: str) -> tuple[Kind, str]:
    if case.expected is Expected.accepted:
        return Kind.difference, f"refused, but it is right: {said}"
    if not said:
        return Kind.unclear, f"exit status {ended.code} without a word"
    if taken := [word for word in case.never if word in said]:
        return Kind.silent, f"taken as something else ({taken[0]}): {said}"
    if len(said) > _LONGEST_MESSAGE:
        return Kind.unclear, f"{len(said)} characters: {said[:200]}"
    if not names_one(said, case.names):
        return Kind.unclear, f"names none of {', '.join(case.names)}: {said}"
    if ended.code not in case.codes:
        return Kind.unclear, f"exit status {ended.code} is not {case.codes[0]}: {said}"
    return Kind.clear, said


def names_one(said: str, names: tuple[str, ...]) -> bool:
    """Whether a message has one of these words or pieces; ``rs`` is not in "errors"."""
    return not names or any(
        re.search(rf"(?<!\w){re.escape(name)}(?!\w)", said, re.IGNORECASE)
        if name.replace("_", "").isalnum()
        else name.lower() in said.lower()
        for name in names
    )


def message_of(stderr: str) -> str:
    """What a command line said, without its progress bars."""
    lines = [line.strip() for line in stderr.splitlines() if not _BAR.search(line)]
    start = next((i for i, line in enumerate(lines) if line.lower().startswith("error")), 0)
    return _BOX.sub(" ", " ".join(lines[start:])).strip()


def _last_line(text: str) -> str:
    return next((line for line in reversed(text.splitlines()) if line.strip()), "")[:300]


def _not_json(ended: Ended) -> str:
    """What is wrong with the one object of --json, on success and on failure; or nothing."""

    def refuse(name: str) -> None:
        raise ValueError(f"{name} is not JSON")

    try:
        facts = json.loads(ended.stdout, parse_constant=refuse)
    except ValueError as error:
        return f"--json printed what is not JSON: {error}"
    if ended.code and not (facts.get("error") and facts.get("exit_code") == ended.code):
        return f"--json says nothing of the error: {ended.stdout[:200]}"
    return ""


def table(outcomes: Iterable[Outcome]) -> str:
    """Counts of every kind for every gate, as Markdown."""
    counts: dict[str, Counter[Kind]] = {}
    for outcome in outcomes:
        counts.setdefault(outcome.gate, Counter())[outcome.kind] += 1
    rows = [(gate, *(counts[gate][kind] for kind in Kind)) for gate in counts]
    total = [sum(row[column] for row in rows) for column in range(1, len(Kind) + 1)]
    lines = ["| gate | tried | " + " | ".join(kind.value for kind in Kind) + " |"]
    lines.append("|---" * (len(Kind) + 2) + "|")
    for name, *row in [*rows, ("all", *total)]:
        lines.append(f"| {name} | {sum(row)} | " + " | ".join(map(str, row)) + " |")
    return "\n".join(lines)
