"""The node that plots a training."""

from __future__ import annotations

from comfy_api.latest import io

from .types import CATEGORY, LogSocket, TrainingLog

__all__ = ["PlotTraining"]


class PlotTraining(io.ComfyNode):
    """Training log -> IMAGE."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """See ComfyUI's V3 node interface."""
        return io.Schema(
            node_id="ChunkGRPO_PlotTraining",
            display_name="Plot Training",
            category=CATEGORY,
            description="Reward, clipping, KL and gradient norm over the iterations.",
            inputs=[
                LogSocket.Input("log", tooltip="From Train LoRA (RL)."),
                io.Boolean.Input("dark", default=False, tooltip="Draw on a dark background."),
            ],
            outputs=[
                io.Image.Output(
                    "plot", display_name="plot", tooltip="For Preview Image or Save Image."
                )
            ],
        )

    @classmethod
    def execute(cls, log: TrainingLog, dark: bool) -> io.NodeOutput:
        """Draw."""
        return io.NodeOutput(log.outcome.plot(dark=dark)[None])
