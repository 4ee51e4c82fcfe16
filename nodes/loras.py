"""The nodes that read and write LoRA files."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io, ui

from ..chunk_grpo_core.lora.contents import check_numbers
from ..chunk_grpo_core.lora.files import convert_lora, load_lora, save_lora
from ..chunk_grpo_core.settings.blaming import blaming
from ..chunk_grpo_core.version import __version__
from .bridge.host import listed_loras, lora_file, lora_name, lora_path, new_lora_path
from .lazy import ask_next
from .types import CATEGORY, LogSocket, TrainingLog
from .validation import verdict

__all__ = ["LoadLoRAFile", "SaveLoRA"]


class LoadLoRAFile(io.ComfyNode):
    """File in models/loras -> LORA_MODEL."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """See ComfyUI's V3 node interface."""
        return io.Schema(
            node_id="ChunkGRPO_LoadLoRAFile",
            display_name="Load LoRA File",
            category=CATEGORY,
            description="Read a LoRA to train on with it, or to apply it with Load LoRA Model.",
            inputs=[
                io.Combo.Input("lora_name", options=listed_loras(), tooltip="File in models/loras.")
            ],
            outputs=[
                io.LoraModel.Output(
                    "lora",
                    display_name="lora",
                    tooltip="For continue_from of Train LoRA (RL), Apply LoRA, Evaluate "
                    "LoRA, or Load LoRA Model.",
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, lora_name: str | None = None) -> bool | str:
        """Refuse a file that is not there before anything runs."""
        return verdict(lora_file, lora_name)

    @classmethod
    def execute(cls, lora_name: str) -> io.NodeOutput:
        """Read."""
        file = lora_file(lora_name)
        tensors, _ = load_lora(file)
        with blaming(file):
            check_numbers(tensors)
        return io.NodeOutput(tensors)


class SaveLoRA(io.ComfyNode):
    """LORA_MODEL -> file in models/loras."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """See ComfyUI's V3 node interface."""
        return io.Schema(
            node_id="ChunkGRPO_SaveLoRA",
            display_name="Save LoRA (RL)",
            category=CATEGORY,
            description="Write a LoRA where ComfyUI's LoRA loaders find it. Connect the log to "
            "keep the recipe in the file's metadata.",
            inputs=[
                io.LoraModel.Input("lora", lazy=True, tooltip="From Train LoRA (RL)."),
                io.String.Input(
                    "name",
                    default="chunk_grpo/lora",
                    tooltip="File in models/loras, folders allowed. A number is added when the "
                    "name is taken; no file is overwritten.",
                ),
                io.Boolean.Input(
                    "for_diffusers",
                    default=False,
                    tooltip="Write a second file, with the layer names of diffusers, for its "
                    "load_lora_weights. For FLUX.1, FLUX.2, Chroma, SD3.5, Qwen-Image, Z-Image, "
                    "Krea 2, Lumina 2 and HiDream-I1.",
                ),
                LogSocket.Input(
                    "log",
                    lazy=True,
                    optional=True,
                    tooltip="Puts recipe and measured gain into the file.",
                ),
            ],
            outputs=[
                io.String.Output(
                    "lora_name", display_name="lora_name", tooltip="The name as Load LoRA lists it."
                ),
                io.String.Output(
                    "path", display_name="path", tooltip="The whole path of the file."
                ),
            ],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, name: str | None = None) -> bool | str:
        """Refuse a name that can be no file before the training runs, not after it."""
        return verdict(_check_name, name)

    @classmethod
    def check_lazy_status(cls, **inputs: Any) -> list[str]:
        """Refuse a name that came through a link, too, before the LoRA is trained."""
        _check_name(inputs["name"])
        return ask_next(inputs, (("lora", "log"),))

    @classmethod
    def execute(
        cls,
        lora: dict[str, torch.Tensor],
        name: str,
        for_diffusers: bool,
        log: TrainingLog | None = None,
    ) -> io.NodeOutput:
        """Write."""
        version = {"chunk_grpo_version": __version__}
        metadata = log.outcome.lora_metadata() if log else version
        second = None
        if for_diffusers:  # converted first, so that nothing is written if it is refused
            try:
                second = convert_lora(lora, "diffusers")
            except ValueError as error:
                raise ValueError(
                    f"{error}. Turn for_diffusers off and run again: the file for ComfyUI needs no "
                    "other names, and what is trained is kept"
                ) from error
        with new_lora_path(name) as path:
            save_lora(lora, path, metadata)
        written, listed = [str(path)], lora_name(path)
        if second is not None:
            with new_lora_path(_for_diffusers(listed)) as other:
                written.append(str(save_lora(second, other, metadata)))
        return io.NodeOutput(listed, str(path), ui=ui.PreviewText("\n".join(written)))


def _check_name(name: str) -> None:
    """Refuse what can be the name of neither file; ``for_diffusers`` may add the second one."""
    for each in (name, _for_diffusers(name)):
        lora_path(each)


def _for_diffusers(name: str) -> str:
    """The name of the second file."""
    return f"{name.removesuffix('.safetensors')}_diffusers"
