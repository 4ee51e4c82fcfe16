"""The node that says where a training explores: noise, the solver without noise, the window."""

from __future__ import annotations

from comfy_api.latest import io

from .setting_inputs import SettingInput, inputs_of
from .settings_node import SettingsNode
from .types import BUILD_ON, CATEGORY, SettingsSocket, settings_outputs

__all__ = ["GRPOExploration"]

_SETTINGS = (
    SettingInput(
        "noise",
        "noise",
        "At which steps the pictures of a prompt are made to differ.\n"
        "Steps of the rollouts that take noise. all: every one (the paper). window: those of the "
        "window (MixGRPO, arXiv 2507.21802). drawn: of each picture, those it will be trained on. "
        "Less noise gives cleaner pictures to judge.",
    ),
    SettingInput(
        "ode_solver",
        "ode_solver",
        "What steps without noise follow. dpm2 (DPM-Solver++, MixGRPO-Flash) is more exact with "
        "few steps; it needs noise window or drawn.",
    ),
    SettingInput(
        "window",
        "window.kind",
        "Which part of the drawing is trained.\n"
        "Chunks that an iteration may train. all: every one (the paper). fixed: always the same, "
        "for example the first ones. sliding: moves from noise to data, and back (MixGRPO). "
        "random: anywhere, anew in each iteration.",
    ),
    SettingInput(
        "window_chunks",
        "window.chunks",
        "How large this part is.\n"
        "Chunks in the window; fewer cost less time. MixGRPO: 4, with one step in each. Not used "
        "by window all.",
    ),
    SettingInput(
        "window_start",
        "window.start",
        "Where this part begins.\n"
        "First chunk of a fixed window, and of a sliding one at the start; 0 is the one at pure "
        "noise.",
        is_rare=True,
    ),
    SettingInput(
        "window_stride",
        "window.stride",
        "How far this part moves at a time.\n"
        "Chunks by which a sliding window moves, at most window_chunks. MixGRPO: 1.",
        is_rare=True,
    ),
    SettingInput(
        "window_every",
        "window.every",
        "Iterations after which a sliding window moves. MixGRPO: 25. Lower it in short trainings, "
        "or the window never reaches the end.",
    ),
)


class GRPOExploration(SettingsNode):
    """Settings -> settings with other noise and another window."""

    SETTINGS = _SETTINGS

    @classmethod
    def define_schema(cls) -> io.Schema:
        """See ComfyUI's V3 node interface."""
        return io.Schema(
            node_id="ChunkGRPO_GRPOExploration",
            display_name="GRPO Exploration",
            category=CATEGORY,
            description="Where a training explores: which steps of a rollout take noise, what the "
            "others follow, and which chunks an iteration may train. What you do not set stays as "
            "it comes in.",
            inputs=[
                *inputs_of(_SETTINGS),
                SettingsSocket.Input("settings", optional=True, tooltip=BUILD_ON),
            ],
            outputs=[*settings_outputs()],
            is_output_node=True,
        )
