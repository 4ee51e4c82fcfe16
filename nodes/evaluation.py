"""The node that compares a LoRA with its base model."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io, ui

from ..chunk_grpo_core.measure.duels import OTHER_NOISE, drawn_duels
from ..chunk_grpo_core.method.reward import Reward
from ..chunk_grpo_core.method.schedule import TimeGrid
from ..chunk_grpo_core.runs.held_out import check_held_out
from ..chunk_grpo_core.runs.outcome import EVALUATION_SEED
from ..chunk_grpo_core.settings.blaming import blaming
from .bridge.any_sampler import check_sampler
from .bridge.applied import apply_lora
from .bridge.conditioning import Conditioning, check_guided
from .bridge.duels import kept_duels
from .bridge.evaluation import compare_models
from .lazy import ask_next
from .score_rows import pair_rows
from .types import (
    CATEGORY,
    LogSocket,
    PromptSet,
    PromptsSocket,
    RewardSocket,
    TrainingLog,
    guidance_inputs,
    rare,
)

__all__ = ["EvaluateLoRA"]


_STAGES = (
    ("sigmas",),
    ("lora", "log"),
    ("reward",),
    ("prompts",),
    ("model", "vae", "negative", "latent", "second_model"),
)


class EvaluateLoRA(io.ComfyNode):
    """MODEL and LORA_MODEL or second MODEL, held-out prompts, reward -> table, plot, pairs."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """See ComfyUI's V3 node interface."""
        return io.Schema(
            node_id="ChunkGRPO_EvaluateLoRA",
            display_name="Evaluate LoRA",
            category=CATEGORY,
            description="Compare a LoRA with its base model on the held-out prompts: same noise "
            "for both, Euler steps or the sampler you connect, mean gain with its 95 % interval.",
            inputs=[
                io.Model.Input("model", lazy=True, tooltip="The base: any flow-matching MODEL."),
                io.Vae.Input(
                    "vae", lazy=True, tooltip="Decodes the pictures that the reward sees."
                ),
                PromptsSocket.Input(
                    "prompts",
                    lazy=True,
                    tooltip="From Prompt Set; only its held-out prompts are used.",
                ),
                RewardSocket.Input(
                    "reward", lazy=True, tooltip="From Load Reward or Combine Rewards."
                ),
                io.Sigmas.Input("sigmas", lazy=True, tooltip="Noise levels, from 1 down to 0."),
                io.Latent.Input(
                    "latent", lazy=True, tooltip="An empty latent: it gives the picture size."
                ),
                io.Int.Input(
                    "pictures_per_prompt",
                    default=4,
                    min=1,
                    max=64,
                    tooltip="Pictures to measure on, of each prompt.\n"
                    "Pictures of each held-out prompt. More prompts narrow the interval "
                    "more than more pictures do.",
                ),
                rare(
                    io.Int.Input(
                        "noise_seed",
                        default=EVALUATION_SEED,
                        min=0,
                        max=2**63 - 10_000,
                        control_after_generate=False,
                        tooltip="Noise seed of the first prompt; the next one has the next seed. "
                        "RandomNoise with the same seed and batch size draws the same noise. The "
                        "default is that of Train LoRA.",
                    )
                ),
                rare(
                    io.Int.Input(
                        "batch_size",
                        default=0,
                        min=0,
                        max=64,
                        tooltip="Pictures in one call of the model. 0: all pictures of a prompt "
                        "together. When memory runs out, it is halved.",
                    )
                ),
                rare(io.Boolean.Input("dark", default=False, tooltip="Draw on a dark background.")),
                io.LoraModel.Input(
                    "lora",
                    lazy=True,
                    optional=True,
                    tooltip="From Train LoRA (RL) or Load LoRA File; used as Apply LoRA "
                    "does, strength 1 on all steps.",
                ),
                io.Model.Input(
                    "second_model",
                    lazy=True,
                    optional=True,
                    tooltip="A MODEL to compare with the base instead of a lora, from Apply LoRA: "
                    "for another strength or a part of the steps.",
                ),
                *guidance_inputs(),
                io.Sampler.Input(
                    "sampler",
                    optional=True,
                    tooltip="What draws the pictures, such as KSamplerSelect; that of the training "
                    "if the LoRA was trained with Forward Objective. Not connected: Euler.",
                ),
                io.Int.Input(
                    "duels",
                    default=0,
                    min=0,
                    max=200,
                    optional=True,
                    tooltip="Was it worth it? So many pairs on held-out prompts, base and LoRA "
                    "from the same new noise, are drawn besides and shown on the node one by one, "
                    "without telling which is which. 20 show a clear difference. 0: none.",
                ),
                LogSocket.Input(
                    "log",
                    lazy=True,
                    optional=True,
                    tooltip="From Train LoRA (RL): the duels are kept with its run. Not connected: "
                    "in output/chunk_grpo/evaluation.",
                ),
            ],
            outputs=[
                io.String.Output(
                    "table",
                    display_name="table",
                    tooltip="Means, gain with 95 % interval and win rate of every score, then "
                    "every prompt (Markdown).",
                ),
                io.Image.Output(
                    "plot", display_name="plot", tooltip="Gain of every prompt, and the mean."
                ),
                io.Image.Output(
                    "pairs",
                    display_name="pairs",
                    tooltip="Held-out prompts, same noise: base above, LoRA below, with scores.",
                ),
            ],
            is_output_node=True,
        )

    @classmethod
    def check_lazy_status(cls, **inputs: Any) -> list[str]:
        """Refuse what is wrong before the LoRA is trained and anything heavy is loaded."""
        _check_one("lora" in inputs, "second_model" in inputs)
        cfg = inputs.get("cfg", 1.0)
        check_guided(cfg, has_negative="negative" in inputs)
        if inputs.get("sampler") is not None:
            check_sampler(inputs["sampler"], cfg)
        if inputs.get("sigmas") is not None:
            TimeGrid.of(inputs["sigmas"].tolist())
        if inputs.get("prompts") is not None:
            check_held_out(inputs["prompts"].held_out)
        return ask_next(inputs, _STAGES)

    @classmethod
    def execute(
        cls,
        model: Any,
        vae: Any,
        prompts: PromptSet,
        reward: Reward,
        sigmas: torch.Tensor,
        latent: dict[str, Any],
        pictures_per_prompt: int,
        noise_seed: int,
        batch_size: int,
        dark: bool,
        lora: dict[str, torch.Tensor] | None = None,
        second_model: Any = None,
        negative: Conditioning | None = None,
        cfg: float = 1.0,
        sampler: Any = None,
        duels: int = 0,
        log: TrainingLog | None = None,
    ) -> io.NodeOutput:
        """Measure both and compare."""
        _check_one(lora is not None, second_model is not None)
        if lora is not None:
            with blaming("lora"):
                second_model = apply_lora(model, lora)
        texts = [example.text for example in prompts.held_out]
        drawn = drawn_duels(texts, duels, noise_seed + OTHER_NOISE, noise_seed) if duels else []
        comparison, pictures = compare_models(
            base=model,
            other=second_model,
            vae=vae,
            prompts=prompts,
            reward=reward,
            grid=TimeGrid.of(sigmas.tolist()),
            latent=latent,
            seeds=pictures_per_prompt,
            noise_seed=noise_seed,
            batch_size=batch_size or None,
            negative=negative,
            cfg=cfg,
            sampler=sampler,
            duels=drawn,
        )
        table = comparison.table()
        plot, pairs = comparison.plot(dark=dark)[None], comparison.pairs()[None]
        page = pair_rows(comparison)
        if drawn:
            page |= kept_duels(drawn, *pictures, log.run_folder if log else None)
        else:
            page |= ui.PreviewText(table).as_dict()  # numbers would sway whoever judges
        return io.NodeOutput(table, plot, pairs, ui=page)


def _check_one(has_lora: bool, has_second_model: bool) -> None:
    if has_lora == has_second_model:
        raise ValueError("connect either lora or second_model, to be compared with the base")
