"""ComfyUI's server and page show the nodes and panels in the user's language."""

import pytest
from locale_tool import FILES, texts, tool

WORKS_SINCE = (1, 45)  # 1.32 forgets node packs' translations when it loads a language
SHOWN = """async () => {
  const { t } = await import("/extensions/chunk-grpo/js/lib/i18n.js");
  const node = window.LiteGraph.createNode("ChunkGRPO_PlanChunks");
  const kind = window.LiteGraph.registered_node_types["ChunkGRPO_PlanChunks"];
  return {
    panel: t("Stop and keep"),
    unknown: t("not in the table: {count}", { count: 4 }),
    title: node.title,
    category: kind.category.split("/").at(-1),
    input: node.inputs[0].label ?? node.inputs[0].localized_name,
    widget: node.widgets[0].label,
    output: node.outputs[0].label ?? node.outputs[0].localized_name,
    version: window.__COMFYUI_FRONTEND_VERSION__,
  };
}"""
PLACES = {
    "title": "ChunkGRPO_PlanChunks.display_name",
    "category": "nodeCategories.dynamics",
    "input": "ChunkGRPO_PlanChunks.inputs.curve.name",
    "widget": "ChunkGRPO_PlanChunks.inputs.chunk_sizes.name",
    "output": "ChunkGRPO_PlanChunks.outputs.0.name",
}


def test_english_is_what_the_schemas_say(comfy):
    said = tool.english_files(comfy.object_info())
    for name in FILES:
        assert tool.read(tool.LOCALES / "en" / name) == said[name], "run: tools/locales.py"


def test_the_server_hands_out_every_language(comfy):
    told = comfy.get("/i18n")
    for language in ("en", *tool.LANGUAGES):
        main, nodes = (tool.read(tool.LOCALES / language / name) for name in FILES)
        assert main.items() <= told[language].items()
        assert nodes.items() <= told[language]["nodeDefs"].items()


@pytest.fixture
def set_language(comfy):
    yield lambda language: comfy.post("/settings/Comfy.Locale", language)
    comfy.post("/settings/Comfy.Locale", "en")


@pytest.mark.parametrize("language", ["en", "ko"])
def test_the_page_speaks_the_chosen_language(set_language, comfy_browser, language):
    set_language(language)
    page = comfy_browser.open()
    shown = page.page.evaluate(SHOWN)
    page.close()
    assert page.errors == []
    assert shown["unknown"] == "not in the table: 4"
    assert shown["panel"] == {"en": "Stop and keep", "ko": "중지하고 유지"}[language]
    version = tuple(map(int, shown["version"].split(".")[:2]))
    expected = texts(language if version >= WORKS_SINCE else "en")
    assert {key: shown[key] for key in PLACES} == {
        key: expected[path] for key, path in PLACES.items()
    }
