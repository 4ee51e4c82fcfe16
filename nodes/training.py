"""The node that trains."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from comfy_api.latest import io, ui

from ..chunk_grpo_core.method.chunks import ChunkPlan
from ..chunk_grpo_core.method.reward import Reward
from ..chunk_grpo_core.method.schedule import TimeGrid
from .bridge.checking import check_lora
from .bridge.conditioning import Conditioning
from .bridge.host import blocked, run_folder
from .bridge.monitor import Asker
from .bridge.own_defaults import PICTURE_SIZE, own_grid
from .bridge.shift_patch import shift_doubt
from .bridge.training import RunRequest, train_lora
from .graph_ahead import check_steps_of_plans, is_lora_file
from .outcome_words import LINE_END, describe
from .patch import Patch, model_settings, span
from .recipes import BY_HAND, number_input, recipe_input
from .train_inputs import TrainInputs, check_and_ask, grid_without_model
from .types import (
    CATEGORY,
    LogSocket,
    PlanSocket,
    PromptSet,
    PromptsSocket,
    RewardSocket,
    SettingsSocket,
    guidance_inputs,
    rare,
)
from .validation import verdict

__all__ = ["TrainLoRA"]


class TrainLoRA(io.ComfyNode):
    """MODEL, VAE, prompts, reward, plan -> LORA_MODEL."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """See ComfyUI's V3 node interface."""
        return io.Schema(
            node_id="ChunkGRPO_TrainLoRA",
            display_name="Train LoRA (RL)",
            category=CATEGORY,
            description="Reinforcement learning: sample groups of pictures, score them, and move a "
            "LoRA towards the better ones. The MODEL is left exactly as it was.",
            inputs=[
                io.Model.Input(
                    "model", lazy=True, tooltip="Any flow-matching MODEL (FLUX, SD3, ...)."
                ),
                io.Vae.Input(
                    "vae",
                    lazy=True,
                    tooltip="Decodes the pictures that the reward sees; with Preference Objective "
                    "it encodes those that you picked.",
                ),
                PromptsSocket.Input(
                    "prompts", lazy=True, tooltip="From Prompt Set, or from Preference Objective."
                ),
                RewardSocket.Input(
                    "reward",
                    lazy=True,
                    optional=True,
                    tooltip="From Load Reward or Combine Rewards. With Preference Objective it "
                    "only measures, and may be left out.",
                ),
                PlanSocket.Input(
                    "plan",
                    lazy=True,
                    optional=True,
                    tooltip="Which neighbouring steps of a picture are judged together (chunks).\n"
                    "From Plan Chunks: which steps share a probability ratio. Only for "
                    "Chunk-GRPO; Forward Objective and Preference Objective need none.",
                ),
                io.Sampler.Input(
                    "sampler",
                    optional=True,
                    tooltip="How pictures are drawn in training. Not connected: as the recipe "
                    "says. For quick and Forward Objective any SAMPLER, such as that of "
                    "KSamplerSelect; for Chunk-GRPO Flow SDE Sampler; with Preference Objective "
                    "none.",
                ),
                io.Sigmas.Input(
                    "sigmas",
                    lazy=True,
                    optional=True,
                    tooltip="Noise levels of the steps, such as from BasicScheduler. Not "
                    "connected: those of the MODEL, in as many steps as the recipe says.",
                ),
                io.Latent.Input(
                    "latent",
                    lazy=True,
                    optional=True,
                    tooltip="An empty latent: it gives the picture size. Not connected: "
                    f"{PICTURE_SIZE} x {PICTURE_SIZE} pixels.",
                ),
                number_input(
                    "iterations",
                    "Rounds of sampling, scoring and updating. More take longer and change more.",
                    default=100,
                ),
                rare(
                    number_input(
                        "prompts_per_iteration",
                        "Groups in one iteration: so many prompts are drawn and compared, each "
                        "with its own pictures.",
                    )
                ),
                rare(
                    number_input(
                        "group_size",
                        "Pictures of each prompt that are compared with each other. Below 8 the "
                        "comparison gets noisy and the reward may fall. With Preference Objective "
                        "pictures of one click: 2 is one pair.",
                    )
                ),
                number_input(
                    "learning_rate",
                    "How far each update moves the LoRA: 0.0001 to 0.001. Too high shows as grids "
                    "and burnt colours while the reward still rises.",
                    step=1e-7,
                ),
                number_input(
                    "rank", "Size of the LoRA. A higher rank can learn more and takes more memory."
                ),
                rare(
                    number_input(
                        "alpha",
                        "Strength of the LoRA: its scale is alpha / rank, or alpha / sqrt(rank) "
                        "with rs_lora. With a rank of your own, 0 keeps that scale.",
                        step=0.5,
                    )
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    **span("seed"),
                    control_after_generate=False,
                    tooltip="Seed of everything: the same seed gives the same LoRA.",
                ),
                rare(
                    io.Int.Input(
                        "pictures_per_held_out",
                        default=2,
                        min=1,
                        max=64,
                        tooltip="Pictures to measure on; more make the measured gain surer.\n"
                        "Pictures of each held-out prompt, made before and after training.",
                    )
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
                    lazy=True,
                    optional=True,
                    tooltip="A LoRA to train on, from Load LoRA File or an earlier training. It "
                    "needs the same layers and a rank that is not above this one.",
                ),
                *guidance_inputs(),
                recipe_input(),
                io.Boolean.Input(
                    "check_only",
                    default=False,
                    optional=True,  # prompts saved before it existed still run
                    tooltip="Do not train: try a little of the training, put everything back, and "
                    "say how long all of it will take, whether it fits into memory, and whether "
                    "the reward sees differences. Only summary comes out.",
                ),
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
            hidden=[io.Hidden.unique_id, io.Hidden.extra_pnginfo, io.Hidden.prompt],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, run_name: str | None = None) -> bool | str:
        """Refuse a name that can be no folder before anything runs."""
        return verdict(run_folder, run_name) if run_name and run_name.strip() else True

    @classmethod
    def check_lazy_status(cls, **inputs: Any) -> list[str]:
        """Refuse what is wrong before anything heavy is loaded, and ask for what comes next."""
        graph = getattr(cls.hidden, "prompt", None)
        check_steps_of_plans(graph)
        node = getattr(cls.hidden, "unique_id", None)
        return check_and_ask(inputs, reads_lora=is_lora_file(graph, node, "continue_from"))

    @classmethod
    def execute(
        cls,
        model: Any,
        vae: Any,
        prompts: PromptSet,
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
        sigmas: torch.Tensor | None = None,
        latent: Mapping[str, Any] | None = None,
        recipe: str = BY_HAND,
        check_only: bool = False,
    ) -> io.NodeOutput:
        """Train; a prompt that says no recipe was saved before there were any."""
        of_model = model_settings(settings or {})
        inputs = TrainInputs(
            recipe=recipe,
            settings=settings or {},
            numbers={
                "iterations": iterations,
                "prompts_per_iteration": prompts_per_iteration,
                "group_size": group_size,
                "learning_rate": learning_rate,
                "rank": rank,
                "alpha": alpha,
            },
            plan=plan,
            sampler=sampler,
            cfg=cfg,
            seed=seed,
        )
        config, handed = inputs.config(lambda patch: _grid(model, sigmas, settings or {}, patch))
        asked = {
            "model": model,
            "vae": vae,
            "prompts": prompts,
            "reward": reward,
            "latent": latent,
            "config": config,
            "continue_from": continue_from,
            "negative": negative,
            "cfg": cfg,
            "activation_offloading": of_model.activation_offloading,
            "sampler": handed,
        }
        if check_only:
            check = check_lora(**asked, evaluation_seeds=pictures_per_held_out)
            text = LINE_END.join([*check.lines(), *_doubts(model)])
            nothing = [blocked() for _ in range(4)]
            shown = {**ui.PreviewText(text).as_dict(), "chunk_grpo_check": [check.to_json()]}
            return io.NodeOutput(*nothing, text, ui=shown)
        lora, log = train_lora(
            **asked,
            request=RunRequest(run_name.strip(), resume),
            evaluation_seeds=pictures_per_held_out,
            asker=asker_of(cls.hidden),
        )
        summary = LINE_END.join([describe(log), *_doubts(model)])
        rows = log.outcome.rows
        means = [row["reward_mean"] for row in rows if row.get("reward_mean") is not None]
        losses = [1.0 - mean for mean in means]
        grid = log.outcome.before_after_grid()[None]
        shown = {**ui.PreviewText(summary).as_dict(), "chunk_grpo_run": [Path(log.run_folder).name]}
        return io.NodeOutput(lora, {"loss": losses}, log, grid, summary, ui=shown)


def _grid(model: Any, sigmas: torch.Tensor | None, settings: Patch, patch: Patch) -> TimeGrid:
    """The noise levels that are connected, those of the settings, or those of the MODEL.

    Raises:
        ValueError: Nothing says how many steps there are, or they are no noise levels.
    """
    grid = grid_without_model(sigmas, patch)
    is_of_model = sigmas is None and "grid" not in settings
    return own_grid(model, grid.steps) if is_of_model else grid


def _doubts(model: Any) -> list[str]:
    """Lines of the summary about what may have spoilt the pictures."""
    doubt = shift_doubt(model)
    return [f"Doubtful: {doubt}."] if doubt else []


def asker_of(hidden: Any) -> Asker:
    """The node that runs, from its hidden inputs; a prompt of the API tells no workflow."""
    if hidden is None:  # not called by ComfyUI
        return Asker()
    workflow = (hidden.extra_pnginfo or {}).get("workflow") or {}
    workflow_id = str(workflow.get("id") or "")
    is_nil = not workflow_id.strip("0-")  # what a file holds that was never given one
    return Asker(str(hidden.unique_id or ""), "" if is_nil else workflow_id)
