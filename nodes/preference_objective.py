"""The node that trains on what was picked, without rollouts and without a reward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from comfy_api.latest import io

from ..chunk_grpo_core.method.preference import OBJECTIVES
from ..chunk_grpo_core.prompts.example import Example
from ..chunk_grpo_core.prompts.files import PromptLine
from ..chunk_grpo_core.prompts.judged import Judged
from ..chunk_grpo_core.prompts.split import PromptConfig
from ..chunk_grpo_core.prompts.split import PromptSet as PlainPromptSet
from ..chunk_grpo_core.rewards.taste.picks import Taste
from ..chunk_grpo_core.runs.preferences import judged_prompts
from .bridge.taste_heads import existing_taste, named_taste, picks_state
from .lazy import ask_next
from .patch import Patch, declared
from .prompts import (
    CACHE_GIB,
    GUIDANCE,
    cache_input,
    guidance_input,
    with_conditioning,
)
from .setting_inputs import SettingInput, inputs_of
from .settings_node import SettingsNode
from .types import (
    BUILD_ON,
    CATEGORY,
    PromptSet,
    PromptsSocket,
    SettingsSocket,
    rare,
    settings_outputs,
)
from .validation import choice, verdict

__all__ = ["PreferenceObjective"]

_OBJECTIVE = "preference.objective"
_HELD_OUT = 4
_SETTINGS = (
    SettingInput(
        "objective",
        _OBJECTIVE,
        "dpo: the preferred picture of a pair becomes likelier than the other one (Flow-DPO, arXiv "
        "2501.13918); it needs comparisons. kto: liked pictures become likelier and others less "
        "likely, each by itself (Diffusion-KTO, 2404.04465); it also takes likes and stars.",
    ),
    SettingInput(
        "beta",
        "preference.beta",
        "How soon a click counts as learnt. Large: soon, and the model stays near to what it was. "
        "Small: it may move far.",
        step=0.001,
    ),
    SettingInput(
        "times",
        "preference.times",
        "At how many noise levels each picture is trained; each costs a pass with gradients.",
    ),
    SettingInput(
        "noise",
        "preference.noise",
        "fresh: every picture is noised anew; the pictures of a pair share that noise. "
        "stored: with the noise that it began with, where the pick knows it.",
        is_rare=True,
    ),
    SettingInput(
        "time_distribution",
        "preference.time_distribution",
        "Which levels. grid: those of sigmas. uniform: anywhere, evenly. logit-normal: mostly in "
        "the middle.",
        is_rare=True,
    ),
    SettingInput(
        "weight",
        "preference.weight",
        "How much a level counts. equal: all alike. x0: by the square of the level.",
        is_rare=True,
    ),
)


class PreferenceObjective(SettingsNode):
    """Name of a taste, CLIP -> settings of the algorithm ``preference``, and its prompts."""

    SETTINGS = _SETTINGS
    ALWAYS = {"algorithm": "preference"}
    LEFT_OUT = (
        "plan",
        "objective.",
        "forward.",
        "window.",
        "advantage.",
        "noise",
        "ode_solver",
        "chunk_fraction",
        "share_initial_noise",
        "optimizer.recompute_log_p",
    )

    @classmethod
    def define_schema(cls) -> io.Schema:
        """See ComfyUI's V3 node interface."""
        return io.Schema(
            node_id="ChunkGRPO_PreferenceObjective",
            display_name="Preference Objective",
            category=CATEGORY,
            description="Train on the pictures that you picked: nothing is sampled while it "
            "trains, and no reward is needed. Connect settings and prompts to Train LoRA, with the "
            "VAE that encodes the pictures, and leave plan, sampler and, if you like, reward open.",
            inputs=[
                io.String.Input(
                    "taste",
                    default="mine",
                    tooltip="Name of the taste: the folder of picks below "
                    "output/chunk_grpo/taste. example is that of a simulated person who likes "
                    "vivid colours; it comes with the pack.",
                ),
                io.Clip.Input("clip", lazy=True, tooltip="Encodes the prompts of the picks."),
                *inputs_of(_SETTINGS),
                SettingsSocket.Input("settings", optional=True, tooltip=BUILD_ON),
                PromptsSocket.Input(
                    "prompts",
                    optional=True,
                    lazy=True,
                    tooltip="From Prompt Set: its held-out prompts are measured on. Its other "
                    "prompts are not used.",
                ),
                rare(
                    io.Int.Input(
                        "held_out",
                        default=_HELD_OUT,
                        min=2,
                        max=1000,
                        optional=True,
                        tooltip="Without prompts connected: how many prompts of the picks are kept "
                        "to measure on, or to look at. Their clicks are not trained on.",
                    )
                ),
                guidance_input(optional=True),
                cache_input(),
            ],
            outputs=[
                *settings_outputs(),
                PromptsSocket.Output(
                    "clicks",
                    display_name="prompts",
                    tooltip="One prompt for each click, with its pictures, and those held out; for "
                    "prompts of Train LoRA.",
                ),
            ],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, taste: str | None = "mine") -> bool | str:
        """Refuse a name that can be none."""
        return verdict(lambda name: named_taste(choice("taste", name)), taste)

    @classmethod
    def check_lazy_status(cls, **inputs: Any) -> list[str]:
        """Refuse what is wrong before the text encoder is loaded."""
        if inputs["clip"] is None:
            picked = existing_taste(choice("taste", inputs["taste"]))
            given = {setting.name: inputs.get(setting.name) for setting in cls.SETTINGS}
            objective = _objective(cls._in_force(picked, inputs.get("settings"), **given).args[0])
            if "prompts" not in inputs:
                _judged(picked, objective, None, inputs.get("held_out", _HELD_OUT))
        return ask_next(inputs, (("prompts",), ("clip",)))

    @classmethod
    def fingerprint_inputs(cls, taste: str | None = None, **others: Any) -> str:
        """Read the picks again when some were added. What comes through a link is not known."""
        return picks_state(taste)

    @classmethod
    def execute(
        cls,
        taste: str = "mine",
        clip: Any = None,
        settings: Patch | None = None,
        prompts: PromptSet | None = None,
        held_out: int = _HELD_OUT,
        guidance: float = GUIDANCE,
        cache_gib: float = CACHE_GIB,
        **inputs: Any,
    ) -> io.NodeOutput:
        """Say what is in force, and make a prompt of every click.

        Raises:
            ValueError: A value is wrong, or no pick can be trained on.
            FileNotFoundError: There are no picks of that name.
        """
        picked = existing_taste(choice("taste", taste))
        in_force = cls._in_force(picked, settings, **inputs)
        patch, text = in_force.args
        judged = _judged(picked, _objective(patch), prompts, held_out)
        encoded, _ = with_conditioning(judged, clip, guidance, cache_gib)
        said = _describe(encoded, len(picked.counting()))
        rows = [{"key": "picks", "value": said, "source": taste}]
        rows += in_force.ui["chunk_grpo_settings"]
        return io.NodeOutput(patch, f"{said}\n{text}", encoded, ui={"chunk_grpo_settings": rows})

    @classmethod
    def _in_force(cls, picked: Taste, settings: Patch | None, **inputs: Any) -> io.NodeOutput:
        named = {**(settings or {}), "preference.picks": picked.folder.name}
        return super().execute(settings=named, **inputs)


def _objective(patch: Patch) -> str:
    objective = str(patch.get(_OBJECTIVE, declared(_OBJECTIVE).default))
    if objective not in OBJECTIVES:
        raise ValueError(f"objective is {objective!r}; it must be {' or '.join(OBJECTIVES)}")
    return objective


def _judged(
    picked: Taste, objective: str, prompts: PromptSet | None, held_out: int
) -> PlainPromptSet:
    """One prompt for each click, and those of a Prompt Set, or some of the picks, held out."""
    measured = None if prompts is None else _lines(prompts.held_out)
    count = held_out if measured is None else len(measured)
    return judged_prompts(picked, objective, measured or [], PromptConfig(held_out=count))


def _lines(held_out: Sequence[Example]) -> list[PromptLine]:
    if len(held_out) < 2:
        raise ValueError(
            f"prompts: Prompt Set holds out {len(held_out)} prompts; at least 2 are needed to "
            "measure on, so raise held_out there, or take the link off"
        )
    return [
        PromptLine(text=one.text, where="Prompt Set", metadata=dict(one.metadata))
        for one in held_out
    ]


def _describe(prompts: PromptSet, picks: int) -> str:
    """Say in words what is trained on."""
    clicks = [Judged.of(example) for example in prompts.train]
    texts = len({example.text for example in prompts.train})
    noise = sum(len(click.noise) for click in clicks)
    pictures = sum(len(click.pictures) for click in clicks)
    return (
        f"{picks} picks: {len(clicks)} clicks on {texts} prompts to train on, "
        f"{len(prompts.held_out)} prompts held out; the noise of {noise} of {pictures} pictures is "
        "known"
    )
