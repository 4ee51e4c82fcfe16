"""How a command ends: one object on standard output with --json, one message, one exit code.

    0      done
    1      it could not be done: a bug, no memory, a full disk, a server that fails, a model that
           gives NaN
    2      a mistake in what was asked: options, files, settings
    128+n  ended by signal n

A command returns what --json prints. Whatever goes wrong comes here as an exception, from the
parser of the command line, too.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stdout
from typing import Annotated, Any

import typer
from rich.console import Console
from typer import rich_utils
from typer.core import TyperCommand, TyperGroup

from ..processes.environment import is_launched
from ..watch.strict_json import strict_json

__all__ = ["BUG", "AsJson", "Command", "CommandGroup", "Failed", "show_error"]

AsJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON object, also of an error, and nothing else.")
]
"""Parameter ``as_json`` of a command, which then returns the object."""

BUG = "this is a bug, please report it"
"""How the message begins of an error that nobody has thought of."""
_LONGEST = 500
_screen = Console(stderr=True)


class Failed(Exception):
    """A command did not do it, for a reason that its message tells."""

    def __init__(
        self, message: str, *, exit_code: int, kind: str = "", is_error: bool = True
    ) -> None:
        """Say how the command ends.

        Args:
            message: For the user; empty if somebody else says it.
            exit_code: See the top of this file.
            kind: Name of the error, for programs.
            is_error: False for what the user asked for, such as Ctrl-C.
        """
        super().__init__(message)
        self.exit_code, self.kind, self.is_error = exit_code, kind, is_error


def _flags_without_type(params: list[Any]) -> list[Any]:
    """Take the type away from flags, which newer typer shows as ``--resume <bool>``."""
    for param in params:
        if getattr(param, "is_flag", False) and param.metavar is None:
            param.metavar = ""
    return params


class Command(TyperCommand):
    """A command whose help shows flags as flags."""

    def get_params(self, ctx: Any) -> list[Any]:
        """See typer."""
        return _flags_without_type(super().get_params(ctx))


class CommandGroup(TyperGroup):
    """All commands; everything ends here."""

    def get_params(self, ctx: Any) -> list[Any]:
        """See typer."""
        return _flags_without_type(super().get_params(ctx))

    def main(
        self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: Any
    ) -> Any:
        """Run the command line and leave the process; see the top of this file.

        Raises:
            SystemExit: Always, with the exit code.
        """
        words = list(sys.argv[1:] if args is None else args)
        options = words[: words.index("--")] if "--" in words else words
        as_json, debug = "--json" in options, "--debug" in options
        if debug:  # wherever it stands
            words.remove("--debug")
        extra["standalone_mode"] = False
        # What libraries print must not stand beside the object.
        quiet = redirect_stdout(sys.stderr) if as_json else nullcontext()
        try:
            with quiet:
                result = super().main(args=words, prog_name=prog_name, **extra)
        except (Exception, KeyboardInterrupt) as error:
            sys.exit(_end(error, as_json, debug))
        if isinstance(result, int):  # of typer.Exit: help was shown, or the command said it all
            sys.exit(result)
        sys.exit(_print(strict_json(result)) if as_json and result is not None else 0)


def _end(error: BaseException, as_json: bool, debug: bool) -> int:
    """Show an error; returns the exit code."""
    if isinstance(error, BrokenPipeError):
        return _leave_pipe()
    failed = _failure(error)
    if debug:
        traceback.print_exception(error)
    if failed.kind == "usage":
        rich_utils.rich_format_error(error)  # type: ignore[arg-type]
    elif str(failed):
        show_error(str(failed)) if failed.is_error else _show(str(failed))
    if as_json and os.environ.get("RANK", "0") == "0":
        facts = {"error": str(failed), "type": failed.kind, "exit_code": failed.exit_code}
        _print(strict_json(facts))
    return failed.exit_code


def _failure(error: BaseException) -> Failed:
    """What an exception means for the user."""
    from ..train.batch_limit import is_out_of_memory  # imports torch, which --help does not need

    name = type(error).__name__
    if isinstance(error, Failed):
        return error
    if isinstance(error, (KeyboardInterrupt, typer.Abort)):
        return Failed("stopped", exit_code=130, kind="Stopped", is_error=False)
    if hasattr(error, "format_message") and hasattr(error, "exit_code"):  # click's own, or typer's
        return Failed(error.format_message(), exit_code=error.exit_code, kind="usage")  # type: ignore
    first = next(iter(str(error).splitlines()), "")[:_LONGEST]
    if isinstance(error, Exception) and is_out_of_memory(error):
        reason = f" ({first})" if first else ""
        message = (
            f"memory ran out; use smaller pictures, a smaller batch_size or group_size{reason}"
        )
        return Failed(message, exit_code=1, kind=name)
    return Failed(
        f"{BUG}; run the command again with --debug to see where it happened ({name}: {first})",
        exit_code=1,
        kind=name,
    )


def _print(text: str) -> int:
    """Write the one object; returns the exit code."""
    try:
        typer.echo(text)
        sys.stdout.flush()
    except BrokenPipeError:
        return _leave_pipe()
    return 0


def _leave_pipe() -> int:
    """Nobody reads on, as behind ``| head``: no message, and none of Python's own at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return 1


def show_error(text: str) -> None:
    """Write ``error: ...`` to standard error, behind a launcher with the number of the process."""
    who = f" (process {os.environ.get('RANK')})" if is_launched() else ""
    _screen.print(f"[red]error{who}:[/red]", end=" ")
    _show(text)


def _show(text: str) -> None:
    _screen.print(text, highlight=False, markup=False, soft_wrap=True)
