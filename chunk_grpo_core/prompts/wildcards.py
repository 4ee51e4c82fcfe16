"""A folder of wildcards: the lists that ``__name__`` stands for in a prompt.

    colour.txt         __colour__: one of its lines, which may hold alternatives and wildcards
    hair/long hair.txt __hair/long hair__
    any.yaml           its keys are the names, whatever the file is called:
                           hair:
                             colour: [red, 2::blond]      __hair/colour__
                       a file that is one list has the name of the file

Capitals do not count where only one name fits. A .txt file comes before a key of a .yaml file.
Lines may have weights (``template.py``). Links that lead out of the folder are refused.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

from ..optional import require
from .decoding import Tell, read_text, tell_log
from .files import MOST_PROMPTS, PromptLine, checked_prompt, located, parse_lines
from .template import Choice, likely, parse_template, weighed

__all__ = ["WildcardFolder"]

_ENDINGS = (".txt", ".yaml", ".yml")
_MOST_ENTRIES = 200_000
"""Files and folders below a folder of wildcards."""
_LONGEST_CHAIN = 50
"""Files that name one another."""
_DEEPEST_YAML = 20
_SHOWN_NAMES = 40


class WildcardFolder:
    """The lists that ``__name__`` stands for. Every file is read once, when it is asked for."""

    def __init__(self, path: str | Path, tell: Tell = tell_log) -> None:
        """Remember where the files are.

        Args:
            path: A folder; without one, there are no wildcards.
            tell: Told which encoding was guessed.
        """
        self.path = Path(path)
        self._tell = tell
        self._read: dict[str, Choice] = {}
        self._open: list[str] = []

    @cached_property
    def files(self) -> tuple[Path, ...]:
        """All wildcard files, sorted; none when there is no such folder.

        Raises:
            ValueError: The folder is too large to be one of wildcards.
        """
        found, entries = [], 0
        for folder, subfolders, names in os.walk(self.path):
            entries += len(names) + len(subfolders)
            if entries > _MOST_ENTRIES:
                raise ValueError(
                    f"the folder {self.path} holds more than {_MOST_ENTRIES:,} files; name a "
                    "folder that holds the wildcards alone"
                )
            paths = (Path(folder, name) for name in names if name.lower().endswith(_ENDINGS))
            found += [path for path in paths if path.is_file()]
        return tuple(sorted(found))

    def lookup(self, name: str) -> Choice:
        """The entries of one list.

        Raises:
            ValueError: There is no such list, it is empty, an entry of it is wrong, or files name
                each other in a circle or in a long chain.
        """
        name = self._exact(name)
        if name in self._open:
            circle = " -> ".join([*self._open[self._open.index(name) :], name])
            raise ValueError(f"wildcards name each other in a circle: {circle}")
        if name not in self._read:
            if len(self._open) >= _LONGEST_CHAIN:
                chain = " -> ".join([*self._open[:3], "...", name])
                raise ValueError(
                    f"more than {_LONGEST_CHAIN} wildcards name one another in a chain: {chain}"
                )
            self._open.append(name)
            try:
                self._read[name] = self._parse(name)
            finally:
                self._open.pop()
        return self._read[name]

    def _exact(self, name: str) -> str:
        """The name as it is written on the disk."""
        if name in self._texts or name in self._lists:
            return name
        names = {*self._texts, *self._lists}
        alike = sorted(other for other in names if other.casefold() == name.casefold())
        if len(alike) == 1:
            return alike[0]
        hint = ""
        if "*" in name:
            hint = ". Patterns are not read: name one list"
        elif name[0] in "~@!" or "(" in name:
            hint = ". Ways to choose and values of Dynamic Prompts are not read"
        raise ValueError(
            f"there is no wildcard {name!r:.80}; {self._known(names)}{hint}. Write "
            r"\__ for underscores that are no wildcard"
        )

    @cached_property
    def _texts(self) -> dict[str, Path]:
        """Name -> .txt file."""
        paths = (path for path in self.files if path.suffix.lower() == ".txt")
        return {path.relative_to(self.path).with_suffix("").as_posix(): path for path in paths}

    @cached_property
    def _lists(self) -> dict[str, list[PromptLine]]:
        """Name -> entries, of all .yaml files."""
        lists: dict[str, list[PromptLine]] = {}
        origin: dict[str, Path] = {}
        for path in self.files:
            if path.suffix.lower() == ".txt":
                continue
            self._check_inside(path)
            for name, line in _yaml_entries(read_text(path, self._tell), path):
                if origin.setdefault(name, path) != path:
                    raise ValueError(
                        f"both {origin[name].name} and {path.name} have the wildcard {name!r}; "
                        "take it out of one of them"
                    )
                lists.setdefault(name, []).append(line)
        return lists

    def _parse(self, name: str) -> Choice:
        file = self._texts.get(name)
        if file is None:
            lines, shown = self._lists[name], f"wildcard {name!r}"
        else:
            self._check_inside(file)
            lines, shown = parse_lines(read_text(file, self._tell), file.name), file.name
        options = []
        for line in lines:
            with located(line.where):
                options.append(weighed(parse_template(line.text, self.lookup)))
        if not options:
            raise ValueError(f"the wildcard file {shown} has no lines to choose from")
        with located(shown):
            return likely(options)

    def _check_inside(self, path: Path) -> None:
        if not path.resolve().is_relative_to(self.path.resolve()):
            raise ValueError(
                f"the wildcard file {path.name} is a link to a file outside the folder "
                f"{self.path.name!r}; copy the file into it"
            )

    def _known(self, names: set[str]) -> str:
        if not names:
            return f"the folder {self.path.name!r} has no .txt or .yaml files"
        more = len(names) - _SHOWN_NAMES
        shown = ", ".join(sorted(names)[:_SHOWN_NAMES]) + (f" and {more} more" if more > 0 else "")
        return f"the folder {self.path.name!r} has: {shown}"


def _yaml_entries(text: str, path: Path) -> Iterator[tuple[str, PromptLine]]:
    """Name and entry, for each text of a YAML file.

    The events of the parser are read one by one: nothing is built that a file could make large, and
    every scalar is a text, also ``no`` and ``1.0``.
    """
    yaml = require("yaml", "To read wildcards in YAML")
    keys: list[str | None] = []  # of the open mappings; None where the next scalar is a key
    in_list, count = False, 0
    try:
        for event in yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
            where = f"{path.name}, line {event.start_mark.line + 1}"
            kind = type(event).__name__.removesuffix("Event")
            if kind == "Alias" or getattr(event, "tag", None):
                raise ValueError(f"{where}: aliases and tags of YAML are not read")
            if kind in ("MappingStart", "SequenceStart"):
                if in_list or (keys and keys[-1] is None):
                    raise ValueError(f"{where}: a list of wildcards may hold texts only")
                in_list = kind == "SequenceStart"
                if not in_list:
                    keys.append(None)
                if len(keys) > _DEEPEST_YAML:
                    raise ValueError(f"{where}: nested more than {_DEEPEST_YAML} deep")
            elif kind == "SequenceEnd":
                in_list = False
                keys[-1:] = [None] * len(keys[-1:])
            elif kind == "MappingEnd":
                keys.pop()
                keys[-1:] = [None] * len(keys[-1:])
            elif kind == "Scalar" and keys and keys[-1] is None:
                keys[-1] = event.value.strip()
            elif kind == "Scalar":
                if not (keys or in_list) and event.value:
                    raise ValueError(f"{where}: not a list, and no names with lists below them")
                name = "/".join(filter(None, keys)) or path.stem
                if not in_list:
                    keys[-1:] = [None] * len(keys[-1:])
                count += 1
                if count > MOST_PROMPTS:
                    raise ValueError(f"{where}: more than {MOST_PROMPTS:,} entries")
                if entry := " ".join(event.value.splitlines()).strip():
                    with located(where):
                        yield name, PromptLine(text=checked_prompt(entry), where=where)
    except yaml.YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", error)
        place = f", line {mark.line + 1}" if mark else ""
        raise ValueError(f"{path.name}{place}: not YAML ({problem})") from error
