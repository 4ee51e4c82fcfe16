"""Nodes that bring the embedded model and the prompts."""

from __future__ import annotations

import random

from comfy_api.latest import io

from ..chunk_grpo_core.tiny.world import HELD_OUT, TRAIN, caption
from .bridge.tiny import load_tiny
from .types import CATEGORY, PromptSet, PromptsSocket

__all__ = ["LoadTinyFlux", "PromptSetNode", "split_prompts"]


class LoadTinyFlux(io.ComfyNode):
    """-> MODEL, CLIP, VAE and captions of the embedded tiny FLUX."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """See ComfyUI's V3 node interface."""
        return io.Schema(
            node_id="ChunkGRPO_LoadTinyFlux",
            display_name="Load Tiny FLUX",
            category=CATEGORY,
            description="A real FLUX small enough to come with this pack (64 x 64 pictures of "
            "shapes). It trains on a CPU in minutes: for the quick start, for learning what the "
            "knobs do, and for tests. Standard nodes work on all outputs.",
            inputs=[],
            outputs=[
                io.Model.Output(tooltip="The tiny FLUX transformer."),
                io.Clip.Output(tooltip="Its text encoder; it knows the words of its own captions."),
                io.Vae.Output(tooltip="Its latent codec: 16 channels, 8 x smaller."),
                io.String.Output(
                    "captions",
                    display_name="captions",
                    tooltip="Captions to train on, one per line, for Prompt Set.",
                ),
                io.String.Output(
                    "held_out_captions",
                    display_name="held_out_captions",
                    tooltip="Captions that the base model has never seen, one per line.",
                ),
            ],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        """Build the three objects."""
        captions = ["\n".join(caption(scene) for scene in scenes) for scenes in (TRAIN, HELD_OUT)]
        return io.NodeOutput(*load_tiny(), *captions)


def split_prompts(
    text: str, held_out_text: str, held_out_count: int, seed: int
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Split lines into training and held-out prompts; empty lines and repetitions are dropped.

    Args:
        text: One prompt per line.
        held_out_text: Prompts to measure on, one per line; when there are none, they are taken
            out of ``text``.
        held_out_count: How many prompts to measure on, chosen at random; all of
            ``held_out_text`` when it has fewer.
        seed: Seed of the choice.

    Raises:
        ValueError: Nothing is left to train on.
    """
    train, measured = (
        list(dict.fromkeys(line.strip() for line in lines.splitlines() if line.strip()))
        for lines in (text, held_out_text)
    )
    source = measured or train
    held_out = random.Random(seed).sample(source, min(held_out_count, len(source)))
    train = [prompt for prompt in train if prompt not in set(held_out)]
    if not train:
        raise ValueError(
            f"{len(held_out)} prompts are held out and none is left to train on; write more "
            "prompts, one per line, or hold out fewer"
        )
    return tuple(train), tuple(held_out)


class PromptSetNode(io.ComfyNode):
    """CLIP and lines of text -> prompts with conditioning."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """See ComfyUI's V3 node interface."""
        return io.Schema(
            node_id="ChunkGRPO_PromptSet",
            display_name="Prompt Set",
            category=CATEGORY,
            description="Prompts to train on and prompts to measure on, encoded once.",
            inputs=[
                io.Clip.Input("clip", tooltip="The text encoder that belongs to the MODEL."),
                io.String.Input(
                    "text",
                    multiline=True,
                    tooltip="Training prompts, one per line. Tens to hundreds work better than a "
                    "few: with few prompts the LoRA learns those pictures.",
                ),
                io.String.Input(
                    "held_out_text",
                    multiline=True,
                    default="",
                    tooltip="Prompts for measuring only, one per line. Leave empty to take them "
                    "out of the training prompts.",
                ),
                io.Int.Input(
                    "held_out",
                    default=8,
                    min=0,
                    max=1000,
                    tooltip="How many prompts to measure on, before and after training; never "
                    "trained on. At least 2 for Train LoRA; more make the measured gain surer.",
                ),
                io.Int.Input(
                    "split_seed",
                    default=0,
                    min=0,
                    max=2**31 - 1,
                    tooltip="Seed of the choice of held-out prompts.",
                ),
                io.Float.Input(
                    "guidance",
                    default=3.5,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    tooltip="FLUX guidance of FLUX.1-dev and its relatives. Models without "
                    "guidance (schnell, tiny FLUX, SD3) do not look at it.",
                ),
            ],
            outputs=[
                PromptsSocket.Output(
                    "prompts", display_name="prompts", tooltip="For Roll Out and Train LoRA."
                )
            ],
        )

    @classmethod
    def execute(
        cls,
        clip,  # noqa: ANN001 - comfy.sd.CLIP
        text: str,
        held_out_text: str,
        held_out: int,
        split_seed: int,
        guidance: float,
    ) -> io.NodeOutput:
        """Split and encode."""
        train, measured = split_prompts(text, held_out_text, held_out, split_seed)
        conditioning = {
            prompt: [
                [tensor, {**extras, "guidance": guidance}]
                for tensor, extras in clip.encode_from_tokens_scheduled(clip.tokenize(prompt))
            ]
            for prompt in (*train, *measured)
        }
        return io.NodeOutput(PromptSet(train, measured, conditioning))
