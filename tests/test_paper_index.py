"""docs/paper_index.md says what the code says."""

from __future__ import annotations

import re
from pathlib import Path

from each import failures_of_each

from chunk_grpo_core.presets import PRESETS
from tools import paper_index

ROOT = Path(__file__).resolve().parent.parent
CORE = ROOT / "chunk_grpo_core"
TEXT = (ROOT / "docs" / "paper_index.md").read_text(encoding="utf-8")
PAPERS = TEXT.partition("## Papers")[2].partition("## Presets")[0]
DEPARTURES = TEXT.partition("## Where this differs from the papers' code")[2]
ROWS = [line for line in PAPERS.splitlines() if line.startswith("| ") and "`" in line]


def test_the_tables_of_the_presets_are_up_to_date():
    assert paper_index.page(TEXT) == TEXT, "run: python tools/paper_index.py"


def test_the_code_that_a_row_names_exists():
    assert len(ROWS) > 10
    assert failures_of_each(check_code, ROWS) == {}


def check_code(row, column=3):
    where = row.split("|")[column]
    places = re.findall(r"`([\w/]+\.py)`((?: `\w+`,?)+)", where)
    assert places
    for file, names in places:
        source = (CORE / file).read_text(encoding="utf-8")
        for name in re.findall(r"\w+", names):
            assert re.search(rf"(def|class) {name}\b|^{name}\b", source, re.M), f"{file}: {name}"


def test_the_code_that_a_departure_names_exists():
    rows = [line for line in DEPARTURES.splitlines() if line.startswith("| ") and ".py`" in line]
    assert len(rows) > 10
    assert failures_of_each(lambda row: check_code(row, column=4), rows) == {}


def test_the_settings_that_rows_name_exist():
    named = {key for row in ROWS for key in re.findall(r"`(\w+\.\w+)`", row.split("|")[4])}
    known = {setting.key for preset in PRESETS.values() for setting in preset.values}
    assert named and named <= known


def test_a_paper_has_its_arxiv_number():
    papers = re.findall(r"^\| (\w[^|]+?) \|", PAPERS, re.M)[1:]
    assert len(papers) > 10
    assert failures_of_each(check_arxiv_number, papers) == {}


def check_arxiv_number(paper):
    assert re.search(r"\[(\d{4}\.\d{5})(v\d)?\]\(https://arxiv\.org/abs/\1\)", paper)
