"""What pages and docstrings call things is what they are called."""

from __future__ import annotations

import ast
import re
from importlib import import_module
from importlib.util import resolve_name
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent
CORE = ROOT / "chunk_grpo_core"
NOTATION = (ROOT / "docs" / "notation.md").read_text(encoding="utf-8")
ROWS = [line for line in NOTATION.partition("## Symbols")[2].splitlines() if ".py`" in line]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "SECURITY.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "web" / "docs").glob("*.md")),
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.split("|")[1].strip())
def test_the_names_of_a_symbol_stand_in_its_files(row):
    _, _, _, names, _, files, _ = re.split(r"(?<!\\)\|", row)
    sources = [(CORE / file).read_text("utf-8") for file in re.findall(r"`([\w/]+\.py)`", files)]
    assert sources
    for name in re.findall(r"`[\w.]*?(\w+)(?:\(\w*=?\))?`", names):
        assert any(re.search(rf"\b{name}\b", source) for source in sources), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_of_the_library_that_a_page_names_exist(page):
    folders = "|".join(path.name for path in CORE.iterdir() if path.is_dir())
    named = re.findall(
        rf"`(?:chunk_grpo_core/)?((?:{folders})/[\w/]+\.py)`", page.read_text("utf-8")
    )
    assert [name for name in named if not (CORE / name).is_file()] == []


BLOCKS = [
    pytest.param(block, id=f"{page.name}-{number}")
    for page in PAGES
    for number, block in enumerate(
        re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.S)
    )
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_and_headings(page):
    text = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.S)
    for link in re.findall(r"\]\((?!https?:|/)([^)]+)\)", text):
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), link
        if anchor and target.suffix == ".md":
            headings = re.findall(r"^#+ (.*)$", target.read_text("utf-8"), re.M)
            anchors = [re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings]
            assert anchor in anchors, link


@pytest.mark.parametrize("block", BLOCKS)
def test_what_an_example_imports_is_there(block):
    imports = re.findall(r"^from chunk_grpo_core[^\n(]*(?:\([^)]*\)|[^\n]*)$", block, re.M)
    assert imports or "chunk_grpo_core" not in block
    exec("\n".join(imports), {})  # noqa: S102 - our own pages


@pytest.mark.slow
def test_the_example_of_the_library_runs(capsys):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", text, re.S)
    short = block.replace("iterations=10", "iterations=1").replace("HELD_OUT[:24]", "HELD_OUT[:2]")
    assert short.count("iterations=1,") == 1 and "HELD_OUT[:2]" in short
    exec(short, {})  # noqa: S102 - our own page
    assert "Interval(mean=" in capsys.readouterr().out


GUARANTEED = (ROOT / "docs" / "guarantees.md").read_text(encoding="utf-8")


def test_tests_that_guarantees_name_exist():
    named = re.findall(r"`((?:comfy|core|rewards)/[\w/]*test_\w+)`", GUARANTEED)
    assert len(named) > 20
    assert [name for name in named if not (ROOT / "tests" / f"{name}.py").is_file()] == []


GUARANTEES = [
    line.split("|") for line in GUARANTEED.splitlines() if line.startswith("| ") and "`" in line
]


@pytest.mark.parametrize("row", GUARANTEES, ids=lambda row: row[1].strip()[:40])
def test_functions_that_are_named_for_a_guarantee_exist(row):
    named = re.findall(r"`([^`]+)`", row[2])
    files = [ROOT / "tests" / f"{name}.py" for name in named if "/" in name]
    sources = "".join(file.read_text("utf-8") for file in files)
    assert sources
    functions = re.findall(r"^def test_(\w+)\(", sources, re.M)
    for name in named:
        begin = name.removesuffix("...")
        if "/" not in name:
            is_meant = str.startswith if name != begin else str.__eq__
            assert any(is_meant(function, begin) for function in functions), name


SOURCES = sorted(CORE.rglob("*.py"))


def _docstrings(source: str) -> list[str]:
    """Every string that stands alone, texts under attributes included."""
    return [
        node.value.value
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    ]


def _follow(start: object, names: list[str]) -> bool:
    """Whether attributes lead on from an object; the last may be a field without a default."""
    for name in names:
        if name in getattr(start, "__annotations__", {}):
            return name == names[-1]
        if not hasattr(start, name):
            return False
        start = getattr(start, name)
    return True


def _is_there(target: str, module: ModuleType) -> bool:
    """Whether ``target`` of a role in a docstring of ``module`` names something."""
    target = target.removeprefix("~")
    if not target.startswith((".", "chunk_grpo_core")):
        names = target.split(".")
        homes = [module, *(value for value in vars(module).values() if isinstance(value, type))]
        return any(_follow(home, names) for home in homes)
    path = resolve_name(target, module.__package__)
    for split in range(path.count(".") + 1, 0, -1):
        names = path.split(".")
        try:
            start = import_module(".".join(names[:split]))
        except ModuleNotFoundError:
            continue
        return _follow(start, names[split:])
    return False


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(CORE)))
def test_what_a_docstring_refers_to_exists(path):
    texts = _docstrings(path.read_text("utf-8"))
    named = path.relative_to(ROOT).with_suffix("").parts
    module = import_module(".".join(named).removesuffix(".__init__"))
    roles = r":(?:class|func|meth|attr|data|mod):`([^`]+)`"
    targets = [target for text in texts for target in re.findall(roles, text)]
    assert [target for target in targets if not _is_there(target, module)] == []
    files = [file for text in texts for file in re.findall(r"`([\w/]+\.py)`", text)]
    homes = {"/" + source.relative_to(ROOT).as_posix() for source in SOURCES}
    assert [file for file in files if not any(h.endswith("/" + file) for h in homes)] == []
