"""The node that loads a reward."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io

from ..chunk_grpo_core.rewards import REWARDS, check_reward, load_reward
from ..chunk_grpo_core.rewards.catalog import CATALOG
from ..chunk_grpo_core.rewards.pixels import as_colour
from ..chunk_grpo_core.rewards.settings import reward_settings
from ..chunk_grpo_core.rewards.taste.votes import load_votes
from .bridge.consent import check_may_send
from .bridge.rewards import fetch_missing, load_managed, load_taste_head, weight_path
from .bridge.taste_heads import heads_state, named_taste
from .lazy import ask_next
from .types import CATEGORY, RewardSocket, rare
from .validation import verdict

__all__ = ["LoadReward"]

_WITH_SERVER = ("remote_http", "vlm_judge")
_OF_OTHER_INPUTS = {
    "colour": "colour", "image": "image", "path": "file", "url": "url", "folders": "file",
    "tokenizers": "file", "head": "file", "clip": "file", "picks": "file",
    "device": "ComfyUI's own choice",
}  # fmt: skip


class LoadReward(io.ComfyNode):
    """Name -> reward."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """See ComfyUI's V3 node interface."""
        return io.Schema(
            node_id="ChunkGRPO_LoadReward",
            display_name="Load Reward",
            category=f"{CATEGORY}/rewards",
            description="What the training maximises.",
            inputs=[
                io.Combo.Input(
                    "name",
                    options=list(REWARDS),
                    default="tiny_world",
                    tooltip="\n".join(f"{name}: {CATALOG[name].measures}" for name in REWARDS),
                ),
                io.String.Input(
                    "colour",
                    default="#2060c0",
                    tooltip="For target_colour: six hexadecimal digits, red green blue.",
                ),
                rare(
                    io.String.Input(
                        "settings",
                        default="",
                        multiline=True,
                        optional=True,
                        tooltip="Further settings of the reward, one KEY=VALUE on each line, such "
                        "as dtype=float16, version=2.0 or batch_size=4. Lines that begin with # "
                        "are comments. The help page lists them.",
                    )
                ),
                io.String.Input(
                    "file",
                    default="",
                    optional=True,
                    tooltip="Weights below models/reward_models or models/clip_vision, if they "
                    "have not the usual name. Empty: the usual name, then the cache of the hub. "
                    "For taste: the name of a taste that Fit Taste has fitted, or a file. For "
                    "votes: the name of the taste that your clicks go to.",
                ),
                io.String.Input(
                    "url",
                    default="",
                    optional=True,
                    tooltip="For remote_http and vlm_judge: http://host:port of the server. "
                    "Pictures and prompts are sent there. An address that is not this machine "
                    "takes the consent of whoever runs the server; the error names the line.",
                ),
                io.Boolean.Input(
                    "allow_download",
                    default=False,
                    optional=True,
                    tooltip="Download weights that are missing, at a fixed revision where one is "
                    "known, into models/reward_models. This takes the consent of whoever runs the "
                    "server; the error names the line. Off: nothing is ever downloaded.",
                ),
                io.Image.Input(
                    "image", lazy=True, optional=True, tooltip="For target_image: one picture."
                ),
                io.ClipVision.Input(
                    "clip_vision",
                    lazy=True,
                    optional=True,
                    tooltip="For taste: the model that the head was fitted on, if it was.",
                ),
            ],
            outputs=[
                RewardSocket.Output(
                    "reward",
                    display_name="reward",
                    tooltip="For Train LoRA, Score Images and Combine Rewards.",
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, colour: str | None = "") -> bool | str:
        """Refuse a text that is no colour before anything runs."""
        return verdict(_check_colour, colour) if colour else True

    @classmethod
    def check_lazy_status(cls, **inputs: Any) -> list[str]:
        """Refuse what is wrong before anything is loaded."""
        name, texts = inputs["name"], (inputs.get(key, "") for key in ("settings", "url"))
        _check(name, inputs["colour"], *texts)
        if name == "target_image" and "image" not in inputs:
            raise ValueError("target_image needs a picture at the input image")
        return ask_next(inputs, (("image", "clip_vision"),))

    @classmethod
    def fingerprint_inputs(
        cls, name: str | None = None, file: str | None = None, **others: Any
    ) -> str:
        """Load a taste again when it was fitted again."""
        return heads_state(file) if name in ("taste", None) else ""

    @classmethod
    def execute(
        cls,
        name: str,
        colour: str,
        settings: str = "",
        file: str = "",
        url: str = "",
        allow_download: bool = False,
        image: torch.Tensor | None = None,
        clip_vision: Any = None,
    ) -> io.NodeOutput:
        """Load it."""
        options = _check(name, colour, settings, url)
        if name == "target_image":
            if image is None:
                raise ValueError("target_image needs a picture at the input image")
            if len(image) != 1:
                raise ValueError(f"image holds {len(image)} pictures; target_image needs one")
            options["image"] = as_colour(image, "image")[0]
        if name == "taste":
            if not file.strip():
                raise ValueError(
                    "taste needs the head of a taste: name the taste in file (mine), or the file "
                    "that Fit Taste or 'chunk-grpo taste fit' wrote"
                )
            return io.NodeOutput(load_taste_head(file.strip(), options, clip_vision))
        if name == "votes":
            options["picks"] = named_taste(file.strip() or "mine")
            return io.NodeOutput(load_votes(**options))
        if CATALOG[name].files:
            if allow_download:
                fetch_missing(name)
            if file.strip():
                options["path"] = weight_path(file.strip())
        return io.NodeOutput(load_managed(name, options))


def _check_colour(colour: str) -> None:
    load_reward("target_colour", colour=colour)


def _check(name: str, colour: str, settings: str, url: str) -> dict[str, Any]:
    """Everything that can be known before files are read; the settings of the reward."""
    lines = (line.strip() for line in settings.splitlines())
    options = reward_settings([line for line in lines if line and not line.startswith("#")])
    for key in options:
        if key in _OF_OTHER_INPUTS:
            raise ValueError(f"{key} is no setting here; it comes from {_OF_OTHER_INPUTS[key]}")
    if name == "target_colour":
        _check_colour(colour)
        options["colour"] = colour
    if name in _WITH_SERVER:
        if not url.strip():
            raise ValueError(f"{name} needs the url of a server, such as http://127.0.0.1:8765")
        check_may_send(name, url.strip())
        options["url"] = url.strip()
    return check_reward(name, options, whole=False)  # pictures and files come through inputs
