"""A command whose module is imported when the command is used, not when it is listed."""

from __future__ import annotations

import importlib
from typing import Any

import typer
from typer.core import TyperCommand

from .outcome import Command

__all__ = ["Later"]


class Later(TyperCommand):
    """Stands in the list of commands for one that has not been imported."""

    def __init__(self, name: str, module: str, sentence: str) -> None:
        """Name it.

        Args:
            name: As it is typed. The module has a function of that name (``_`` for ``-``), or a
                group of commands, a ``typer.Typer``.
            module: Name of the module in this package.
            sentence: First sentence of its help.
        """
        super().__init__(name, help=sentence)
        self._module = module

    def load(self) -> Any:
        """Import the module, and give the command that it defines."""
        module = importlib.import_module(f".{self._module}", __package__)
        found = getattr(module, str(self.name).replace("-", "_"))
        if not isinstance(found, typer.Typer):
            function, found = found, typer.Typer(add_completion=False)
            found.command(self.name, cls=Command)(function)
        return typer.main.get_command(found)

    def make_context(
        self, info_name: str | None, args: list[str], *others: Any, **more: Any
    ) -> Any:
        """Read the words behind its name; the command that is run is the real one."""
        return self.load().make_context(info_name, args, *others, **more)
