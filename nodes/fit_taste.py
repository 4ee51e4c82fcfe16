"""The node that fits a head to what was picked, and says how well it knows its owner."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io, ui

from ..chunk_grpo_core.models.tiny.encoder import load_tiny_encoder
from ..chunk_grpo_core.rewards.files import digest
from ..chunk_grpo_core.rewards.taste.features import Encoder
from ..chunk_grpo_core.rewards.taste.fit import clicks_in, fit_taste
from ..chunk_grpo_core.rewards.taste.head import load_head, save_head
from ..chunk_grpo_core.rewards.taste.picks import Taste
from ..chunk_grpo_core.rewards.taste.reward import TasteReward
from ..chunk_grpo_core.settings.declared import shortened
from ..chunk_grpo_core.watch.taste_plot import draw_taste
from .bridge.host import output_folder, show_text
from .bridge.taste_encoder import ClipVisionEncoder
from .bridge.taste_heads import existing_taste, head_file, named_taste, picks_state
from .lazy import ask_next
from .types import CATEGORY, RewardSocket, rare
from .validation import choice, verdict

__all__ = ["FitTaste"]

_CLIP_VISION, _TINY = "clip_vision", "tiny"
_ENCODERS = (_CLIP_VISION, _TINY)


class FitTaste(io.ComfyNode):
    """Name of a taste -> reward, report."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """See ComfyUI's V3 node interface."""
        return io.Schema(
            node_id="ChunkGRPO_FitTaste",
            display_name="Fit Taste",
            category=f"{CATEGORY}/rewards",
            description="Learn from the pictures that you picked which ones you like, and say how "
            "well it knows you.",
            inputs=[
                io.String.Input(
                    "taste",
                    default="mine",
                    tooltip="Name of the taste: the folder of picks below "
                    "output/chunk_grpo/taste. example is that of a simulated person who likes "
                    "vivid colours; it comes with the pack.",
                ),
                io.Combo.Input(
                    "encoder",
                    options=list(_ENCODERS),
                    default=_CLIP_VISION,
                    tooltip="What sees the subject, beside the statistics of colours and edges, "
                    "which see the look. clip_vision: the model that is connected, or none. tiny: "
                    "the encoder of the tiny FLUX's world, which comes with the pack.",
                ),
                rare(
                    io.Int.Input(
                        "at_least",
                        default=20,
                        min=2,
                        max=1000,
                        tooltip="Clicks below which nothing is fitted.",
                    )
                ),
                rare(
                    io.Float.Input(
                        "pessimism",
                        default=0.0,
                        min=0.0,
                        max=10.0,
                        step=0.01,
                        round=0.01,
                        tooltip="How many deviations of the ensemble are subtracted from a score. "
                        "Above 0 it lowers what your picks leave open: less drift, less gain.",
                    )
                ),
                rare(io.Boolean.Input("dark", default=False, tooltip="Draw on a dark background.")),
                io.ClipVision.Input(
                    "clip_vision",
                    lazy=True,
                    optional=True,
                    tooltip="From Load CLIP Vision: SigLIP, CLIP or DINOv2.",
                ),
            ],
            outputs=[
                RewardSocket.Output(
                    "reward",
                    display_name="reward",
                    tooltip="Your taste, in deviations of the pictures that you picked from. For "
                    "Combine Rewards, with one that follows the prompt, and Score Images.",
                ),
                io.String.Output(
                    "report",
                    display_name="report",
                    tooltip="How well it knows you, in words.",
                ),
                io.Image.Output(
                    "picture",
                    display_name="picture",
                    tooltip="How it learns, and what it likes most and least.",
                ),
                io.String.Output(
                    "head",
                    display_name="head",
                    tooltip="The file of the head, as file of Load Reward takes it.",
                ),
            ],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, taste: str | None = "mine") -> bool | str:
        """Refuse a name that can be none before anything runs."""
        return verdict(lambda name: named_taste(choice("taste", name)), taste)

    @classmethod
    def check_lazy_status(cls, **inputs: Any) -> list[str]:
        """Refuse what is wrong before anything is loaded."""
        _check(inputs["taste"], inputs["encoder"])
        _picked(inputs["taste"], inputs["at_least"])
        return ask_next(inputs, (("clip_vision",),))

    @classmethod
    def fingerprint_inputs(cls, taste: str | None = None, **others: Any) -> str:
        """Fit again when picks were added. What comes through a link (None) is not known."""
        return picks_state(taste)

    @classmethod
    def execute(
        cls,
        taste: str,
        encoder: str,
        at_least: int,
        pessimism: float,
        dark: bool,
        clip_vision: Any = None,
    ) -> io.NodeOutput:
        """Fit, write, draw."""
        _check(taste, encoder)
        with torch.inference_mode(False), torch.no_grad():  # a training uses the head outside it
            picked = _picked(taste, at_least)
            eyes = _encoder(encoder, clip_vision)
            fitted = fit_taste(picked, eyes)
            file = save_head(fitted.head, head_file(taste))
            facts = {"head": digest(file)}
            reward = TasteReward(
                load_head(file), facts, encoder=eyes, pessimism=pessimism, picks=picked
            )
            picture = draw_taste(picked, fitted.report, dark=dark)
        words = fitted.report.words()
        show_text(words)
        name = file.relative_to(output_folder() / "taste").as_posix()
        return io.NodeOutput(reward, words, picture[None], name, ui=ui.PreviewText(words))


def _check(taste: object, encoder: object) -> None:
    named_taste(choice("taste", taste))
    if choice("encoder", encoder) not in _ENCODERS:
        raise ValueError(f"encoder is {shortened(encoder)}; choose one of {', '.join(_ENCODERS)}")


def _picked(taste: str, at_least: int) -> Taste:
    """The taste, with clicks enough.

    Raises:
        ValueError: There are too few.
        FileNotFoundError: There is no taste of this name.
    """
    picked = existing_taste(taste)
    clicks = clicks_in(picked.counting())
    if clicks < at_least:
        raise ValueError(
            f"taste: {taste} has {clicks} clicks that say which picture is better, and at_least "
            f"asks for {at_least}; pick {at_least - clicks} more with Pick Pictures, or import "
            f"ratings with 'chunk-grpo taste import' ({picked.folder})"
        )
    return picked


def _encoder(name: str, clip_vision: Any) -> Encoder | None:
    if name == _CLIP_VISION:
        return None if clip_vision is None else ClipVisionEncoder(clip_vision)
    if clip_vision is not None:
        raise ValueError(
            "encoder is tiny, and a model is connected to clip_vision; set encoder to clip_vision, "
            "or take the connection away"
        )
    return load_tiny_encoder()
