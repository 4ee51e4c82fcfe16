"""The node that says where a training explores: noise, the solver without noise, the window."""

from __future__ import annotations

from dataclasses import replace

from comfy_api.latest import io

from ..chunk_grpo_core.method.solvers import SOLVERS
from ..chunk_grpo_core.method.windows import NOISE, WINDOWS, WindowConfig, check_noise
from .types import BUILD_ON, CATEGORY, Settings, SettingsSocket
from .validation import verdict

__all__ = ["GRPOExploration"]


class GRPOExploration(io.ComfyNode):
    """Settings -> settings with other noise and another window."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """See ComfyUI's V3 node interface."""
        default, window = Settings(), WindowConfig()
        return io.Schema(
            node_id="ChunkGRPO_GRPOExploration",
            display_name="GRPO Exploration",
            category=CATEGORY,
            description="Where a training explores: which steps of a rollout take noise, what the "
            "others follow, and which chunks an iteration may train.",
            inputs=[
                io.Combo.Input(
                    "noise",
                    options=list(NOISE),
                    default=default.noise,
                    tooltip="Steps of the rollouts that take noise. all: every one (the paper). "
                    "window: those of the window (MixGRPO, arXiv 2507.21802). drawn: of each "
                    "picture, those it will be trained on. Less noise gives cleaner pictures to "
                    "judge.",
                ),
                io.Combo.Input(
                    "ode_solver",
                    options=list(SOLVERS),
                    default=default.ode_solver,
                    tooltip="What steps without noise follow. dpm2 (DPM-Solver++, MixGRPO-Flash) "
                    "is more exact with few steps; it needs noise window or drawn.",
                ),
                io.Combo.Input(
                    "window",
                    options=list(WINDOWS),
                    default=window.kind,
                    tooltip="Chunks that an iteration may train. all: every one (the paper). "
                    "fixed: always the same, for example the first ones. sliding: moves from noise "
                    "to data, and back (MixGRPO). random: anywhere, anew in each iteration.",
                ),
                io.Int.Input(
                    "window_chunks",
                    default=window.chunks,
                    min=1,
                    max=200,
                    tooltip="Chunks in the window; fewer cost less time. MixGRPO: 4, with one step "
                    "in each. Not used by window all.",
                ),
                io.Int.Input(
                    "window_start",
                    default=window.start,
                    min=0,
                    max=199,
                    tooltip="First chunk of a fixed window, and of a sliding one at the start; 0 "
                    "is the one at pure noise.",
                ),
                io.Int.Input(
                    "window_stride",
                    default=window.stride,
                    min=1,
                    max=200,
                    tooltip="Chunks by which a sliding window moves, at most window_chunks. "
                    "MixGRPO: 1.",
                ),
                io.Int.Input(
                    "window_every",
                    default=window.every,
                    min=1,
                    max=100_000,
                    tooltip="Iterations after which a sliding window moves. MixGRPO: 25. Lower it "
                    "in short trainings, or the window never reaches the end.",
                ),
                SettingsSocket.Input("settings", optional=True, tooltip=BUILD_ON),
            ],
            outputs=[
                SettingsSocket.Output(
                    "changed",  # ids of inputs and outputs may not be equal
                    display_name="settings",
                    tooltip="For Train LoRA (Chunk-GRPO), or the next settings node.",
                )
            ],
        )

    @classmethod
    def validate_inputs(
        cls,
        noise: str | None,
        ode_solver: str | None,
        window: str | None,
        window_chunks: int | None,
        window_stride: int | None,
    ) -> bool | str:
        """Refuse what has no effect or cannot move before anything runs."""
        return verdict(_check, noise, ode_solver, window, window_chunks, window_stride)

    @classmethod
    def execute(
        cls,
        noise: str,
        ode_solver: str,
        window: str,
        window_chunks: int,
        window_start: int,
        window_stride: int,
        window_every: int,
        settings: Settings | None = None,
    ) -> io.NodeOutput:
        """Replace noise, solver and window."""
        window_config = WindowConfig(
            kind=window,
            chunks=window_chunks,
            start=window_start,
            stride=window_stride,
            every=window_every,
        )
        check_noise(noise, ode_solver, window_config)
        base = settings or Settings()
        return io.NodeOutput(
            replace(base, noise=noise, ode_solver=ode_solver, window=window_config)
        )


def _check(noise: str, ode_solver: str, window: str, chunks: int, stride: int) -> None:
    check_noise(noise, ode_solver, WindowConfig(kind=window, chunks=chunks, stride=stride))
