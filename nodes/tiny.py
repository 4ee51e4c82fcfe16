"""The node that brings the embedded model."""

from __future__ import annotations

from comfy_api.latest import io

from ..chunk_grpo_core.models.tiny.world import HELD_OUT, TRAIN, caption
from .bridge.tiny import load_tiny
from .types import CATEGORY

__all__ = ["LoadTinyFlux"]


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
