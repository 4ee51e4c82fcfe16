"""The table of docs/models.md says what is tested: each of its cells, and nothing more."""

from __future__ import annotations

import re
from pathlib import Path

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


def test_tests_that_the_page_names_exist():
    files = {path.name: path for path in (ROOT / "tests").rglob("test_*.py")}
    names = re.findall(r"`(?:tests/)?([\w/]*test_\w+\.py)`", PAGE)
    assert len(names) >= 10
    assert [name for name in names if Path(name).name not in files] == []
