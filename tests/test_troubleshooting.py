"""The troubleshooting page names only knobs that exist."""

import re
from pathlib import Path

from schemas import node_schemas

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
KNOBS = {  # name of a node, as the page writes it -> its inputs and outputs
    schema.display_name.partition(" (")[0]: {s.name for s in (*schema.inputs, *schema.outputs)}
    for schema in node_schemas().values()
}
ATTRIBUTED = re.compile(
    rf"({'|'.join(sorted(KNOBS, key=len, reverse=True))}) (`\w+`(?:(?:,| and| or|, and) `\w+`)*)"
)
TOPICS = (
    "First five things to check",
    "The reward is flat, falls or collapses",
    "The LoRA does not load, or looks different",
    "Training inside ComfyUI",
    "Memory and time",
    "Reward models and their packages",
    "Artefacts and reward hacking",
    "The ratio is not 1",
    "Picture size, grids and seams",
    "Several rewards",
    "Diversity is lost",
)
VALUES = {"flow", "target_colour", "remote_http", "vlm_judge", "__name__", "collapse", "divergence"}
"""What stands in backticks and is no knob: choices of inputs, alarms, and a wildcard."""


def test_the_page_is_read_at_all():
    assert len(ATTRIBUTED.findall(PAGE)) > 40
    assert ("GRPO Settings", "`clip`") in ATTRIBUTED.findall(PAGE)
    assert ATTRIBUTED.findall("Train LoRA `rank` and `alpha`, `x`") == [
        ("Train LoRA", "`rank` and `alpha`, `x`")
    ]


def test_every_knob_that_the_page_gives_to_a_node_is_one():
    wrong = [
        (node, knob)
        for node, knobs in ATTRIBUTED.findall(PAGE)
        for knob in re.findall(r"`(\w+)`", knobs)
        if knob not in KNOBS[node]
    ]
    assert wrong == []


def test_every_other_name_in_backticks_is_a_knob_of_some_node_or_a_column_of_the_metrics():
    columns = set(re.findall(r"`(\w+)`", (ROOT / "docs" / "design.md").read_text(encoding="utf-8")))
    known = set().union(*KNOBS.values()) | columns | VALUES | {"TrainConfig"}
    text = ATTRIBUTED.sub("", PAGE)
    assert {name for name in re.findall(r"`(\w+)`", text) if name not in known} == set()


def test_the_page_has_every_topic_and_starts_with_five_checks():
    headings = re.findall(r"^## (.+)$", PAGE, re.MULTILINE)
    assert tuple(headings[: len(TOPICS)]) == TOPICS
    first = PAGE.partition(f"## {TOPICS[0]}\n")[2].partition("\n## ")[0]
    assert re.findall(r"^(\d)\. ", first, re.MULTILINE) == list("12345")


def test_every_row_has_as_many_cells_as_its_table():
    for table in re.findall(r"(?:^\|.*\|\n)+", PAGE, re.MULTILINE):
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(widths) == 1, table


def test_links_inside_the_page_lead_somewhere():
    anchors = {
        re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        for heading in re.findall(r"^#+ (.+)$", PAGE, re.MULTILINE)
    }
    assert set(re.findall(r"\]\(#([^)]+)\)", PAGE)) <= anchors


def test_every_thread_that_is_cited_belongs_to_a_project_that_the_page_names():
    listed = PAGE.partition("## Threads")[2]
    cited = set(re.findall(r"([\w-]+)#\d+", PAGE))
    assert cited and {name for name in cited if name not in listed} == set()
