"""The node with which a person picks pictures; what they pick becomes a taste."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..chunk_grpo_core.rewards.pixels import as_colour
from ..chunk_grpo_core.rewards.taste.events import counting
from ..chunk_grpo_core.rewards.taste.fit import clicks_in
from ..chunk_grpo_core.rewards.taste.importing.comfy_graph import prompt_and_seed
from ..chunk_grpo_core.rewards.taste.importing.comfy_noise import made_in
from ..chunk_grpo_core.rewards.taste.picking.batches import WAYS, Batch, keep_batches
from ..chunk_grpo_core.rewards.taste.picking.marks import Marks
from ..chunk_grpo_core.rewards.taste.picking.said import add_said, parse_said
from .bridge.host import blocked
from .bridge.taste_heads import named_taste, picks_state
from .bridge.tastes import tell_pages, wait_for_picks
from .lazy import ask_next
from .rewards import prompts_for
from .types import CATEGORY, rare
from .validation import choice, verdict

__all__ = ["PickPictures"]


class PickPictures(io.ComfyNode):
    """IMAGE -> picks of a person, chosen and rejected pictures."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """See ComfyUI's V3 node interface."""
        return io.Schema(
            node_id="ChunkGRPO_PickPictures",
            display_name="Pick Pictures",
            category=f"{CATEGORY}/rewards",
            description="Shows pictures, and keeps which of them you like: with hearts, as the "
            "best of a group, in duels or with stars. From 20 picks a taste can be fitted, from 40 "
            "a model can be trained on it.",
            inputs=[
                io.Image.Input(
                    "images", lazy=True, tooltip="Pictures to pick from, best of one prompt."
                ),
                io.String.Input(
                    "taste",
                    default="mine",
                    tooltip="Name of the taste. Its picks and pictures are kept in "
                    "output/chunk_grpo/taste, in a folder of this name.",
                ),
                io.Combo.Input(
                    "kind",
                    options=list(WAYS),
                    default=WAYS[0],
                    tooltip="What is shown first; the buttons on the node change it.\n"
                    "hearts: like and reject any number.\n"
                    "best: the best of the group.\n"
                    "duels: the better of two; about every tenth is asked again.\n"
                    "stars: 1 to 5 for each.",
                ),
                io.Boolean.Input(
                    "wait",
                    default=False,
                    tooltip="On: the queue waits until you press Done on the node, or Cancel. "
                    "Off: the run goes on, and you pick whenever you like.",
                ),
                rare(
                    io.String.Input(
                        "picks",
                        multiline=True,
                        default="",
                        optional=True,
                        tooltip="Picks as text, for graphs without a page, counted once for the "
                        "same pictures; then nothing waits. Lines such as\n"
                        "liked: 1, 4\n"
                        "disliked: 2\n"
                        "best: 3\n"
                        "better: 2 > 1\n"
                        "stars: 5, 3, , 1\n"
                        "same: 1, 2\n"
                        "skip\n"
                        "undo",
                    )
                ),
                io.String.Input(
                    "prompt",
                    optional=True,
                    force_input=True,
                    tooltip="The prompt of all pictures, or one line for each. Not connected: it "
                    "is read from the graph.",
                ),
                io.Int.Input(
                    "seed",
                    min=0,
                    max=2**64 - 1,
                    optional=True,
                    force_input=True,
                    tooltip="Seed that made the pictures. Not connected: it is read from the "
                    "graph.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    "chosen",
                    display_name="chosen",
                    tooltip="Pictures that you like. If there is none, nodes that take it do not "
                    "run.",
                ),
                io.Image.Output(
                    "rejected",
                    display_name="rejected",
                    tooltip="Pictures that you do not like. If there is none, nodes that take it "
                    "do not run.",
                ),
                io.String.Output(
                    "name",
                    display_name="taste",
                    tooltip="Name of the taste, for Fit Taste.",
                ),
                io.Int.Output(
                    "count", display_name="clicks", tooltip="Clicks of this taste that count."
                ),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, taste: str | None = None) -> bool | str:
        """Refuse a name that can be none before anything runs."""
        return verdict(named_taste, taste, kind=str)

    @classmethod
    def check_lazy_status(cls, **inputs: Any) -> list[str]:
        """Refuse what is wrong before the pictures are drawn."""
        _way(inputs["kind"])
        parse_said(inputs.get("picks", ""))
        named_taste(inputs["taste"])
        return ask_next(inputs, (("images",),))

    @classmethod
    def fingerprint_inputs(cls, taste: str | None = None, **others: Any) -> str:
        """Run again when something was picked; of a name through a link nothing is known."""
        return picks_state(taste)

    @classmethod
    def execute(
        cls,
        images: Tensor,
        taste: str,
        kind: str,
        wait: bool,
        picks: str = "",
        prompt: str | None = None,
        seed: int | None = None,
    ) -> io.NodeOutput:
        """Keep, show, wait, read what was picked."""
        way, said = _way(kind), parse_said(picks)
        into = named_taste(taste)
        pictures = as_colour(images.cpu().float(), "images")
        count = len(pictures)
        text, number, made = _from_graph(cls.hidden.prompt, cls.hidden.unique_id, count)
        texts = [text] * count if prompt is None else prompts_for(prompt, count)
        if seed not in (None, number):
            made.pop("noise", None)  # of another seed nobody knows what was drawn with it
        facts = {"kind": way, "seed": number if seed is None else seed, "made": made}
        batches = keep_batches(into, pictures, texts, **facts)
        add_said(into, batches, picks)
        tell_pages(into.folder.name)
        if wait and not said:
            wait_for_picks(into.folder.name)
        made = into.picks()
        chosen, rejected = _sorted(batches, Marks(made))
        return io.NodeOutput(
            pictures[chosen] if chosen else blocked(),
            pictures[rejected] if rejected else blocked(),
            into.folder.name,
            clicks_in(counting(made)),
            ui={"chunk_grpo_taste": [into.folder.name]},
        )


def _way(kind: object) -> str:
    if (way := choice("kind", kind)) not in WAYS:
        raise ValueError(f"kind is {way[:40]!r}; choose one of {', '.join(WAYS)}")
    return way


def _from_graph(graph: Any, node: str | None, count: int) -> tuple[str, int | None, dict[str, Any]]:
    """Prompt, seed and whatever else the graph tells of the pictures that come in."""
    if not isinstance(graph, Mapping) or node is None or node not in graph:
        return "", None, {}
    text, seed = prompt_and_seed({"prompt": json.dumps(graph, default=str)}, [node])
    return " ".join(text.split()), seed, made_in(graph, node, count)


def _sorted(batches: Sequence[Batch], marks: Marks) -> tuple[list[int], list[int]]:
    """Places of the chosen and of the rejected pictures in the batch of the graph."""
    places: dict[int, list[int]] = {1: [], 0: [], -1: []}
    for batch in batches:
        for shown, mark in zip(batch.shown, marks.verdicts(batch), strict=True):
            places[mark].append(shown.index or 0)
    return sorted(places[1]), sorted(places[-1])
