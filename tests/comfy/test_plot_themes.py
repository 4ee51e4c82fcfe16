"""Plots of templates follow the theme of the page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from .test_accessible_panels import THEME

TEMPLATES = Path(__file__).parents[2] / "example_workflows"


@pytest.mark.parametrize("theme", ["dark", "light"])
def test_a_template_draws_as_the_page_until_a_person_has_saved_it(theme, comfy_page):
    comfy_page.page.evaluate(THEME, theme)
    template = json.loads((TEMPLATES / "05_grpo_preset.json").read_text())
    comfy_page.load(template, "template")
    assert drawn_dark(opened := comfy_page.serialize()) == [theme == "dark"]
    comfy_page.page.evaluate(THEME, "light" if theme == "dark" else "dark")
    comfy_page.load(opened, "own graph")
    assert drawn_dark(comfy_page.serialize()) == [theme == "dark"]


def drawn_dark(workflow):
    """What nodes that plot a training have as ``dark``, their first widget."""
    plots = [node for node in workflow["nodes"] if node["type"] == "ChunkGRPO_PlotTraining"]
    return [node["widgets_values"][0] for node in plots]


def test_every_template_marks_the_nodes_that_follow_the_theme():
    for file in sorted(TEMPLATES.glob("*.json")):
        for node in json.loads(file.read_text())["nodes"]:
            draws = any(slot["name"] == "dark" for slot in node.get("inputs", []))
            assert node["properties"].get("chunk_grpo_follows_theme", False) is draws, file.name
