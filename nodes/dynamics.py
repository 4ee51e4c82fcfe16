"""Nodes that look at how a picture forms: rollouts, curves of change, chunk plans."""

from __future__ import annotations

import json
from typing import Any

import torch
from comfy_api.latest import io

from ..chunk_grpo_core.method.chunks import ChunkPlan
from ..chunk_grpo_core.method.dynamics import DISTANCES, DynamicsCurve, dynamics_curve
from ..chunk_grpo_core.method.plan_text import (
    EXAMPLE_STEPS,
    check_plan_text,
    check_word_alone,
    plan_steps,
    read_plan,
    read_weights,
)
from ..chunk_grpo_core.method.schedule import TimeGrid
from ..chunk_grpo_core.watch.plots import plot_dynamics, plot_plan
from .bridge.conditioning import Conditioning, check_guided
from .bridge.rollouts import roll_out
from .bridge.sampler import sde_of
from .graph_ahead import check_steps_of_plans
from .lazy import ask_next
from .types import (
    CATEGORY,
    CurveSocket,
    PlanSocket,
    PromptSet,
    PromptsSocket,
    Rollouts,
    RolloutsSocket,
    guidance_inputs,
)
from .validation import choice, verdict

__all__ = ["AnalyzeTemporalDynamics", "PlanChunks", "RollOutTrajectories"]


class RollOutTrajectories(io.ComfyNode):
    """MODEL, prompts, sampler, sigmas -> every state of every sample."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """See ComfyUI's V3 node interface."""
        return io.Schema(
            node_id="ChunkGRPO_RollOutTrajectories",
            display_name="Roll Out Trajectories",
            category=f"{CATEGORY}/dynamics",
            description="Sample groups of pictures and keep every intermediate state.",
            inputs=[
                io.Model.Input(
                    "model", lazy=True, tooltip="Any flow-matching MODEL. It is not changed."
                ),
                PromptsSocket.Input(
                    "prompts", lazy=True, tooltip="From Prompt Set; the first ones are used."
                ),
                io.Sampler.Input("sampler", tooltip="From Flow SDE Sampler."),
                io.Sigmas.Input(
                    "sigmas", lazy=True, tooltip="Noise levels, for example from Shifted Sigmas."
                ),
                io.Latent.Input(
                    "latent", lazy=True, tooltip="An empty latent: it gives the picture size."
                ),
                io.Int.Input(
                    "prompt_count",
                    default=4,
                    min=1,
                    max=256,
                    tooltip="How many prompts to roll out. The curve hardly depends on the prompt; "
                    "4 to 8 show its spread.",
                ),
                io.Int.Input(
                    "group_size",
                    default=4,
                    min=1,
                    max=64,
                    tooltip="Pictures of each prompt.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**63 - 1,
                    control_after_generate=True,
                    tooltip="Seed of the noise.",
                ),
                *guidance_inputs(),
            ],
            outputs=[
                RolloutsSocket.Output(
                    "trajectories",
                    display_name="trajectories",
                    tooltip="For Analyze Temporal Dynamics.",
                ),
                io.Latent.Output(tooltip="The finished latents, for VAE Decode."),
                io.String.Output(
                    "captions",
                    display_name="captions",
                    tooltip="The prompt of each picture, one line for each, for Pick Pictures and "
                    "Score Images.",
                ),
            ],
            hidden=[io.Hidden.prompt],
        )

    @classmethod
    def check_lazy_status(cls, **inputs: Any) -> list[str]:
        """Refuse what is wrong before anything heavy is loaded."""
        check_steps_of_plans(getattr(cls.hidden, "prompt", None))
        check_guided(inputs.get("cfg", 1.0), has_negative="negative" in inputs)
        sde_of(inputs["sampler"])
        if inputs["sigmas"] is not None:
            TimeGrid.of(inputs["sigmas"].tolist())
        return ask_next(inputs, (("sigmas",), ("prompts",), ("model", "negative", "latent")))

    @classmethod
    def execute(
        cls,
        model: Any,
        prompts: PromptSet,
        sampler: Any,
        sigmas: torch.Tensor,
        latent: dict[str, Any],
        prompt_count: int,
        group_size: int,
        seed: int,
        negative: Conditioning | None = None,
        cfg: float = 1.0,
    ) -> io.NodeOutput:
        """Sample."""
        asked = prompts.train[:prompt_count]
        rollouts, finished = roll_out(
            model,
            prompts,
            asked,
            TimeGrid.of(sigmas.tolist()),
            sde_of(sampler),
            latent,
            group_size,
            seed,
            negative=negative,
            cfg=cfg,
        )
        captions = [" ".join(ask.text.split()) for ask in asked for _ in range(group_size)]
        return io.NodeOutput(rollouts, {"samples": finished}, "\n".join(captions))


class AnalyzeTemporalDynamics(io.ComfyNode):
    """Trajectories -> curve of change and its plot."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """See ComfyUI's V3 node interface."""
        return io.Schema(
            node_id="ChunkGRPO_AnalyzeTemporalDynamics",
            display_name="Analyze Temporal Dynamics",
            category=f"{CATEGORY}/dynamics",
            description="How much the latent changes at each step, whatever its scale. Steps that "
            "change alike belong into one chunk.",
            inputs=[
                RolloutsSocket.Input("trajectories", tooltip="From Roll Out Trajectories."),
                io.Boolean.Input("dark", default=False, tooltip="Draw on a dark background."),
                io.Combo.Input(
                    "distance",
                    options=list(DISTANCES),
                    default="l1",
                    optional=True,  # prompts saved before it existed still run
                    tooltip="How the change is measured. l1: mean abs(x_s - x_t) / mean abs(x_t), "
                    "the paper's. l2: the same with root mean squares. cosine: 1 - cosine of the "
                    "angle between x_s and x_t, which ignores their lengths.",
                ),
            ],
            outputs=[
                CurveSocket.Output("curve", display_name="curve", tooltip="For Plan Chunks."),
                io.Image.Output(
                    "plot", display_name="plot", tooltip="The curve with its spread over prompts."
                ),
                io.String.Output("numbers", display_name="numbers", tooltip="The curve as JSON."),
            ],
        )

    @classmethod
    def execute(cls, trajectories: Rollouts, dark: bool, distance: str = "l1") -> io.NodeOutput:
        """Measure and draw."""
        curve = dynamics_curve(
            trajectories.trajectories, trajectories.model, choice("distance", distance)
        )
        plot = plot_dynamics(curve, dark=dark)
        return io.NodeOutput(curve, plot[None], json.dumps(curve.to_json()))


class PlanChunks(io.ComfyNode):
    """Sizes (and a curve) -> chunk plan and its plot."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """See ComfyUI's V3 node interface."""
        return io.Schema(
            node_id="ChunkGRPO_PlanChunks",
            display_name="Plan Chunks",
            category=f"{CATEGORY}/dynamics",
            description="Cut the trainable steps into chunks that share one importance ratio.",
            inputs=[
                io.String.Input(
                    "chunk_sizes",
                    default="2, 3, 4, 7",
                    tooltip="Sizes from noise to data; they must add up to steps - 1. Or: step "
                    "(one chunk per step, step-level GRPO), whole (one chunk), size 4 (chunks of "
                    "4); with a curve also cut 4 (the flattest 4 chunks), cut 4 2 (of at least 2 "
                    "steps), adaptive (cut where the curve turns) and adaptive 2 4 (smallest and "
                    "largest chunk). 2, 3, 4, 7 is the paper's plan for 17 steps.",
                ),
                io.String.Input(
                    "weights",
                    default="uniform",
                    tooltip="Which parts of the drawing are trained more often.\n"
                    "How often each chunk is drawn. uniform; or curve (in proportion to "
                    "its mean change, the paper's weighted sampling); or softmax 0.5 (softmax of "
                    "mean change / 0.5; a smaller number favours the chunk that changes most); or "
                    "one number per chunk, such as 0.4, 0.35, 0.2, 0.05. Weight 0 never trains a "
                    "chunk. More weight on high noise (the first chunks) changes what is drawn "
                    "more than how; overdone, it breaks pictures.",
                ),
                io.Boolean.Input("dark", default=False, tooltip="Draw on a dark background."),
                CurveSocket.Input(
                    "curve",
                    optional=True,
                    tooltip="From Analyze Temporal Dynamics, measured with the sampler and sigmas "
                    "that will train. Only cut, adaptive and the weights curve and softmax need "
                    "it.",
                ),
            ],
            outputs=[
                PlanSocket.Output("plan", display_name="plan", tooltip="For Train LoRA (RL)."),
                io.Image.Output(
                    "plot", display_name="plot", tooltip="The curve with the chunks shaded."
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, chunk_sizes: str | None = None) -> bool | str:
        """Refuse text that can be no plan before anything runs."""
        return verdict(check_plan_text, chunk_sizes)

    @classmethod
    def execute(
        cls, chunk_sizes: str, weights: str, dark: bool, curve: DynamicsCurve | None = None
    ) -> io.NodeOutput:
        """Plan and draw. Without a curve, words wait for the number of steps of the training."""
        steps = len(curve.mean) - 1 if curve else plan_steps(chunk_sizes)
        if steps is None:
            check_word_alone(chunk_sizes, weights)
            example = plot_plan(read_plan(chunk_sizes, EXAMPLE_STEPS), dark=dark, example=True)
            return io.NodeOutput(chunk_sizes, example[None])
        plan = read_weights(weights, read_plan(chunk_sizes, steps, curve), curve)
        plot = plot_dynamics(curve, plan, dark=dark) if curve else plot_plan(plan, dark=dark)
        return io.NodeOutput(plan, plot[None], ui={"chunk_grpo_plan": [_shown(plan, curve)]})


def _shown(plan: ChunkPlan, curve: DynamicsCurve | None) -> dict[str, object]:
    """What the editor in the page draws: the plan, and the curve."""
    return {
        "sizes": list(plan.sizes),
        "weights": None if plan.weights is None else list(plan.weights),
        "steps": plan.steps,
        "curve": curve and curve.to_json(),
    }
