"""Write locales/: the texts of all nodes as ComfyUI's page shows them, in every language.

python tools/locales.py

English comes from the nodes' schemas, the rest from tools/translations.json: English text ->
language -> translation. A text that has changed is a new text there, so an old translation never
stays on it; what is missing is listed, with the old text it resembles, and shown in English.
"""

from __future__ import annotations

import difflib
import json
import sys
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))

from tests.comfy.server import ComfyServer

LOCALES = ROOT / "locales"
MEMORY = ROOT / "tools" / "translations.json"
LANGUAGES = ("zh", "ja", "ko")
PREFIX = "ChunkGRPO_"
TRANSLATED_BY_COMFYUI = ("training",)  # parts of our categories
EXTRA_WIDGET = "control_after_generate"  # the page adds it to a seed
EATEN = "{}|@"  # the page reads these as syntax: no text may hold them

Memory = Mapping[str, Mapping[str, str]]
Tree = dict[str, Any]


def english_nodes(object_info: Mapping[str, Mapping[str, Any]]) -> Tree:
    """nodeDefs.json from what /object_info tells about our nodes."""
    return {name: _node(info) for name, info in sorted(object_info.items()) if _ours(name)}


def english_main(object_info: Mapping[str, Mapping[str, Any]]) -> Tree:
    """main.json: the parts of our categories that ComfyUI has no translation of."""
    parts = {
        part
        for name, info in object_info.items()
        if _ours(name)
        for part in info["category"].split("/")
    }
    names = sorted(parts.difference(TRANSLATED_BY_COMFYUI))
    return {"nodeCategories": {name: name for name in names}}


def _ours(name: str) -> bool:
    return name.startswith(PREFIX)


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


def texts_of(tree: Tree) -> Iterator[str]:
    """All texts of a tree."""
    for value in tree.values():
        if isinstance(value, str):
            yield value
        else:
            yield from texts_of(value)


def mapped(tree: Tree, change: Callable[[str], str]) -> Tree:
    """The tree with every text changed."""
    return {
        key: change(value) if isinstance(value, str) else mapped(value, change)
        for key, value in tree.items()
    }


def translate(text: str, language: str, memory: Memory) -> str:
    """Translate line by line; a line that is not in the memory stays English."""
    lines = text.split("\n")
    return "\n".join(memory.get(line, {}).get(language) or line for line in lines)


def missing(trees: list[Tree], memory: Memory) -> list[tuple[str, str]]:
    """(language, English line) of every translation that does not exist."""
    lines = lines_of(trees)
    return [(lang, line) for line in lines for lang in LANGUAGES if not memory.get(line, {}).get(lang)]


def unused(trees: list[Tree], memory: Memory) -> list[str]:
    """English lines of the memory that no node has any more."""
    known = set(lines_of(trees))
    return [line for line in memory if line not in known]


def lines_of(trees: list[Tree]) -> list[str]:
    """Every English line once, in order."""
    return list(
        dict.fromkeys(line for tree in trees for text in texts_of(tree) for line in text.split("\n"))
    )


def read(path: Path) -> Tree:
    """Read a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def write(path: Path, tree: Mapping[str, Any]) -> None:
    """Write a JSON file as people read it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(tree, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    with ComfyServer() as server, urllib.request.urlopen(f"{server.url}/object_info") as answer:
        object_info = json.load(answer)
    english = {"nodeDefs.json": english_nodes(object_info), "main.json": english_main(object_info)}
    trees = list(english.values())
    memory = read(MEMORY) if MEMORY.exists() else {}
    for file, tree in english.items():
        write(LOCALES / "en" / file, tree)
        for language in LANGUAGES:
            translated = mapped(tree, lambda text, to=language: translate(text, to, memory))
            write(LOCALES / language / file, translated)
    old = unused(trees, memory)
    for language, line in (absent := missing(trees, memory)):
        print(f"missing {language}: {line}")
        for like in difflib.get_close_matches(line, old, 1):
            print(f"   was: {like}")
    for line in old:
        print(f"unused: {line}")
    if absent or old:
        sys.exit(f"{len(absent)} translations missing, {len(old)} unused: edit {MEMORY.name}")


if __name__ == "__main__":
    main()
