"""Prompt and seed of a picture that ComfyUI (or a program like Automatic1111) has saved.

ComfyUI writes the graph that made a picture into its PNG, as JSON under ``prompt``. From the node
that saved it the links are followed back to the nearest sampler, and from there to the text of its
positive conditioning. What cannot be followed is not guessed.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

from ...safe_json import parse_json

__all__ = ["prompt_and_seed"]

_LARGEST = 8 * 2**20
_TEXTS = ("text", "prompt", "t5xxl", "clip_l", "text_g", "text_l", "string", "value")
_SEEDS = ("seed", "noise_seed")
_SEED_OF_OTHERS = re.compile(r"\bSeed:\s*(\d{1,20})\b")


def prompt_and_seed(notes: Mapping[Any, Any]) -> tuple[str, int | None]:
    """Read the notes of a picture (``info`` of Pillow); "" and None for what they do not say."""
    graph = notes.get("prompt")
    if isinstance(graph, str) and len(graph) <= _LARGEST:
        try:
            nodes = parse_json(graph.encode("utf-8", "replace"))
        except ValueError:
            nodes = None
        if isinstance(nodes, dict):
            return _of_graph(nodes)
    text = notes.get("parameters")
    if isinstance(text, str) and len(text) <= _LARGEST:
        seed = _SEED_OF_OTHERS.search(text)
        prompt = re.split(r"\nNegative prompt:|\nSteps:", text)[0].strip()
        return _plain(prompt), int(seed[1]) if seed else None
    return "", None


def _of_graph(nodes: Mapping[str, Any]) -> tuple[str, int | None]:
    inputs = {
        name: node["inputs"]
        for name, node in nodes.items()
        if isinstance(node, dict) and isinstance(node.get("inputs"), dict)
    }
    ends = [name for name in inputs if "images" in inputs[name]] or list(inputs)
    for name in _upstream(inputs, ends):
        own = inputs[name]
        start = next((own[key] for key in ("positive", "guider") if _is_link(own.get(key))), None)
        if start is None:
            continue
        sources = [own.get("noise")] if _is_link(own.get("noise")) else []
        seed = next(
            (found for place in (name, *(str(source[0]) for source in sources))
             if (found := _seed(inputs.get(place, {}))) is not None),
            None,
        )  # fmt: skip
        return _text(inputs, str(start[0])), seed
    return "", None


def _upstream(inputs: Mapping[str, dict[str, Any]], ends: list[str]) -> Iterator[str]:
    """Nodes from the ends back, the nearest first, each once."""
    todo, seen = deque(ends), set(ends)
    while todo:
        name = todo.popleft()
        if name not in inputs:
            continue
        yield name
        for value in inputs[name].values():
            if _is_link(value) and str(value[0]) not in seen:
                seen.add(str(value[0]))
                todo.append(str(value[0]))


def _text(inputs: Mapping[str, dict[str, Any]], start: str) -> str:
    """The nearest text behind a conditioning; the negative side is left alone."""
    positive = {
        name: {key: value for key, value in own.items() if key != "negative"}
        for name, own in inputs.items()
    }
    for name in _upstream(positive, [start]):
        for key in _TEXTS:
            value = positive[name].get(key)
            if isinstance(value, str) and value.strip():
                return _plain(value.strip())
    return ""


def _seed(own: Mapping[str, Any]) -> int | None:
    for key in _SEEDS:
        if type(own.get(key)) is int:
            return own[key]
    return None


def _is_link(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], (str, int))


def _plain(text: str) -> str:
    """Without half characters, which no file can keep."""
    return text.encode("utf-8", "ignore").decode()
