"""Step-level GRPO on few steps, of which one takes noise: nothing new, and cheap."""

from __future__ import annotations

from ..method.schedule import shifted_grid
from .recipe import Preset, complete, settings

__all__ = ["FEW_STEP"]

FEW_STEP = Preset(
    name="few-step",
    title="Ours, step-level GRPO: few steps, noise in the first alone, with a leash",
    values=complete(
        settings(
            "Ours",
            {
                "grid": (
                    shifted_grid(6, 3.0),
                    "as flow-grpo has 6; the race had 4 for the tiny FLUX",
                ),
                "plan": ("step", "a ratio for every step"),
                "sde.rule": ("flow", "as flow-grpo"),
                "sde.eta": (0.9, "as flow-grpo"),
                "window.kind": (
                    "fixed",
                    "the race's screening: a step drawn anywhere learnt far less",
                ),
                "window.start": (0, "the first step decides most of a picture"),
                "window.chunks": (1, "one step, as Flow-GRPO-Fast trains one or two"),
                "noise": (
                    "window",
                    "the other steps follow the ODE, so that pictures are those of clean steps",
                ),
                "chunk_fraction": (1.0, "one step in the window"),
                "iterations": (150, "as safe-lora"),
                "prompts_per_iteration": (4, "as safe-lora"),
                "group_size": (12, "as safe-lora"),
                "share_initial_noise": (False, "as flow-grpo"),
                "batch_size": (None, "as many as fit; halved where memory runs out"),
                "advantage.scale": ("group-std", "as gcpo-script"),
                "advantage.centre": ("mean", "as every source"),
                "advantage.clamp": (5.0, "as every source"),
                "advantage.combine": (
                    "advantages",
                    "GDPO: with several rewards the easiest would win; nothing for one reward",
                ),
                "objective.ratio": ("step", "a ratio for every step"),
                "objective.clip_low": (1e-4, "as flow-grpo, which has 512 x 512 pictures"),
                "objective.clip_high": (1e-4, "as flow-grpo, which has 512 x 512 pictures"),
                "objective.kl_ref": (
                    3e-3,
                    "benchmarks/race: without a leash the reward rises faster, and pictures spoil",
                ),
                "objective.kl_type": ("velocity", "Flow-Factory's kl_type v-based"),
                "optimizer.learning_rate": (1e-4, "as safe-lora: updates of 24 pictures"),
                "optimizer.max_grad_norm": (1.0, "every LoRA script"),
                "optimizer.weight_decay": (1e-4, "as every source"),
                "optimizer.beta1": (0.9, "as every source"),
                "optimizer.beta2": (0.99, "as safe-lora"),
                "optimizer.eps": (1e-10, "as safe-lora"),
                "optimizer.updates_per_rollout": (2, "as flow-grpo"),
                "optimizer.epochs": (1, "as every source"),
                "optimizer.warmup_updates": (10, "as safe-lora"),
                "lora.rank": (64, "as flow-grpo"),
                "lora.alpha": (128.0, "as flow-grpo"),
                "lora.targets": ("attention+mlp", "as flow-grpo"),
            },
        )
    ),
    departures=(
        "Flow-GRPO-Fast (yifan123/flow_grpo) is the nearest published one: noise in one or two "
        "steps of a group; here it is the first one, and there is a leash.",
        "On the model's side: 512 x 512 pictures; steps, cfg and shift as the model is used. For a "
        "distilled model take quick, which needs no noise between the steps.",
        "Watch a reward that you do not train on, and stop when it falls.",
    ),
    shorter_runs="Nothing: there is no average, and the learning rate rises over the first 5 "
    "iterations.",
)
