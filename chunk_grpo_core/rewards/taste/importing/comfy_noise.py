"""What a ComfyUI graph says of how a picture was made: model, LoRAs, sampler, and its noise.

The noise that a picture began with can be drawn again where the graph leaves no doubt about it: the
picture was decoded from what a sampler made of an empty latent, from all of its noise, with a seed
that stands in the graph, and no step drew further noise. Then torch drew the noise of the whole
batch on the CPU (``comfy.sample.prepare_noise``), as ``method.noise.noise_of_batch`` does. After
an upscaling, a second sampler, a picture to begin with or a batch put together nothing is written.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from ..events import TORCH_CPU
from .comfy_graph import is_link, seed_of

__all__ = ["made_in"]

_DECODERS = ("VAEDecode", "VAEDecodeTiled")
_EMPTY = re.compile(r"Empty\w*Latent\w*")
_DRAWS_MORE = re.compile(r"ancestral|sde|lcm|_2s_a|restart|seeds", re.IGNORECASE)
"""In names of samplers whose steps draw noise."""
_FILES = ("unet_name", "ckpt_name")
_LONGEST_CHAIN = 100


def made_in(nodes: Mapping[str, Any], end: str, count: int | None = None) -> dict[str, Any]:
    """What is known of the pictures that a node takes, for ``Shown.made``.

    Args:
        nodes: The graph, as ComfyUI's API has it.
        end: The node that takes them, as ``images``.
        count: How many there are; None: one file, whose place in its batch nobody knows.

    Returns:
        ``model``, ``lora`` (a list), ``sampler`` and ``cfg`` where the graph says so, and ``noise``
        where its seed and the place of a picture in the batch are enough to draw it again.
    """
    graph = _Graph(nodes)
    decoder = graph.source(end, "images")
    if graph.kind(decoder) not in _DECODERS:
        return {}
    sampler = graph.source(decoder, "samples")
    made: dict[str, Any] = {}
    guider = graph.source(sampler, "guider") or sampler
    model, loras = graph.model(guider)
    made |= {"model": model} if model else {}
    made |= {"lora": loras} if loras else {}
    chosen = graph.source(sampler, "sampler") or sampler
    name, cfg = graph.inputs(chosen).get("sampler_name"), graph.inputs(guider).get("cfg")
    made |= {"sampler": name} if isinstance(name, str) else {}
    made |= {"cfg": cfg} if isinstance(cfg, int | float) and not isinstance(cfg, bool) else {}
    has_one_noise = isinstance(name, str) and not _DRAWS_MORE.search(name)
    if has_one_noise and _draws_all(graph, sampler) and _is_whole(graph, sampler, count):
        made["noise"] = TORCH_CPU
    return made


class _Graph:
    """Nodes by name; what is not there has neither a kind nor inputs."""

    def __init__(self, nodes: Mapping[str, Any]) -> None:
        self._nodes = nodes

    def kind(self, name: str | None) -> str:
        node = self._nodes.get(name) if name is not None else None
        kind = node.get("class_type") if isinstance(node, dict) else None
        return kind if isinstance(kind, str) else ""

    def inputs(self, name: str | None) -> Mapping[str, Any]:
        node = self._nodes.get(name) if name is not None else None
        inputs = node.get("inputs") if isinstance(node, dict) else None
        return inputs if isinstance(inputs, dict) else {}

    def source(self, name: str | None, key: str) -> str | None:
        """The node behind an input."""
        value = self.inputs(name).get(key)
        return str(value[0]) if isinstance(value, list) and is_link(value) else None

    def model(self, name: str | None) -> tuple[str, list[str]]:
        """The file of a model and those of its LoRAs, the first one first."""
        loras: list[str] = []
        for place in self._models(name):
            inputs = self.inputs(place)
            lora = inputs.get("lora_name")
            if isinstance(lora, str) and lora != "none":
                loras.insert(0, lora)
            for key in _FILES:
                if isinstance(inputs.get(key), str):
                    return inputs[key], loras
            if self.kind(place) == "ChunkGRPO_LoadTinyFlux":
                return "tiny FLUX", loras
        return "", loras

    def _models(self, name: str | None) -> Iterator[str]:
        for _ in range(_LONGEST_CHAIN):
            name = self.source(name, "model")
            if name is None:
                return
            yield name


def _draws_all(graph: _Graph, name: str | None) -> bool:
    """Whether a node samples from its whole noise to the end, with a seed of its own."""
    inputs, kind = graph.inputs(name), graph.kind(name)
    if kind == "KSampler":
        return seed_of(inputs) is not None and inputs.get("denoise") == 1
    if kind == "KSamplerAdvanced":
        steps, last = inputs.get("steps"), inputs.get("end_at_step")
        is_last = type(steps) is int and type(last) is int and last >= steps
        wanted = {"add_noise": "enable", "return_with_leftover_noise": "disable"}
        is_whole = all(inputs.get(key) == value for key, value in wanted.items())
        return (
            is_whole
            and is_last
            and inputs.get("start_at_step") == 0
            and seed_of(inputs) is not None
        )
    if kind == "SamplerCustom":
        return (
            inputs.get("add_noise") is True
            and seed_of(inputs) is not None
            and _has_all_levels(graph, name)
        )
    noise = graph.source(name, "noise")
    return (
        kind == "SamplerCustomAdvanced"
        and graph.kind(noise) == "RandomNoise"
        and seed_of(graph.inputs(noise)) is not None
        and _has_all_levels(graph, name)
    )


def _has_all_levels(graph: _Graph, sampler: str | None) -> bool:
    """Whether noise levels come from a scheduler, and not from a part of those of another one."""
    scheduler = graph.source(sampler, "sigmas")
    inputs = graph.inputs(scheduler)
    return bool(inputs) and "sigmas" not in inputs and inputs.get("denoise", 1) == 1


def _is_whole(graph: _Graph, sampler: str | None, count: int | None) -> bool:
    """Whether a sampler began with an empty latent of so many pictures."""
    latent = graph.source(sampler, "latent_image")
    size = graph.inputs(latent).get("batch_size", 1)
    return (
        _EMPTY.fullmatch(graph.kind(latent)) is not None
        and not any(is_link(value) for value in graph.inputs(latent).values())
        and size == (1 if count is None else count)
    )
