"""The tables of docs/models.md say what is there and what is tested."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from chunk_grpo_core.lora.name_tables import TABLES
from chunk_grpo_core.models.registry import FAMILIES

from .tiny_architectures.models import ALL
from .tiny_architectures.rows import REFUSED, ROWS, UNTRIED, cells

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
TABLE = cells(PAGE)


def named(column: int) -> set[str]:
    return {name for row in TABLE.values() for name in re.findall(r"`([\w.-]+)`", row[column])}


def test_every_small_model_has_its_row_and_no_cell_is_empty():
    assert TABLE.keys() == {*ROWS, *REFUSED, *UNTRIED}
    assert sorted(name for names in ROWS.values() for name in names) == sorted(ALL)
    assert all(len(row) == 5 and all(row) for row in TABLE.values())


def test_versions_are_all_or_a_reason():
    for model, (old, new, *_) in TABLE.items():
        tested = "all" if model in ROWS else "refused" if model in REFUSED else "-"
        assert new == tested and old.split(";")[0] in (tested, "-"), model


def test_templates_and_families_are_those_that_there_are():
    numbers = {path.name[:2] for path in (ROOT / "example_workflows").glob("[1-9]*.json")}
    assert named(2) == numbers
    assert named(3) == FAMILIES.keys() - {"tiny"}


def rows_of(heading: str) -> list[list[str]]:
    """Cells of the table whose first line begins so."""
    lines = PAGE.partition(f"| {heading} |")[2].partition("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_families_have_their_versions_and_steps():
    found = {row[0].strip("`"): row for row in rows_of("`model.type`")}
    assert found.keys() == FAMILIES.keys()
    for name, family in FAMILIES.items():
        _, _, needs, guidance, steps = found[name]
        assert needs.removeprefix("diffusers ") == since(family) and guidance, name
        assert int(steps) == family.few_steps, name


def since(family: Any) -> str:
    """Of diffusers; what the pack itself asks for where a family has readers of its own."""
    entry = getattr(family.load, "args", None)
    return entry[0].since if entry else "0.35"


def test_every_table_of_names_has_its_row():
    rows = rows_of("model | native and diffusers names")
    assert all(len(row) == 4 and all(row) for row in rows)
    titles = [title for row in rows for title in row[0].split(", ")]
    ours = [table.title.replace("Stable Diffusion ", "SD") for table in TABLES]
    assert sorted(titles) == sorted([*ours, "Chroma"])


def test_tests_that_the_page_names_exist():
    files = {path.name: path for path in (ROOT / "tests").rglob("test_*.py")}
    names = re.findall(r"`(?:tests/)?([\w/]*test_\w+\.py)`", PAGE)
    assert len(names) >= 10
    assert [name for name in names if Path(name).name not in files] == []
