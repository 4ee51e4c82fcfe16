"""The texts of the nodes and panels say the same in every language."""

import json
import re
from collections import Counter

import pytest
from each import failures_of_each
from locale_tool import files, texts, tool

ENGLISH = files("en")
MEMORY = tool.read(tool.MEMORY)
every_language = pytest.mark.parametrize("language", tool.LANGUAGES)

# Lines that are names or symbols in every language.
SAME = {
    *("CFG", "CLIP", "EMA", "KL", "LoRA", "LoRA alpha", "RS-LoRA", "Sigmas", "URL", "VAE"),
    *("Latent", "alpha", "chunk-grpo", "eta"),
}
# What people type, and the page must not translate; words that stand before a colon are found.
TYPED = {
    "ChunkGRPO_PlanChunks.inputs.chunk_sizes": (
        *("step", "whole", "size 4", "cut 4", "cut 4 2", "adaptive", "adaptive 2 4"),
        "2, 3, 4, 7",
    ),
    "ChunkGRPO_PlanChunks.inputs.weights": (
        *("uniform", "curve", "softmax 0.5", "0.4, 0.35, 0.2, 0.05"),
    ),
    "ChunkGRPO_GRPOSettings.inputs.lora_targets": ("attention", "attention+mlp", "all-linear"),
    "ChunkGRPO_GRPOExploration.inputs.ode_solver": ("dpm2", "window", "drawn"),
    "ChunkGRPO_ApplyLoRA.inputs.lora_name": ("none",),
}
BEFORE_A_COLON = re.compile(r"(?:^|(?<=[.;] ))([a-z][\w+-]*(?:(?:, | and )[a-z][\w+-]*)*): ", re.M)


def fixed_words(text):
    """Numbers, files, input names, formulas, names in capitals, and options before a colon."""
    words = [word.strip(".,:-#+") for word in re.findall(r"[A-Za-z0-9_./=+:#-]+", text)]
    for word in words:
        if re.search(r"[\d_/=]|[A-Z].*[A-Z]", word):
            yield re.sub(r"(?<=[A-Z])s$", "", word)
    for options in BEFORE_A_COLON.findall(text):
        yield from re.split(", | and ", options)


def plain_name(name):
    """A node's name without the remark in brackets behind it."""
    return re.sub(r"\s*[(（].*[)）]$", "", name)


@every_language
def test_all_languages_have_the_same_keys(language):
    assert texts(language).keys() == texts("en").keys()


@every_language
def test_the_files_are_what_the_tool_writes(language):
    assert files(language) == tool.translated(ENGLISH, language, MEMORY), "run: tools/locales.py"


def test_every_line_has_its_translations_and_every_translation_its_line():
    assert tool.missing(ENGLISH, MEMORY) == []
    assert tool.unused(ENGLISH, MEMORY) == []
    assert [text for text in texts("en").values() if not text.strip()] == []


def test_a_text_that_changes_loses_its_translations():
    tooltip = "ChunkGRPO_GRPOPreset.inputs.preset.tooltip"
    changed = json.loads(json.dumps(ENGLISH))
    changed["ChunkGRPO_GRPOPreset"]["inputs"]["preset"]["tooltip"] += " And more."
    before = texts("en")[tooltip]
    assert tool.missing(changed, MEMORY) == [(to, f"{before} And more.") for to in tool.LANGUAGES]
    assert tool.unused(changed, MEMORY) == [before]
    shown = dict(tool.texts_of(tool.translated(changed, "ja", MEMORY)))[tooltip]
    assert shown == f"{before} And more."


def test_a_line_can_mean_something_else_at_one_place():
    tree = {"A": {"name": "clip"}, "B": {"name": "clip"}}
    memory = {"clip": {"ja": "range"}, "B.name": {"ja": "encoder"}}
    assert tool.translated(tree, "ja", memory) == {"A": {"name": "range"}, "B": {"name": "encoder"}}


@every_language
def test_numbers_names_and_typed_words_stay(language):
    translated = texts(language)
    lost = {
        (path, word)
        for path, text in texts("en").items()
        if not path.endswith(".name") and not path.startswith("nodeCategories")
        for word in {*fixed_words(text), *TYPED.get(path.removesuffix(".tooltip"), ())}
        if word not in translated[path]
    }
    assert lost == set()


def test_fixed_words_are_found():
    text = "flow: x_s of 0.5. See models/loras, KEY=VALUE and FLUX. Or: dance, cps: none. Two GPUs."
    expected = {"flow", "x_s", "0.5", "models/loras", "KEY=VALUE", "FLUX", "GPU"}
    assert set(fixed_words(text)) == expected


@every_language
def test_only_names_stay_english(language):
    translated = texts(language)
    same = {text for path, text in texts("en").items() if translated[path] == text}
    assert same - SAME == set()


@every_language
def test_texts_name_the_nodes_as_the_page_does(language):
    shown = {
        plain_name(node["display_name"]): plain_name(files(language)[name]["display_name"])
        for name, node in ENGLISH.items()
        if "display_name" in node
    }
    names = re.compile("|".join(map(re.escape, sorted(shown, key=len, reverse=True))))
    translated = texts(language)
    wrong = {
        (path, name)
        for path, text in texts("en").items()
        for name in names.findall(text)
        if shown[name] not in translated[path]
    }
    assert wrong == set()


@pytest.mark.parametrize("language", ["en", *tool.LANGUAGES])
def test_no_text_holds_what_the_page_reads_as_syntax(language):
    eaten = {path: text for path, text in texts(language).items() if set(text) & set(tool.EATEN)}
    assert eaten == {}


def panel_strings():
    """Return (English, translations) of each line of the table."""
    text = (tool.ROOT / "web" / "js" / "lib" / "strings.js").read_text(encoding="utf-8")
    table = text.partition("STRINGS =")[2].strip().removesuffix(";")
    return json.loads(table, object_pairs_hook=list)  # a dict would hide what is there twice


def used_strings():
    """Return (file, English) of each text that a panel translates."""
    return {
        (file.name, json.loads(f'"{text}"'))
        for file in (tool.ROOT / "web" / "js").rglob("*.js")
        for text in re.findall(r'\bt\(\s*"((?:[^"\\]|\\.)*)"', file.read_text(encoding="utf-8"))
        if file.name != "i18n.js"
    }


def test_every_string_of_a_panel_is_translated():
    table = dict(panel_strings())
    assert [(file, text) for file, text in sorted(used_strings()) if text not in table] == []


def test_every_translated_string_is_used_and_stands_there_once():
    count = Counter(text for text, _ in panel_strings())
    assert {text: times for text, times in count.items() if times > 1} == {}
    assert count.keys() - {text for _, text in used_strings()} == set()


def test_no_key_of_a_file_stands_there_twice():
    def once(pairs):
        count = Counter(key for key, _ in pairs)
        assert {key: times for key, times in count.items() if times > 1} == {}

    def check(path):
        json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=once)

    files_of_texts = [tool.MEMORY, *sorted(tool.LOCALES.rglob("*.json"))]
    assert len(files_of_texts) > len(tool.LANGUAGES)
    assert failures_of_each(check, files_of_texts) == {}


def test_panel_strings_are_in_all_languages():
    for text, translations in panel_strings():
        found = dict(translations)
        assert found.keys() == set(tool.LANGUAGES), text
        assert all(found.values()), text
        assert text in SAME or text not in found.values(), text
        for language, translation in found.items():
            assert set(re.findall(r"\{\w+\}", text)) == set(re.findall(r"\{\w+\}", translation)), (
                f"{text} in {language}"
            )
