"""Prompt and seed of a picture that ComfyUI (or a program like Automatic1111) has saved.

ComfyUI writes the graph that made a picture into its PNG, as JSON under ``prompt``. From the node
that saved it the links are followed back to the nearest sampler, and from there to the text of its
positive conditioning. What cannot be followed is not guessed.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ...safe_json import parse_json

__all__ = ["graph_of", "is_link", "nearest_sampler", "prompt_and_seed", "seed_of"]

_LARGEST = 8 * 2**20
_TEXTS = ("text", "prompt", "t5xxl", "clip_l", "text_g", "text_l", "string", "value")
_SEEDS = ("seed", "noise_seed")
_CONDITIONED = ("positive", "guider")
_SEED_OF_OTHERS = re.compile(r"\bSeed:\s*(\d{1,20})\b")


def graph_of(notes: Mapping[Any, Any]) -> Mapping[str, Any] | None:
    """The graph in the notes of a picture (``info`` of Pillow), if there is one."""
    graph = notes.get("prompt")
    if not isinstance(graph, str) or len(graph) > _LARGEST:
        return None
    try:
        nodes = parse_json(graph.encode("utf-8", "replace"))
    except ValueError:
        return None
    return nodes if isinstance(nodes, dict) else None


def prompt_and_seed(
    notes: Mapping[Any, Any], ends: Iterable[str] | None = None
) -> tuple[str, int | None]:
    """Read the notes of a picture (``info`` of Pillow); "" and None for what they do not say.

    Args:
        notes: Of the picture.
        ends: Nodes of the graph that took the picture; None: all that take ``images``.
    """
    nodes = graph_of(notes)
    if nodes is not None:
        return _of_graph(nodes, ends)
    text = notes.get("parameters")
    if isinstance(text, str) and len(text) <= _LARGEST:
        seed = _SEED_OF_OTHERS.search(text)
        prompt = re.split(r"\nNegative prompt:|\nSteps:", text)[0].strip()
        return _plain(prompt), int(seed[1]) if seed else None
    return "", None


def _of_graph(nodes: Mapping[str, Any], ends: Iterable[str] | None) -> tuple[str, int | None]:
    inputs = _inputs_of(nodes)
    name = nearest_sampler(nodes, ends)
    if name is None:
        return "", None
    sampler = inputs[name]
    start = next(sampler[key] for key in _CONDITIONED if is_link(sampler.get(key)))
    sources = [sampler["noise"]] if is_link(sampler.get("noise")) else []
    places = (name, *(str(source[0]) for source in sources))
    seeds = (seed_of(inputs.get(place, {})) for place in places)
    seed = next((found for found in seeds if found is not None), None)
    return _text(inputs, str(start[0])), seed


def nearest_sampler(nodes: Mapping[str, Any], ends: Iterable[str] | None = None) -> str | None:
    """The node that sampled what ``ends`` took: the nearest one with a conditioning or a guider."""
    inputs = _inputs_of(nodes)
    taking = [name for name in inputs if "images" in inputs[name]] or list(inputs)
    for name in _upstream(inputs, list(taking if ends is None else ends)):
        if any(is_link(inputs[name].get(key)) for key in _CONDITIONED):
            return name
    return None


def _inputs_of(nodes: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return {
        name: node["inputs"]
        for name, node in nodes.items()
        if isinstance(node, dict) and isinstance(node.get("inputs"), dict)
    }


def _upstream(inputs: Mapping[str, dict[str, Any]], ends: list[str]) -> Iterator[str]:
    """Nodes from the ends back, the nearest first, each once."""
    todo, seen = deque(ends), set(ends)
    while todo:
        name = todo.popleft()
        if name not in inputs:
            continue
        yield name
        for value in inputs[name].values():
            if is_link(value) and str(value[0]) not in seen:
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


def seed_of(own: Mapping[str, Any]) -> int | None:
    """The seed that a node has itself, of its inputs."""
    for key in _SEEDS:
        if type(own.get(key)) is int:
            return own[key]
    return None


def is_link(value: object) -> bool:
    """Whether an input comes from another node: (its name, the number of its output)."""
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], (str, int))


def _plain(text: str) -> str:
    """Without half characters, which no file can keep."""
    return text.encode("utf-8", "ignore").decode()
