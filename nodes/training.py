"""Nodes that train, and the one that plots a training."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from comfy_api.latest import io, ui

from ..chunk_grpo_core.lora.adapter import LoraConfig
from ..chunk_grpo_core.method.chunks import ChunkPlan
from ..chunk_grpo_core.method.reward import Reward
from ..chunk_grpo_core.method.schedule import TimeGrid
from ..chunk_grpo_core.train.config import OptimizerConfig, TrainConfig
from .bridge.any_sampler import rollouts_of
from .bridge.conditioning import Conditioning
from .bridge.host import run_folder
from .bridge.monitor import Asker
from .bridge.training import RunRequest, train_lora
from .outcome_words import describe
from .patch import Patch, declared, is_training_setting, model_settings, span
from .types import (
    CATEGORY,
    LogSocket,
    PlanSocket,
    PromptSet,
    PromptsSocket,
    RewardSocket,
    SettingsSocket,
    TrainingLog,
    guidance_inputs,
)
from .validation import verdict

__all__ = ["PlotTraining", "TrainLoRA"]


class TrainLoRA(io.ComfyNode):
    """MODEL, VAE, prompts, reward, plan -> LORA_MODEL."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """See ComfyUI's V3 node interface."""
        lora = LoraConfig()
        return io.Schema(
            node_id="ChunkGRPO_TrainLoRA",
            display_name="Train LoRA (RL)",
            category=CATEGORY,
            description="Reinforcement learning: sample groups of pictures, score them, and move a "
            "LoRA towards the better ones. The MODEL is left exactly as it was.",
            inputs=[
                io.Model.Input("model", tooltip="Any flow-matching MODEL (FLUX, SD3, ...)."),
                io.Vae.Input(
                    "vae",
                    tooltip="Decodes the pictures that the reward sees; with Preference Objective "
                    "it encodes those that you picked.",
                ),
                PromptsSocket.Input(
                    "prompts", tooltip="From Prompt Set, or from Preference Objective."
                ),
                RewardSocket.Input(
                    "reward",
                    optional=True,
                    tooltip="From Load Reward or Combine Rewards. With Preference Objective it "
                    "only measures, and may be left out.",
                ),
                PlanSocket.Input(
                    "plan",
                    optional=True,
                    tooltip="From Plan Chunks. Needed by Chunk-GRPO; Forward Objective and "
                    "Preference Objective need none.",
                ),
                io.Sampler.Input(
                    "sampler",
                    optional=True,
                    tooltip="From Flow SDE Sampler. With Forward Objective any SAMPLER, such as "
                    "that of KSamplerSelect: rollouts and held-out pictures are made with it. With "
                    "Preference Objective none.",
                ),
                io.Sigmas.Input(
                    "sigmas",
                    tooltip="Noise levels of the rollouts; with Preference Objective those of the "
                    "training.",
                ),
                io.Latent.Input("latent", tooltip="An empty latent: it gives the picture size."),
                io.Int.Input(
                    "iterations",
                    default=100,
                    **span("iterations"),
                    tooltip="Rounds of sampling, scoring and updating.",
                ),
                io.Int.Input(
                    "prompts_per_iteration",
                    default=4,
                    **span("prompts_per_iteration"),
                    tooltip="Groups in one iteration.",
                ),
                io.Int.Input(
                    "group_size",
                    default=12,
                    **span("group_size"),
                    tooltip="Pictures of each prompt that are compared with each other. Below 8 "
                    "the comparison gets noisy and the reward may fall. With Preference Objective "
                    "pictures of one click: 2 is one pair.",
                ),
                io.Float.Input(
                    "learning_rate",
                    default=OptimizerConfig().learning_rate,
                    **span("optimizer.learning_rate"),
                    step=1e-7,
                    round=1e-7,
                    tooltip="For a LoRA 0.0001 to 0.001. Too high shows as grids and burnt "
                    "colours while the reward still rises.",
                ),
                io.Int.Input("rank", default=lora.rank, **span("lora.rank"), tooltip="LoRA rank."),
                io.Float.Input(
                    "alpha",
                    default=lora.alpha,
                    **span("lora.alpha"),
                    step=0.5,
                    tooltip="LoRA scale is alpha / rank, or alpha / sqrt(rank) with rs_lora.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    **span("seed"),
                    control_after_generate=False,
                    tooltip="Seed of everything: the same seed gives the same LoRA.",
                ),
                io.Int.Input(
                    "pictures_per_held_out",
                    default=2,
                    min=1,
                    max=64,
                    tooltip="Pictures of each held-out prompt, made before and after training.",
                ),
                io.String.Input(
                    "run_name",
                    default="",
                    tooltip="Folder under output/chunk_grpo. Empty: run_0001, run_0002, ...",
                ),
                io.Boolean.Input(
                    "resume",
                    default=False,
                    tooltip="Go on with the run of this name after a cancel or a crash. Model, "
                    "prompts, reward and most settings must be the same; iterations, "
                    "learning_rate, batch_size and a few more may change.",
                ),
                SettingsSocket.Input(
                    "settings",
                    optional=True,
                    tooltip="From GRPO Preset, Settings, Objective or Exploration, or Forward or "
                    "Preference Objective. The inputs of this node replace what they say.",
                ),
                io.LoraModel.Input(
                    "continue_from",
                    optional=True,
                    tooltip="A LoRA to train on, from Load LoRA File or an earlier training. It "
                    "needs the same layers and a rank that is not above this one.",
                ),
                *guidance_inputs(),
            ],
            outputs=[
                io.LoraModel.Output(
                    "lora",
                    display_name="lora",
                    tooltip="For Apply LoRA, Evaluate LoRA, Save LoRA, or Load LoRA Model.",
                ),
                io.LossMap.Output(
                    "loss_map",
                    display_name="loss_map",
                    tooltip="1 - mean reward of each iteration, for Plot Loss Graph.",
                ),
                LogSocket.Output(
                    "log", display_name="log", tooltip="For Plot Training and our Save LoRA."
                ),
                io.Image.Output(
                    "before_after",
                    display_name="before_after",
                    tooltip="Held-out prompts, same noise: before and after.",
                ),
                io.String.Output(
                    "summary", display_name="summary", tooltip="What the training gained, in words."
                ),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.extra_pnginfo],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, run_name: str | None) -> bool | str:
        """Refuse a name that can be no folder before anything runs."""
        return verdict(run_folder, run_name) if run_name and run_name.strip() else True

    @classmethod
    def execute(
        cls,
        model: Any,
        vae: Any,
        prompts: PromptSet,
        sigmas: torch.Tensor,
        latent: dict[str, Any],
        iterations: int,
        prompts_per_iteration: int,
        group_size: int,
        learning_rate: float,
        rank: int,
        alpha: float,
        seed: int,
        pictures_per_held_out: int,
        run_name: str,
        resume: bool,
        settings: Patch | None = None,
        continue_from: dict[str, torch.Tensor] | None = None,
        negative: Conditioning | None = None,
        cfg: float = 1.0,
        plan: ChunkPlan | str | None = None,
        reward: Reward | None = None,
        sampler: Any = None,
    ) -> io.NodeOutput:
        """Train."""
        patch = settings or {}
        algorithm = str(patch.get("algorithm", declared("algorithm").default))
        _check_plan(plan, patch, algorithm)
        sde, handed = rollouts_of(sampler, algorithm, cfg)
        from_inputs = {
            "grid": TimeGrid.of(sigmas.tolist()),
            **({} if plan is None else {"plan": plan}),
            **{f"sde.{name}": value for name, value in asdict(sde).items()},
            "iterations": iterations,
            "prompts_per_iteration": prompts_per_iteration,
            "group_size": group_size,
            "optimizer.learning_rate": learning_rate,
            "lora.rank": rank,
            "lora.alpha": alpha,
            "seed": seed,
        }
        of_model = model_settings(patch)
        for_training = {key: value for key, value in patch.items() if is_training_setting(key)}
        config = TrainConfig.of({**for_training, **from_inputs})
        lora, log = train_lora(
            model=model,
            vae=vae,
            prompts=prompts,
            reward=reward,
            latent=latent,
            config=config,
            request=RunRequest(run_name.strip(), resume),
            evaluation_seeds=pictures_per_held_out,
            asker=asker_of(cls.hidden),
            continue_from=continue_from,
            negative=negative,
            cfg=cfg,
            activation_offloading=of_model.activation_offloading,
            sampler=handed,
        )
        summary = describe(log)
        rows = log.outcome.rows
        means = [row["reward_mean"] for row in rows if row.get("reward_mean") is not None]
        losses = [1.0 - mean for mean in means]
        grid = log.outcome.before_after_grid()[None]
        shown = {**ui.PreviewText(summary).as_dict(), "chunk_grpo_run": [Path(log.run_folder).name]}
        return io.NodeOutput(lora, {"loss": losses}, log, grid, summary, ui=shown)


def _check_plan(plan: object, patch: Patch, algorithm: str) -> None:
    """Refuse a plan that nothing trains, and a training of chunks without one."""
    if plan is not None and algorithm != "chunk_grpo":
        raise ValueError(
            f"plan is connected, but the algorithm {algorithm}, which {algorithm.title()} "
            "Objective sets, trains no chunks of steps; take the link off"
        )
    if plan is None and algorithm == "chunk_grpo" and patch.get("plan") is None:
        raise ValueError(
            "plan is not connected; connect Plan Chunks, or put Forward Objective in front of "
            "settings: the algorithm forward needs no plan"
        )


def asker_of(hidden: Any) -> Asker:
    """The node that runs, from its hidden inputs; a prompt of the API tells no workflow."""
    if hidden is None:  # not called by ComfyUI
        return Asker()
    workflow = (hidden.extra_pnginfo or {}).get("workflow") or {}
    workflow_id = str(workflow.get("id") or "")
    is_nil = not workflow_id.strip("0-")  # what a file holds that was never given one
    return Asker(str(hidden.unique_id or ""), "" if is_nil else workflow_id)


class PlotTraining(io.ComfyNode):
    """Training log -> IMAGE."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """See ComfyUI's V3 node interface."""
        return io.Schema(
            node_id="ChunkGRPO_PlotTraining",
            display_name="Plot Training",
            category=CATEGORY,
            description="Reward, clipping, KL and gradient norm over the iterations.",
            inputs=[
                LogSocket.Input("log", tooltip="From Train LoRA (RL)."),
                io.Boolean.Input("dark", default=False, tooltip="Draw on a dark background."),
            ],
            outputs=[
                io.Image.Output(
                    "plot", display_name="plot", tooltip="For Preview Image or Save Image."
                )
            ],
        )

    @classmethod
    def execute(cls, log: TrainingLog, dark: bool) -> io.NodeOutput:
        """Draw."""
        return io.NodeOutput(log.outcome.plot(dark=dark)[None])
