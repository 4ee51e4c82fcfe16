"""The node that uses a trained LoRA exactly as it was trained."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io

from ..chunk_grpo_core.lora.files import load_lora
from ..chunk_grpo_core.settings.blaming import blaming
from .bridge.applied import apply_lora, check_range
from .bridge.host import listed_loras, lora_file
from .lazy import ask_next
from .types import CATEGORY

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
                io.Model.Input(
                    "model", lazy=True, tooltip="The base MODEL that the LoRA was trained on."
                ),
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
                    lazy=True,
                    optional=True,
                    tooltip="From Train LoRA (RL) or Load LoRA File, instead of a file.",
                ),
            ],
            outputs=[
                io.Model.Output(tooltip="For any sampler, Evaluate LoRA, or another Apply LoRA.")
            ],
        )

    @classmethod
    def check_lazy_status(cls, **inputs: Any) -> list[str]:
        """Refuse what is wrong before the LoRA is trained and the MODEL is loaded."""
        check_range(inputs["start_percent"], inputs["end_percent"])
        _check_source(inputs["lora_name"], "lora" in inputs)
        return ask_next(inputs, (("lora",), ("model",)))

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
        _check_source(lora_name, lora is not None)
        source: object = "lora"
        if lora is None:
            source = file = lora_file(lora_name)
            lora, _ = load_lora(file)
        with blaming(source):
            applied = apply_lora(model, lora, strength, start_percent, end_percent)
        return io.NodeOutput(applied)


def _check_source(lora_name: str, has_lora: bool) -> None:
    """Make sure that there is one LoRA, and that its file is there.

    Raises:
        ValueError: There is none, there are two, or the file is missing.
    """
    if has_lora == (lora_name != _NO_FILE):
        raise ValueError(
            f"lora is {'not ' * (not has_lora)}connected and lora_name is {lora_name!r}; "
            f"connect lora, or choose a file, but not both (lora_name {_NO_FILE!r} is no file)"
        )
    if not has_lora:
        lora_file(lora_name)
