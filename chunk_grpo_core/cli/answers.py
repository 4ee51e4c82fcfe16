"""How the command line asks the person of a training: what is shown, and lines that they type.

Whoever starts the training in a terminal types answers there. Everybody else answers with
``chunk-grpo taste answer`` or ``taste add`` from another terminal; clicks are found in the file of
picks, wherever they come from.
"""

from __future__ import annotations

import queue
import shlex
import sys
import threading

from rich.console import Console

from ..disk.lock import InUse
from ..method.asking import Question
from ..rewards.taste.asking import answer_in_words
from ..rewards.taste.picking.batches import read_batch
from ..rewards.taste.picks import Taste

__all__ = ["TerminalAnswers", "asked_text"]

_HOW = "liked: 1, 4; disliked: 2 - best: 3 - better: 2 > 1 - stars: 5, 3, , 1 - skip"


class TerminalAnswers:
    """Shows each question once, on standard error, and takes the lines that answer it."""

    def __init__(self) -> None:
        self._screen = Console(stderr=True)
        self._asked: tuple[str, ...] = ()
        self._lines: queue.Queue[str] = queue.Queue()
        self._is_reading = False

    def goes_on(self, question: Question) -> bool:
        """See :data:`~chunk_grpo_core.runs.asking.GoesOn`: an empty line goes on."""
        if question.batches != self._asked:
            self._asked = question.batches
            self._screen.print(
                asked_text(question, types=self._reads()), highlight=False, markup=False,
                soft_wrap=True,
            )  # fmt: skip
        try:
            line = self._lines.get_nowait().strip()
        except queue.Empty:
            return False
        if not line:
            return True
        try:
            taste = Taste(question.folder)
            batches = [read_batch(taste, name) for name in question.batches]
            answer_in_words(taste, batches, line, closes=not question.wanted)
        except (ValueError, OSError, InUse) as error:
            self._screen.print(f"nothing was added: {error}", highlight=False, markup=False)
        return False

    def _reads(self) -> bool:
        """Begin to read lines, if somebody sits there."""
        if not self._is_reading and sys.stdin is not None and sys.stdin.isatty():
            self._is_reading = True
            threading.Thread(target=self._read, daemon=True).start()
        return self._is_reading

    def _read(self) -> None:
        for line in sys.stdin:
            self._lines.put(line)


def asked_text(question: Question, *, types: bool = False) -> str:
    """What is asked, which files the pictures are, and how to answer."""
    taste = Taste(question.folder)
    wanted = f", {question.wanted} clicks" if question.wanted else ""
    lines = [f"\nThe training asks you ({question.why}{wanted}):"]
    for name in question.batches:
        batch = read_batch(taste, name)
        lines.append(f"  {batch.prompt}")
        lines += [
            f"    {(shown.index or 0) + 1}  {taste.folder / 'pictures' / f'{shown.picture}.png'}"
            for shown in batch.shown
        ]
    where = shlex.quote(str(question.folder))
    if types:
        lines.append(f"Answer here: {_HOW}. An empty line goes on.")
    lines.append(f"From another terminal: chunk-grpo taste answer {where} 'liked: 1, 4'")
    return "\n".join(lines)
