"""Write locales/: the texts of all nodes as ComfyUI's page shows them, in every language.

python tools/locales.py

English comes from the nodes' schemas, the rest from tools/translations.json: English line ->
language -> translation; a path such as ChunkGRPO_PromptSet.inputs.clip.name stands for a line that
means something else at that place. A line that changes is a new line there, so no old translation
stays on it. What is missing is listed, with the old line it resembles, and stays English.
"""

from __future__ import annotations

import argparse
import difflib
import json
import sys
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))

from tools.comfyui.server import ComfyServer

ROOT = Path(__file__).resolve().parents[1]
LOCALES = ROOT / "locales"
MEMORY = ROOT / "tools" / "translations.json"
LANGUAGES = ("zh", "ja", "ko")
PREFIX = "ChunkGRPO_"
TRANSLATED_BY_COMFYUI = ("training", "sampling")  # parts of our categories
EXTRA_WIDGET = "control_after_generate"  # the page adds it to a seed
EATEN = "{}|@"  # the page reads these as syntax: no text may hold them

Memory = Mapping[str, Mapping[str, str]]
Tree = dict[str, Any]


def english_files(object_info: Mapping[str, Mapping[str, Any]]) -> dict[str, Tree]:
    """The English files, from what /object_info tells about our nodes.

    nodeDefs.json holds the nodes, main.json the parts of our categories that ComfyUI lacks.
    """
    ours = {name: info for name, info in sorted(object_info.items()) if name.startswith(PREFIX)}
    levels = {level for info in ours.values() for level in info["category"].split("/")}
    categories = sorted(levels.difference(TRANSLATED_BY_COMFYUI))
    return {
        "nodeDefs.json": {name: _node(info) for name, info in ours.items()},
        "main.json": {"nodeCategories": {name: name for name in categories}},
    }


def _node(info: Mapping[str, Any]) -> Tree:
    specs = [*info["input"].get("required", {}).items(), *info["input"].get("optional", {}).items()]
    inputs: Tree = {}
    for name, spec in specs:
        options = spec[1] if len(spec) > 1 else {}
        tooltip = {"tooltip": options["tooltip"]} if "tooltip" in options else {}
        inputs[name] = {"name": options.get("display_name") or name, **tooltip}
        if options.get(EXTRA_WIDGET):
            inputs[EXTRA_WIDGET] = {"name": EXTRA_WIDGET.replace("_", " ")}
    tooltips = info.get("output_tooltips") or [None] * len(info["output"])
    outputs = {
        str(index): _output(*told)
        for index, told in enumerate(
            zip(info["output_name"], info["output"], tooltips, strict=True)
        )
    }
    texts = {"display_name": info["display_name"], "description": info["description"]}
    return {**texts, "inputs": inputs, "outputs": outputs}


def _output(name: str, kind: str, tooltip: str | None) -> Tree:
    """The page names an output that is called like its type by itself."""
    return {
        **({} if name == kind else {"name": name}),
        **({"tooltip": tooltip} if tooltip else {}),
    }


def texts_of(tree: Tree, path: str = "") -> Iterator[tuple[str, str]]:
    """(dotted path, text) of every text of a tree."""
    for key, value in tree.items():
        if isinstance(value, str):
            yield f"{path}{key}", value
        else:
            yield from texts_of(value, f"{path}{key}.")


def lines_of(tree: Tree) -> Iterator[tuple[str, str]]:
    """(dotted path, line) of every line of every text; a list in a tooltip is one entry a line."""
    for path, text in texts_of(tree):
        for line in text.split("\n"):
            yield path, line


def key_of(path: str, line: str, memory: Memory) -> str:
    """Where the memory holds a line: under its path, if it means something else there."""
    return path if path in memory else line


def translated(tree: Tree, language: str, memory: Memory, path: str = "") -> Tree:
    """The tree in a language; a line without translation stays English."""
    result: Tree = {}
    for key, value in tree.items():
        here = f"{path}{key}"
        if isinstance(value, str):
            lines = value.split("\n")
            translations = (
                memory.get(key_of(here, line, memory), {}).get(language) for line in lines
            )
            result[key] = "\n".join(
                new or line for new, line in zip(translations, lines, strict=True)
            )
        else:
            result[key] = translated(value, language, memory, f"{here}.")
    return result


def missing(tree: Tree, memory: Memory) -> list[tuple[str, str]]:
    """(language, key of the memory) of every translation that does not exist."""
    keys = dict.fromkeys(key_of(path, line, memory) for path, line in lines_of(tree))
    return [(to, key) for key in keys for to in LANGUAGES if not memory.get(key, {}).get(to)]


def unused(tree: Tree, memory: Memory) -> list[str]:
    """Keys of the memory that no node has any more."""
    used = {key_of(path, line, memory) for path, line in lines_of(tree)}
    return [key for key in memory if key not in used]


def read(path: Path) -> Tree:
    """Read a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def write(path: Path, tree: Mapping[str, Any]) -> None:
    """Write a JSON file as people read it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(tree, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def write_all(english: Mapping[str, Tree], memory: Memory) -> None:
    """Write every file of every language."""
    for file, tree in english.items():
        write(LOCALES / "en" / file, tree)
        for language in LANGUAGES:
            write(LOCALES / language / file, translated(tree, language, memory))


def main() -> None:
    argparse.ArgumentParser(description=__doc__.partition("\n")[0]).parse_args()
    with ComfyServer() as server, urllib.request.urlopen(f"{server.url}/object_info") as answer:
        english = english_files(json.load(answer))
    everything = {key: value for tree in english.values() for key, value in tree.items()}
    memory = read(MEMORY)
    write_all(english, memory)
    absent, old = missing(everything, memory), unused(everything, memory)
    for language, key in absent:
        print(f"missing {language}: {key}")
        for like in difflib.get_close_matches(key, old, 1):
            print(f"   was: {like}")
    for key in old:
        print(f"unused: {key}")
    if absent or old:
        sys.exit(f"{len(absent)} translations missing, {len(old)} unused: edit {MEMORY.name}")


if __name__ == "__main__":
    main()
