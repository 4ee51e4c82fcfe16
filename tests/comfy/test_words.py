"""Inputs say in a plain sentence what they do, before any word of the method; rare ones are
advanced."""

import re

from .graphs import input_options

WORDS = (
    r"[Rr]ollouts?|[Hh]eld-out|[Ll]og-ratios?|[Rr]atios?|clip(?:ped)?|KL|eta|[Cc]hunks?|"
    r"[Aa]dvantages?|[Pp]olicy"
)
"""Words that an artist does not know."""
WIDGETS = {
    "ChunkGRPO_PromptSet": {"text", "held_out_text", "held_out", "file", "variants"},
    "ChunkGRPO_EvaluateLoRA": {"pictures_per_prompt", "cfg", "duels"},
}
"""Node -> widgets that are always shown."""


def ours(info):
    return {kind: entry for kind, entry in info.items() if kind.startswith("ChunkGRPO_")}


def first_sentence(text):
    """Without what stands in brackets, which explains a word where it is used."""
    return re.split(r"[.:;?](?:\s|$)", re.sub(r"\([^)]*\)", "", text), maxsplit=1)[0]


def test_no_input_begins_with_a_word_of_the_method(comfy):
    unexplained = {
        f"{kind.removeprefix('ChunkGRPO_')}.{name}": sentence
        for kind, entry in ours(comfy.object_info()).items()
        for name, options in input_options(entry).items()
        if re.search(rf"\b(?:{WORDS})\b", sentence := first_sentence(options.get("tooltip", "")))
    }
    assert not unexplained, "\n".join(f"{name}: {text}" for name, text in unexplained.items())


def test_what_few_people_change_is_advanced(comfy):
    info = comfy.object_info()
    for kind, wanted in WIDGETS.items():
        shown = {
            name
            for name, options in input_options(info[kind]).items()
            if "default" in options or options.get("multiline")
            if not options.get("advanced")
        }
        assert shown == wanted, kind
    settings = input_options(info["ChunkGRPO_GRPOSettings"])
    assert sum(not options.get("advanced") for options in settings.values()) <= 10
