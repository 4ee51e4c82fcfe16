"""Nodes that say how to sample: the stochastic sampler and the noise levels."""

from __future__ import annotations

import torch
from comfy_api.latest import io

from ..chunk_grpo_core.method.rules import RULES, SdeConfig
from ..chunk_grpo_core.method.schedule import shifted_grid
from .bridge.sampler import flow_sde_sampler
from .patch import span
from .types import CATEGORY, rare

__all__ = ["FlowSDESampler", "ShiftedSigmas"]


class FlowSDESampler(io.ComfyNode):
    """Rule, noise scale, and where the noise is -> SAMPLER."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """See ComfyUI's V3 node interface."""
        default = SdeConfig()
        return io.Schema(
            node_id="ChunkGRPO_FlowSDESampler",
            display_name="Flow SDE Sampler",
            category=f"{CATEGORY}/sampling",
            description="A stochastic sampler for flow models whose every step has a known "
            "probability. Use it for rollouts and training, or in SamplerCustomAdvanced to see "
            "what the model explores.",
            inputs=[
                io.Combo.Input(
                    "rule",
                    options=list(RULES),
                    default=default.rule,
                    tooltip="flow: the SDE of Flow-GRPO; with many steps it keeps the model's "
                    "distribution at every noise level. dance: the SDE of DanceGRPO, constant "
                    "noise. cps: draws part of the predicted noise afresh; pictures stay clean, "
                    "but vary less than the model's. ode: no noise; for pictures, cannot be "
                    "trained on.",
                ),
                io.Float.Input(
                    "eta",
                    default=default.eta,
                    **span("sde.eta"),
                    step=0.05,
                    tooltip="How much noise each step adds. 0.7 in the paper. More explores more, "
                    "but with few steps the pictures get rough.",
                ),
                rare(
                    io.Float.Input(
                        "noise_from",
                        default=0.0,
                        min=0.0,
                        max=1.0,
                        step=0.05,
                        optional=True,
                        tooltip="For pictures: the first part of the steps, up to this fraction, "
                        "follows the ODE. Rollouts and training need 0.",
                    )
                ),
                rare(
                    io.Float.Input(
                        "noise_to",
                        default=1.0,
                        min=0.0,
                        max=1.0,
                        step=0.05,
                        optional=True,
                        tooltip="For pictures: steps after this fraction follow the ODE; 0.5 keeps "
                        "the noise in the first half. Rollouts and training need 1.",
                    )
                ),
            ],
            outputs=[
                io.Sampler.Output(
                    tooltip="For SamplerCustomAdvanced, Roll Out Trajectories and Train LoRA."
                )
            ],
        )

    @classmethod
    def execute(
        cls, rule: str, eta: float, noise_from: float = 0.0, noise_to: float = 1.0
    ) -> io.NodeOutput:
        """Make the sampler."""
        sde = SdeConfig(rule=rule, eta=eta)
        return io.NodeOutput(flow_sde_sampler(sde, noise_from, noise_to))


class ShiftedSigmas(io.ComfyNode):
    """Number of steps and shift -> SIGMAS."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """See ComfyUI's V3 node interface."""
        return io.Schema(
            node_id="ChunkGRPO_ShiftedSigmas",
            display_name="Shifted Sigmas",
            category=f"{CATEGORY}/sampling",
            description="Evenly spaced times, shifted towards noise: "
            "t' = shift * t / (1 + (shift - 1) * t). The grid of the paper.",
            inputs=[
                io.Int.Input(
                    "steps",
                    default=17,
                    min=2,
                    max=200,
                    tooltip="Sampling steps. The last one is deterministic and is not trained: 17 "
                    "steps give 16 trainable ones (the paper's number).",
                ),
                io.Float.Input(
                    "shift",
                    default=3.0,
                    min=0.1,
                    max=20.0,
                    step=0.1,
                    tooltip="1 keeps even spacing; 3 spends more steps at high noise, as in the "
                    "paper.",
                ),
            ],
            outputs=[io.Sigmas.Output(tooltip="steps + 1 noise levels, from 1 down to 0.")],
        )

    @classmethod
    def execute(cls, steps: int, shift: float) -> io.NodeOutput:
        """Make the noise levels."""
        return io.NodeOutput(torch.tensor(shifted_grid(steps, shift).sigmas))
