"""What the table [model] has for every diffusers model on disk, and where its parts are."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar

import torch

from ..optional import require
from ..settings.declared import Range, check_settings, shortened
from .attention import ATTENTION
from .family import ModelTable

__all__ = ["DiffusersModel"]

Model = TypeVar("Model", bound="DiffusersModel")
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_TAKES_PICTURES = re.compile("Kontext|Edit|Fill|Control|Img2Img|Inpaint|Redux|Layered|Omni")
"""In names of pipelines that draw from a picture."""
_SHARDABLE = ("float32", "float16", "bf16")
"""Values of ``weights`` that can be spread; the others keep numbers beside the weights."""


@dataclass(frozen=True, kw_only=True)
class DiffusersModel(ModelTable):
    """A pipeline, single files, or a pipeline with some parts from files.

    A family adds its own fields, and may declare one of these again to give it another text.
    """

    paths: ClassVar[frozenset[str]] = frozenset({"path", "transformer", "vae", "text_cache"})
    """See :class:`~.family.ModelTable`."""
    folders: ClassVar[Mapping[str, str]] = {"transformer": "transformer", "vae": "vae"}
    """Field that names a part -> its folder in a pipeline."""
    multiple: ClassVar[int] = 16
    """Width and height are multiples of this, in pixels."""

    path: str = ""
    """Folder of a diffusers pipeline (with model_index.json), or the name of one in the Hugging
    Face cache. Nothing is downloaded."""
    transformer: str = ""
    """File instead of the pipeline's transformer."""
    vae: str = ""
    """File instead of the pipeline's VAE."""
    weights: str = "bf16"
    """How the transformer is kept: bf16, float16, float32, fp8 (half the memory), int8 or nf4
    (bitsandbytes), or gguf (a .gguf file as it is)."""
    width: Annotated[int, Range(64, 8192)] = 512
    """Pixels, a multiple of 16."""
    height: Annotated[int, Range(64, 8192)] = 512
    """Pixels, a multiple of 16."""
    device: str = "auto"
    """auto (the GPU if there is one), cpu, cuda, cuda:1, ..."""
    gradient_checkpointing: bool = True
    """Compute each block again in the backward pass: a third slower, many times less memory."""
    attention: str = ""
    """Kernel: native (PyTorch chooses), native-flash, native-efficient, native-math;
    flash, flash-3, xformers if their packages are installed. Empty is native."""
    compile: bool = False
    """Compile the transformer's blocks (torch.compile): minutes at the start, faster steps."""
    activation_budget: Annotated[float, Range(0.0, 1.0)] = 1.0
    """Share of their activations that compiled blocks keep for the backward pass; the rest is
    computed again, what is cheapest first. Needs compile; 1 keeps all."""
    vae_tiling: bool = False
    """Decode in tiles: less memory, but seams that training can learn."""
    text_cache: str = ""
    """Folder of encoded prompts; empty for .cache/chunk-grpo/text in the home folder."""

    def __post_init__(self) -> None:
        check_settings(self, "model")
        for name in ("width", "height"):
            if getattr(self, name) % self.multiple:
                raise ValueError(
                    f"model.{name} is {getattr(self, name)}; it must be a multiple of "
                    f"{self.multiple}"
                )
        if self.attention and self.attention not in ATTENTION:
            raise ValueError(
                f"model.attention is {shortened(self.attention)}; it must be one of "
                f"{', '.join(ATTENTION)}"
            )

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
            kind: A field in :attr:`folders`.

        Raises:
            FileNotFoundError: It is not there.
            ValueError: Nothing is named for it.
        """
        if named := getattr(self, kind):
            place = Path(named)
        elif self.path:
            place = self.pipeline_folder() / self.folders[kind]
        else:
            raise ValueError(
                f"model.{kind} is missing; name the file, or a whole pipeline as model.path"
            )
        if not place.exists():
            raise FileNotFoundError(f"model.{kind}: there is no {place}")
        return place

    def pipeline_folder(self) -> Path:
        """The folder of the pipeline, also of one in the hub's cache; never over the network.

        Raises:
            FileNotFoundError: It is not there.
            ValueError: None is named.
        """
        if not self.path:
            raise ValueError(
                "model.path is missing; name the folder of a diffusers pipeline, or one in the "
                "Hugging Face cache"
            )
        return _pipeline(self.path)

    def settings_of(self, part: str) -> dict[str, Any] | None:
        """A part's settings (config.json, or model_index.json for the part ""), as in its folder.

        Returns:
            None if the pipeline is not on this machine; loading the model says so.

        Raises:
            ValueError: The file is damaged.
        """
        try:
            folder = self.pipeline_folder()
        except (FileNotFoundError, ValueError):
            return None
        names = {"": "model_index.json", "scheduler": "scheduler_config.json"}
        file = folder / part / names.get(part, "config.json")
        return _read(file) if file.is_file() else None

    def check_pipeline(self, wanted: str) -> dict[str, Any]:
        """Make sure that the pipeline is of the class that its family runs.

        Args:
            wanted: Name of the class.

        Returns:
            What model_index.json says.

        Raises:
            FileNotFoundError: It is not there.
            ValueError: It is of another class, or damaged.
        """
        folder, index = self.pipeline_folder(), self.settings_of("") or {}
        kind = index.get("_class_name")
        if kind == wanted:
            return index
        what = f"model.path: {folder} holds a {shortened(kind)}, not a {wanted}"
        if _TAKES_PICTURES.search(str(kind)):
            raise ValueError(
                f"{what}: it draws from a picture, and prompts have none on the command line; take "
                "the text-to-image model, or train it in ComfyUI (reference of Prompt Set)"
            )
        raise ValueError(f"{what}; take the model.type that it belongs to (chunk-grpo models)")

    def compute_device(self) -> torch.device:
        """The device that :attr:`device` names.

        Raises:
            ValueError: It is none, or not in this machine.
        """
        has_gpu = torch.cuda.is_available()
        if self.device == "auto":
            return torch.device("cuda" if has_gpu else "cpu")
        try:
            device = torch.device(self.device)
        except RuntimeError as error:
            raise ValueError(
                f"model.device is {shortened(self.device)}; write auto, cpu, cuda or cuda:1"
            ) from error
        if device.type == "cuda" and not has_gpu:
            raise ValueError(f"model.device is {self.device}, but torch finds no CUDA device")
        return device

    def for_process(self: Model, device: torch.device) -> Model:
        """See :class:`~.family.ModelTable`."""
        if self.device not in ("auto", device.type):
            raise ValueError(
                f"model.device is {self.device}, but each of several processes takes a device of "
                f"its own (this one {device}); set it to auto"
            )
        return replace(self, device=str(device))

    def check_shardable(self) -> None:
        """See :class:`~.family.ModelTable`."""
        if self.weights not in _SHARDABLE:
            raise ValueError(
                f"model.weights is {self.weights}, which cannot be spread over processes; it must "
                f"be one of {', '.join(_SHARDABLE)}, or leave --shard out"
            )


def _is_hub_name(path: str) -> bool:
    return bool(_HUB_NAME.fullmatch(path)) and not Path(path).exists()


def _pipeline(path: str) -> Path:
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


def _read(file: Path) -> dict[str, Any]:
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"model.path: {file} is damaged ({error})") from error
    if not isinstance(settings, dict):
        raise ValueError(f"model.path: {file} is damaged (it is no table)")
    return settings
