"""Qwen-Image (also 2512) and Qwen-Image 2.1, as diffusers' pipelines run them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch

from ..optional import require
from ..settings.declared import Range
from .family import Checkpoint
from .pipelines.as_family import pipeline_family
from .pipelines.entry import Call, PipelineEntry, Text, in_blocks, text_of
from .pipelines.form import Form
from .pipelines.guidance import Guidance
from .pipelines.model import GuidedModel, PipelineModel
from .pipelines.scaling import QWEN, QWEN_RGBA

__all__ = ["FIRST", "SECOND"]


@dataclass(frozen=True, kw_only=True)
class QwenImageModel(GuidedModel):
    """A Qwen-Image: a pipeline, whose transformer may come from another file."""

    guidance: Annotated[float, Range(0, 100)] = 4.0
    """Guidance scale ("true_cfg_scale"); above 1 each step takes two calls. 1 (none) with a
    lightning LoRA merged."""
    negative_prompt: str = " "
    """Prompt that guidance moves away from; a blank, as its makers have it, is none in
    particular."""


@dataclass(frozen=True, kw_only=True)
class QwenImage21Model(GuidedModel):
    """A Qwen-Image 2.1: a pipeline, whose transformer may come from another file."""

    guidance: Annotated[float, Range(0, 100)] = 1.0
    """Guidance scale ("true_cfg_scale"): 1 (none) as the pipeline has it; above 1 each step takes
    two calls."""


def _encode(pipe: Any, prompt: str, model: PipelineModel) -> Text:
    features, mask = pipe.encode_prompt(prompt, max_sequence_length=model.max_tokens)
    return text_of(encoder_hidden_states=features, encoder_hidden_states_mask=mask)


def _inputs(call: Call) -> dict[str, Any]:
    return {
        "hidden_states": call.latents,
        "timestep": call.time,
        "img_shapes": [[(1, call.rows, call.columns)]] * len(call.latents),
        **call.text,
    }


FIRST = pipeline_family(
    PipelineEntry(
        pipeline="QwenImagePipeline",
        since="0.37",
        transformer="QwenImageTransformer2DModel",
        vae="AutoencoderKLQwenImage",
        encode=_encode,
        inputs=_inputs,
        form=Form(packed=True),
        scaling=QWEN,
        guidance=Guidance(rescaled=True),
        scheduler={
            "use_dynamic_shifting": True,
            "base_shift": 0.5,
            "max_shift": 0.9,
            "max_image_seq_len": 8192,
            "shift_terminal": 0.02,
        },
        pixels=lambda vae: 2 ** len(vae["temperal_downsample"]),
        blocks=("transformer_blocks",),
        targets=in_blocks(
            r"transformer_blocks\.\d+",
            attention=r"attn\.(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out)",
            mlp=r"(img|txt)_mlp\.net\.(0\.proj|2)",
        ),
    ),
    name="qwen-image",
    title="Qwen-Image",
    table=QwenImageModel,
    checkpoints=(
        Checkpoint("Qwen/Qwen-Image-2512", "20B", "Apache 2.0"),
        Checkpoint("Qwen/Qwen-Image", "20B", "Apache 2.0"),
    ),
    few_steps=20,
)


class TextProcessor:
    """The part of a Qwen3VLProcessor that reads text; the rest of it needs torchvision."""

    def __init__(self, tokenizer: Any) -> None:
        """Take the tokenizer of the pipeline's folder ``processor``."""
        self.tokenizer = tokenizer

    def __call__(self, text: list[str], **options: Any) -> Any:
        """Tokens of some texts; see transformers."""
        return self.tokenizer(text, **options)

    def apply_chat_template(self, messages: list[Any], **options: Any) -> Any:
        """Tokens of some chats; see transformers."""
        return self.tokenizer.apply_chat_template([messages], **options)


def _text_pipe_21(kind: Any, folder: Path, dtype: torch.dtype) -> Any:
    transformers = require("transformers", "To encode prompts")
    encoder = transformers.Qwen3VLForConditionalGeneration.from_pretrained(
        folder / "text_encoder", dtype=dtype, local_files_only=True
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(
        folder / "processor", local_files_only=True
    )
    return kind(
        scheduler=None,
        vae=None,
        text_encoder=encoder.train(False),
        processor=TextProcessor(tokenizer),
        transformer=None,
    )


def _encode_21(pipe: Any, prompt: str, model: PipelineModel) -> Text:
    # One prompt at a time: padding would move the positions of the picture.
    features, _, _ = pipe.encode_prompt(prompt)
    return {"encoder_hidden_states": features[:, : model.max_tokens]}


def _inputs_21(call: Call) -> dict[str, Any]:
    batch, length = call.text["encoder_hidden_states"].shape[:2]
    # One place in the sequence stands for 2 x 2 tokens of the picture.
    is_picture = torch.arange(length + call.rows * call.columns // 4) >= length
    return {
        **_inputs(call),
        "img_mask": is_picture.to(call.latents.device).expand(batch, -1),
        "encoder_hidden_states_mask": None,
    }


SECOND = pipeline_family(
    PipelineEntry(
        pipeline="QwenImage21Pipeline",
        since="0.41",
        transformer="QwenImage21Transformer2DModel",
        vae="AutoencoderKLQwenImage21",
        text_pipe=_text_pipe_21,
        encode=_encode_21,
        inputs=_inputs_21,
        output=lambda out, call: out[:, -call.rows * call.columns :],
        form=Form(packed=True, patch=1),
        scaling=QWEN_RGBA,
        scheduler={"use_dynamic_shifting": True},
        pixels=lambda vae: 16,
        published_pixels=16,
        side=2,
        blocks=("transformer_blocks",),
        targets=in_blocks(
            r"transformer_blocks\.\d+",
            attention=r"attn\.(to_[qkv]|to_out\.0)",
            mlp=r"img_mlp\.(proj|gate_layer|out)",
        ),
    ),
    name="qwen-image-2.1",
    title="Qwen-Image 2.1",
    table=QwenImage21Model,
    checkpoints=(Checkpoint("Qwen/Qwen-Image-2.1", "size on its page", "licence on its page"),),
    few_steps=20,
)
