"""The node that uses a trained LoRA exactly as it was trained."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io

from ..chunk_grpo_core.lora.files import load_lora
from ..chunk_grpo_core.settings.blaming import blaming
from .bridge.applied import apply_lora, check_range
from .bridge.host import listed_loras, lora_file
from .types import CATEGORY
from .validation import verdict

__all__ = ["ApplyLoRA"]

_NO_FILE = "none"


class ApplyLoRA(io.ComfyNode):
    """MODEL and LORA_MODEL or file -> MODEL."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """See ComfyUI's V3 node interface."""
        return io.Schema(
            node_id="ChunkGRPO_ApplyLoRA",
            display_name="Apply LoRA (exact, step range)",
            category=CATEGORY,
            description="Use a LoRA as it was trained: beside the weights, which are not changed, "
            "so nothing is rounded away in bf16, fp8 or quantised models. It can act on a part of "
            "the steps only, for example the first 60 %.",
            inputs=[
                io.Model.Input("model", tooltip="The base MODEL that the LoRA was trained on."),
                io.Combo.Input(
                    "lora_name",
                    options=[_NO_FILE, *listed_loras()],
                    default=_NO_FILE,
                    tooltip="A file in models/loras, in any layout that ComfyUI's loaders know. "
                    "Leave it at none when lora is connected.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-100.0,
                    max=100.0,
                    step=0.01,
                    tooltip="Factor of the LoRA. 1 is what was trained; 0 is the base model.",
                ),
                io.Float.Input(
                    "start_percent",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.001,
                    tooltip="Where in the sampling the LoRA begins to act; 0 is the first step.",
                ),
                io.Float.Input(
                    "end_percent",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.001,
                    tooltip="Where it stops. 0.6: LoRA on the first 60 %, base model after, as the "
                    "paper samples. Counted on the MODEL's own schedule, as in ComfyUI's nodes.",
                ),
                io.LoraModel.Input(
                    "lora",
                    optional=True,
                    tooltip="From Train LoRA (RL) or Load LoRA File, instead of a file.",
                ),
            ],
            outputs=[
                io.Model.Output(tooltip="For any sampler, Evaluate LoRA, or another Apply LoRA.")
            ],
        )

    @classmethod
    def validate_inputs(cls, start_percent: float | None, end_percent: float | None) -> bool | str:
        """Refuse a range that is none before anything runs."""
        return verdict(check_range, start_percent, end_percent, kind=(int, float))

    @classmethod
    def execute(
        cls,
        model: Any,
        lora_name: str,
        strength: float,
        start_percent: float,
        end_percent: float,
        lora: dict[str, torch.Tensor] | None = None,
    ) -> io.NodeOutput:
        """Apply."""
        if (lora is None) == (lora_name == _NO_FILE):
            raise ValueError(
                f"lora is {'not ' * (lora is None)}connected and lora_name is {lora_name!r}; "
                f"connect lora, or choose a file, but not both (lora_name {_NO_FILE!r} is no file)"
            )
        source: object = "lora"
        if lora is None:
            source = file = lora_file(lora_name)
            lora, _ = load_lora(file)
        with blaming(source):
            applied = apply_lora(model, lora, strength, start_percent, end_percent)
        return io.NodeOutput(applied)
