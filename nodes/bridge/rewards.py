"""Reward models among ComfyUI's models: one card holds the denoiser, the VAE or the reward.

A reward's network is a model like any other to ComfyUI: it is moved to the card when pictures are
scored, and it makes room when another model needs the memory.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import comfy.model_management as memory
import folder_paths
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

from ...chunk_grpo_core.method.reward import Fingerprint, Reward, RewardBatch
from ...chunk_grpo_core.prompts.example import Prompt
from ...chunk_grpo_core.rewards import load_reward
from ...chunk_grpo_core.rewards.catalog import CATALOG, files_of
from ...chunk_grpo_core.rewards.fetch import fetch_file
from ...chunk_grpo_core.rewards.files import confined, find_file
from ...chunk_grpo_core.rewards.networks.network import NetworkReward
from ...chunk_grpo_core.rewards.taste.reward import load_taste
from ...chunk_grpo_core.settings.blaming import blaming
from .consent import check_may_download
from .host import check_interrupt, progress_bar
from .taste_encoder import ClipVisionEncoder
from .taste_heads import find_head, taste_of_head, tastes_folder

__all__ = ["ManagedReward", "fetch_missing", "load_managed", "load_taste_head", "weight_path"]

_FOLDER = "reward_models"
folder_paths.add_model_folder_path(_FOLDER, str(Path(folder_paths.models_dir, _FOLDER)))


class _Holder(nn.Module):
    """ComfyUI writes ``device`` and more on the module it manages; some networks forbid that."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network


class ManagedReward:
    """A reward whose network is on the card only while ComfyUI has room for it there."""

    def __init__(self, reward: NetworkReward) -> None:
        """Hand the network over to ComfyUI; it is moved when pictures are scored.

        Args:
            reward: Its network is on the CPU.
        """
        self.reward = reward
        self.patcher = ModelPatcher(
            _Holder(reward.network),
            load_device=memory.get_torch_device(),
            offload_device=memory.text_encoder_offload_device(),
        )

    @property
    def name(self) -> str:
        """That of the reward."""
        return self.reward.name

    @property
    def fingerprint(self) -> Fingerprint:
        """That of the reward."""
        return self.reward.fingerprint

    def with_parts(self, change: Callable[[Reward], Reward]) -> Reward:
        """The same network, with what ``change`` makes of the reward."""
        made = copy.copy(self)
        made.reward = cast(NetworkReward, change(self.reward))
        return made

    def score(self, images: Tensor, examples: Sequence[Prompt]) -> RewardBatch:
        """See :class:`~chunk_grpo_core.method.reward.Reward`."""
        with torch.inference_mode(False):  # a training may use the network outside it
            # In part would do for layers of ComfyUI only; these are those of torch.
            memory.load_models_gpu([self.patcher], force_full_load=True)
        return self.reward.score(images, examples)


def _folders() -> list[str]:
    return folder_paths.get_folder_paths(_FOLDER)


def _tokenizers(name: str) -> list[Path]:
    """ComfyUI brings the tokenizers of CLIP and of Qwen2, whose files have the same names."""
    comfy = Path(str(memory.__file__)).parent
    folder = Path("text_encoders", "qwen25_tokenizer") if name == "hpsv3" else Path("sd1_tokenizer")
    return [comfy / folder]


def weight_path(file: str, *further: Path) -> Path:
    """Find a file or folder of weights by its name below the folders of models.

    Args:
        file: The name.
        further: Folders in which it is looked for first.

    Raises:
        ValueError: The name leads out of them.
        FileNotFoundError: It is not there.
    """
    folders = [*further, *_folders(), *folder_paths.get_folder_paths("clip_vision")]
    return confined(file, folders)


def load_taste_head(file: str, settings: Mapping[str, Any], clip_vision: Any = None) -> Reward:
    """Load the head of a taste: one that Fit Taste wrote, or a file below the folders of models.

    Args:
        file: Name of a taste, or of a file.
        settings: Further settings of the reward.
        clip_vision: CLIP_VISION that it was fitted on, if it was.

    Raises:
        ValueError: The file is no head, or it was fitted on another encoder.
        FileNotFoundError: It is in none of the folders.
    """
    own = find_head(file)
    path, picks = own or weight_path(file, tastes_folder()), taste_of_head(own)
    if not settings.get("encoder"):
        encoder = None if clip_vision is None else ClipVisionEncoder(clip_vision)
        with torch.inference_mode(False), torch.no_grad(), blaming("reward taste"):
            return load_taste(path, **{**settings, "encoder": encoder, "picks": picks})
    if clip_vision is not None:
        raise ValueError(
            "settings names an encoder, and a model is connected to clip_vision; take one away"
        )
    encoder = weight_path(str(settings["encoder"]))
    if picks is not None:
        settings = {**settings, "picks": picks.folder}
    return load_managed("taste", {**settings, "head": path, "encoder": encoder})


def fetch_missing(name: str) -> None:
    """Download the files of a reward that are not on this machine, with ComfyUI's progress bar.

    Raises:
        OSError: The server cannot be reached, refuses, or stops early.
        ValueError: The owner of the server has not allowed it, or what arrived is not the file
            whose digest is known.
        InterruptProcessingException: The user pressed Cancel; whole files stay.
    """
    folders = _folders()
    for file in files_of(name):
        try:
            find_file(file, folders=[*folders, *_tokenizers(name)])
        except FileNotFoundError:
            check_may_download(name)
            bar = progress_bar(1000)

            def show(done: float, bar: Any = bar) -> None:
                check_interrupt()
                bar.update_absolute(round(1000 * done))

            fetch_file(file, folders[0], progress=show)


def load_managed(name: str, settings: Mapping[str, Any]) -> Reward:
    """Load a reward by name, its network under ComfyUI's model management.

    Args:
        name: A key of ``REWARDS``.
        settings: Its own settings.

    Raises:
        ValueError: A setting is missing, unknown or out of range.
        FileNotFoundError: A file is not on this machine; the message says which, and where it goes.
    """
    if CATALOG[name].files:
        settings = {"folders": _folders(), "tokenizers": _tokenizers(name), **settings}
    with torch.inference_mode(False):
        reward = load_reward(name, **settings)
    return ManagedReward(reward) if isinstance(reward, NetworkReward) else reward
