"""Where a FLUX.1 is on this machine: what a user names, and the files that follow from it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from ...optional import require
from .text import TextSource

__all__ = ["ATTENTION", "FluxModel"]

ATTENTION = {
    "native": "native",
    "native-flash": "_native_flash",
    "native-efficient": "_native_efficient",
    "native-math": "_native_math",
    "flash": "flash",
    "flash-3": "_flash_3",
    "xformers": "xformers",
}
"""Values of ``model.attention`` -> diffusers' names. All have a backward pass; kernels that have
none (sage), or would be downloaded, are left out, and so is cuDNN's (see ``attention.py``)."""

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_FOLDERS = {
    "transformer": "transformer",
    "vae": "vae",
    "clip": "text_encoder",
    "t5": "text_encoder_2",
    "clip_tokenizer": "tokenizer",
    "t5_tokenizer": "tokenizer_2",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class FluxModel:
    """A FLUX.1 model: a pipeline, single files, or a pipeline with some parts from files."""

    path: str = ""
    """Folder of a diffusers pipeline (with model_index.json), or the name of one in the Hugging
    Face cache, such as black-forest-labs/FLUX.1-dev. Nothing is downloaded."""
    transformer: str = ""
    """File instead of the pipeline's transformer: .safetensors (16 bits or fp8) or .gguf."""
    vae: str = ""
    """File instead of the pipeline's VAE, such as ae.safetensors."""
    clip: str = ""
    """File instead of the pipeline's CLIP-L, such as clip_l.safetensors."""
    t5: str = ""
    """File instead of the pipeline's T5, such as t5xxl_fp16.safetensors."""
    clip_tokenizer: str = ""
    """Folder instead of the pipeline's tokenizer, such as ComfyUI's comfy/sd1_tokenizer."""
    t5_tokenizer: str = ""
    """Folder instead of the pipeline's tokenizer_2, such as ComfyUI's
    comfy/text_encoders/t5_tokenizer."""
    weights: str = "bf16"
    """How the transformer is kept: bf16, float16, float32, fp8 (half the memory), int8 or nf4
    (bitsandbytes), or gguf (a .gguf file as it is)."""
    width: int = 512
    """Pixels, a multiple of 16, 64 or more."""
    height: int = 512
    """Pixels, a multiple of 16, 64 or more."""
    guidance: float = 3.5
    """Distilled guidance, 0 or more; FLUX.1-schnell has none and takes no notice."""
    max_tokens: int = 512
    """Text tokens for T5, 1 or more: 512 for dev, 256 for schnell."""
    device: str = "auto"
    """auto (the GPU if there is one), cpu, cuda, cuda:1, ..."""
    gradient_checkpointing: bool = True
    """Compute each block again in the backward pass: a third slower, many times less memory."""
    attention: str = ""
    """Kernel: native (PyTorch chooses), native-flash, native-efficient, native-math;
    flash, flash-3, xformers if their packages are installed. Empty is native."""
    compile: bool = False
    """Compile the transformer's blocks (torch.compile): minutes at the start, faster steps."""
    vae_tiling: bool = False
    """Decode in tiles: less memory, but seams that training can learn."""
    text_cache: str = ""
    """Folder of encoded prompts; empty for .cache/chunk-grpo/text in the home folder."""

    def __post_init__(self) -> None:
        for name in ("width", "height"):
            if getattr(self, name) % 16 or getattr(self, name) < 64:
                raise ValueError(
                    f"model.{name} is {getattr(self, name)}; it must be a multiple of 16, "
                    "64 or more"
                )
        if self.attention and self.attention not in ATTENTION:
            raise ValueError(
                f"model.attention is {self.attention!r}; it must be one of {', '.join(ATTENTION)}"
            )
        if self.guidance < 0:
            raise ValueError(f"model.guidance is {self.guidance}; it must be 0 or more")
        if self.max_tokens < 1:
            raise ValueError(f"model.max_tokens is {self.max_tokens}; it must be 1 or more")

    @property
    def name(self) -> str:
        """Name for records: that of the transformer's file, or of the pipeline."""
        if self.transformer:
            return Path(self.transformer).name
        return self.path if _is_hub_name(self.path) else Path(self.path).name

    @property
    def cache_folder(self) -> Path:
        """Where encoded prompts are kept."""
        if self.text_cache:
            return Path(self.text_cache)
        return Path.home() / ".cache" / "chunk-grpo" / "text"

    def part(self, kind: str) -> Path:
        """Where one part is: the file or folder named for it, or the pipeline's.

        Args:
            kind: Field of this class: transformer, vae, clip, t5, clip_tokenizer, t5_tokenizer.

        Raises:
            FileNotFoundError: It is not there.
            ValueError: Nothing is named for it.
        """
        if named := getattr(self, kind):
            found = Path(named)
        elif self.path:
            found = _pipeline(self.path) / _FOLDERS[kind]
        else:
            raise ValueError(
                f"model.{kind} is missing; name the file, or a whole pipeline as model.path"
            )
        if not found.exists():
            raise FileNotFoundError(f"model.{kind}: there is no {found}")
        return found

    def text_source(self) -> TextSource:
        """Where the encoders and tokenizers are."""
        return TextSource(
            clip=self.part("clip"),
            t5=self.part("t5"),
            clip_tokenizer=self.part("clip_tokenizer"),
            t5_tokenizer=self.part("t5_tokenizer"),
            max_tokens=self.max_tokens,
        )


def _is_hub_name(path: str) -> bool:
    return bool(_HUB_NAME.fullmatch(path)) and not Path(path).exists()


def _pipeline(path: str) -> Path:
    """The folder of a pipeline, also of one in the hub's cache; never over the network."""
    if not _is_hub_name(path):
        folder = Path(path)
        if not (folder / "model_index.json").is_file():
            raise FileNotFoundError(
                f"model.path: {folder} is no diffusers pipeline (model_index.json is missing)"
            )
        return folder
    hub = require("huggingface_hub", "To find a model in the Hugging Face cache")
    try:
        return Path(hub.snapshot_download(path, local_files_only=True))
    except (hub.errors.LocalEntryNotFoundError, FileNotFoundError) as error:
        raise FileNotFoundError(
            f"model.path: {path} is neither a folder nor in the Hugging Face cache; fetch it with: "
            f"hf download {path}"
        ) from error
