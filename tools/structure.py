"""The structure of ``chunk_grpo_core``, read from its imports: its shape and its maps.

python tools/structure.py            rooms, arrows between them, circles, arrows against the order
python tools/structure.py --write    write the maps into CONTRIBUTING.md and docs/design.md

A room is a file or folder at the top level of the core; an arrow from a room to another one means
that it imports something from there.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tools.marks import between_marks  # noqa: E402

CORE = ROOT / "chunk_grpo_core"
ANYWHERE = ("version", "optional")
"""Files at the top level that every folder may import."""
FOLDERS = (
    "disk",
    "processes",
    "prompts",
    "settings",
    "lora",
    "method",
    "algorithms",
    "train",
    "presets",
    "models",
    "rewards",
    "measure",
    "watch",
    "configfile",
    "runs",
    "cli",
)
"""The floors: a folder imports only from itself and from folders above it in this list."""


@dataclass(frozen=True)
class Import:
    """One import as written: ``level`` dots, dotted ``module``, ``names`` taken from it."""

    line: int
    level: int
    module: str
    names: tuple[str, ...]
    at_import_time: bool

    @property
    def top(self) -> str:
        return self.module.partition(".")[0]


def imports_of(path: Path) -> list[Import]:
    """List every import statement of a file, also those inside functions."""
    imports = []

    def visit(node: ast.AST, at_import_time: bool) -> None:
        if isinstance(node, ast.Import):
            for alias in node.names:
                imports.append(Import(node.lineno, 0, alias.name, (), at_import_time))
        elif isinstance(node, ast.ImportFrom):
            names = tuple(alias.name for alias in node.names)
            module = node.module or ""
            imports.append(Import(node.lineno, node.level, module, names, at_import_time))
        lazy = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)) or (
            isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        )
        for child in ast.iter_child_nodes(node):
            visit(child, at_import_time and not lazy)

    visit(ast.parse(path.read_text(encoding="utf-8")), True)
    return imports


def file_name(path: Path, core: Path = CORE) -> str:
    """Name a file of the core: ``method/rules``."""
    return path.relative_to(core).with_suffix("").as_posix()


def files_read(path: Path, item: Import, core: Path = CORE) -> list[str]:
    """The files of the core that a relative import of one of them reads; none outside the core."""
    if item.level > len(path.relative_to(core).parts):
        return []
    base = path.parent
    for _ in range(item.level - 1):
        base = base.parent
    base = base.joinpath(*filter(None, item.module.split(".")))
    if base.with_suffix(".py").is_file() and not base.is_dir():
        return [file_name(base.with_suffix(".py"), core)]
    modules = [name for name in item.names if (base / name).with_suffix(".py").is_file()]
    packages = [name for name in item.names if (base / name).is_dir()]
    files = [file_name((base / name).with_suffix(".py"), core) for name in modules]
    files += [file_name(base / name / "__init__.py", core) for name in packages]
    is_whole = len(modules) + len(packages) == len(item.names)
    return files if is_whole else [*files, file_name(base / "__init__.py", core)]


def file_arrows(core: Path = CORE) -> dict[str, set[str]]:
    """Every file of the core and the others that it imports."""
    return {
        file_name(path, core): {
            read for item in imports_of(path) if item.level for read in files_read(path, item, core)
        }
        - {file_name(path, core)}
        for path in sorted(core.rglob("*.py"))
    }


def rooms_of(arrows: Mapping[str, Iterable[str]], folder: str = "") -> dict[str, set[str]]:
    """The files and folders that lie directly in a folder, and the arrows between them."""

    def room(file: str) -> str | None:
        if not file.startswith(folder):
            return None
        return file[len(folder) :].partition("/")[0]

    rooms: dict[str, set[str]] = {}
    for file, reads in arrows.items():
        if start := room(file):
            ends = {end for end in map(room, reads) if end}
            rooms.setdefault(start, set()).update(ends - {start})
    return rooms


def circles(arrows: Mapping[str, Iterable[str]]) -> list[list[str]]:
    """Groups of rooms that import each other, directly or over others."""

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        todo = list(arrows.get(start, ()))
        while todo:
            if (room := todo.pop()) not in seen:
                seen.add(room)
                todo += arrows.get(room, ())
        return seen

    reach = {room: reached(room) for room in arrows}
    return sorted(
        {
            tuple(sorted(other for other in reach if other in reach[room] and room in reach[other]))
            for room in reach
            if room in reach[room]
        }
    )  # type: ignore[return-value]


def all_circles(arrows: Mapping[str, Iterable[str]]) -> list[list[str]]:
    """Circles of files, and of the rooms of each folder."""
    folders = {""} | {
        file[: end + 1] for file in arrows for end, letter in enumerate(file) if letter == "/"
    }
    # A folder's __init__ that gathers its files is no room of its own.
    rooms = [rooms_of(arrows, folder) for folder in sorted(folders)]
    return [*circles(arrows), *(circle for level in rooms for circle in circles(level))]


def against_the_order(rooms: Mapping[str, Iterable[str]]) -> list[tuple[str, str]]:
    """Arrows from a folder to one below it in :data:`FOLDERS`; the entry files may read all."""
    floor = {name: number for number, name in enumerate(FOLDERS, start=1)}
    floor |= dict.fromkeys(ANYWHERE, 0) | dict.fromkeys(("__init__", "__main__"), len(floor) + 1)
    return [
        (start, end)
        for start, ends in rooms.items()
        for end in sorted(ends)
        if floor[end] >= floor[start]
    ]


def first_line(folder: Path) -> str:
    """What a folder's ``__init__`` says of it in its first line."""
    text = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))) or ""
    return text.partition("\n\n")[0].replace("\n", " ")


def short_map() -> str:
    """One line for each folder, in the order of the floors."""
    width = max(map(len, FOLDERS)) + 3
    lines = [f"  {name + '/':<{width}}{first_line(CORE / name)}" for name in FOLDERS]
    return "\n".join(["```", f"{CORE.name}/", *lines, "```"])


def long_map() -> str:
    """A table of the folders with the files and folders in each."""
    rows = []
    for name in FOLDERS:
        inside = sorted(
            path.stem if path.is_file() else f"{path.name}/"
            for path in (CORE / name).iterdir()
            if (path / "__init__.py").is_file()
            or (path.suffix == ".py" and path.stem != "__init__")
        )
        listed = " ".join(f"`{entry}`" for entry in inside)
        rows.append(f"| `{name}/` | {first_line(CORE / name)} | {listed} |")
    return "\n".join(["| folder | what lives there | files |", "|---|---|---|", *rows])


def with_map(text: str, drawn: str) -> str:
    """Put a map between the two marks of a page."""
    return between_marks(text, "map", drawn)


MAPS = {"CONTRIBUTING.md": short_map, "docs/design.md": long_map}


def main() -> None:
    if sys.argv[1:] == ["--write"]:
        for page, draw in MAPS.items():
            path = ROOT / page
            text = path.read_text(encoding="utf-8")
            path.write_text(with_map(text, draw()), encoding="utf-8")
        return
    arrows = file_arrows()
    rooms = rooms_of(arrows)
    print(f"files {len(arrows)}, arrows between files {sum(map(len, arrows.values()))}")
    print(f"rooms on the top level {len(rooms)}, arrows {sum(map(len, rooms.values()))}")
    print(f"circles {len(all_circles(arrows))} {all_circles(arrows)}")
    print(f"arrows against the order {against_the_order(rooms)}")
    for start, ends in rooms.items():
        print(f"  {start}: {' '.join(sorted(ends))}")


if __name__ == "__main__":
    main()
