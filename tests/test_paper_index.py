"""docs/paper_index.md says what the code says."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from chunk_grpo_core.presets import PRESETS

ROOT = Path(__file__).resolve().parent.parent
CORE = ROOT / "chunk_grpo_core"
TEXT = (ROOT / "docs" / "paper_index.md").read_text(encoding="utf-8")
PAPERS = TEXT.partition("## Papers")[2].partition("## Presets")[0]
ROWS = [line for line in PAPERS.splitlines() if line.startswith("| ") and "`" in line]


def tool():
    spec = importlib.util.spec_from_file_location("paper_index", ROOT / "tools" / "paper_index.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_tables_of_the_presets_are_up_to_date():
    assert tool().page(TEXT) == TEXT, "run: python tools/paper_index.py"


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.split("|")[2].strip()[:40])
def test_the_code_that_a_row_names_exists(row):
    where = row.split("|")[3]
    places = re.findall(r"`([\w/]+\.py)`((?: `\w+`,?)+)", where)
    assert places
    for file, names in places:
        source = (CORE / file).read_text(encoding="utf-8")
        for name in re.findall(r"\w+", names):
            assert re.search(rf"(def|class) {name}\b|^{name}\b", source, re.M), f"{file}: {name}"


def test_the_settings_that_rows_name_exist():
    named = {key for row in ROWS for key in re.findall(r"`(\w+\.\w+)`", row.split("|")[4])}
    known = {setting.key for preset in PRESETS.values() for setting in preset.values}
    assert named and named <= known


@pytest.mark.parametrize("paper", re.findall(r"^\| (\w[^|]+?) \|", PAPERS, re.M)[1:])
def test_a_paper_has_its_arxiv_number(paper):
    assert re.search(r"\[(\d{4}\.\d{5})(v\d)?\]\(https://arxiv\.org/abs/\1\)", paper)
