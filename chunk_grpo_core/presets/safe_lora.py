"""Our own default for a LoRA on one card: published parts, the cautious value of each."""

from __future__ import annotations

from ..method.schedule import shifted_grid
from .recipe import Preset, complete, settings

__all__ = ["SAFE_LORA"]

SAFE_LORA = Preset(
    name="safe-lora",
    title="Ours, Chunk-GRPO for a LoRA on one card: the first chunk of few steps, with a leash",
    values=complete(
        settings(
            "Ours",
            {
                "grid": (
                    shifted_grid(8, 3.0),
                    "few steps, as for quick; the race's screening saw no gain in 9 over 6",
                ),
                "plan": ("2, 5", "early chunks decide most of a picture (results/chunk_vs_step)"),
                "sde.rule": ("flow", "as gcpo-script"),
                "sde.eta": (0.7, "as gcpo-script"),
                "window.kind": (
                    "fixed",
                    "Flow-GRPO's authors: in bf16, log-densities of low-noise steps are the least "
                    "exact, and FLUX trains better on high-noise steps alone",
                ),
                "window.start": (0, "from pure noise on"),
                "window.chunks": (
                    1,
                    "the first two of 8 steps, as the first chunk of the race",
                ),
                "noise": (
                    "window",
                    "MixGRPO: no noise after the window, so the reward judges cleaner pictures",
                ),
                "chunk_fraction": (1.0, "one chunk in the window"),
                "iterations": (150, "as gcpo-v3"),
                "prompts_per_iteration": (4, "48 pictures an iteration, two groups an update"),
                "group_size": (12, "as gcpo-script; users of Flow-GRPO saw small groups fail"),
                "share_initial_noise": (True, "as gcpo-script"),
                "batch_size": (
                    1,
                    "fits the smallest card, and rollout and training see the same shape, so that "
                    "ratios start at 1 in bf16",
                ),
                "advantage.scale": ("group-std", "as gcpo-script"),
                "advantage.centre": ("mean", "as gcpo-script"),
                "advantage.clamp": (5.0, "as every source"),
                "advantage.combine": (
                    "advantages",
                    "GDPO: with several rewards the easiest would win; nothing for one reward",
                ),
                "objective.ratio": ("chunk", "as gcpo-script"),
                "objective.clip_low": (5e-5, "as gcpo-script, which has 720 x 720 pictures"),
                "objective.clip_high": (5e-5, "as gcpo-script, which has 720 x 720 pictures"),
                "objective.kl_ref": (
                    3e-3,
                    "benchmarks/race: without a leash pictures spoil in few steps; Flow-Factory "
                    "has 1e-3 for velocities",
                ),
                "objective.kl_type": ("velocity", "Flow-Factory's kl_type v-based"),
                "optimizer.learning_rate": (
                    1e-4,
                    "LoRA scripts take 3e-4 for updates of 96 pictures and more; here they have 24",
                ),
                "optimizer.max_grad_norm": (1.0, "every LoRA script; 0.01 is for whole models"),
                "optimizer.weight_decay": (1e-4, "as every source"),
                "optimizer.beta1": (0.9, "as every source"),
                "optimizer.beta2": (
                    0.99,
                    "a memory of 100 updates; the 1000 of 0.999 is longer than the run",
                ),
                "optimizer.eps": (
                    1e-10,
                    "gradients of log-densities averaged over dimensions are tiny",
                ),
                "optimizer.updates_per_rollout": (2, "as gcpo-script"),
                "optimizer.epochs": (1, "as every source"),
                "optimizer.warmup_updates": (
                    10,
                    "Adam's first steps are as large as later ones",
                ),
                "optimizer.ema_decay": (
                    0.924,
                    "as flow-grpo, for each update; it averages the last tenth of the updates, at "
                    "most 13",
                ),
                "lora.rank": (64, "as flow-grpo"),
                "lora.alpha": (128.0, "as flow-grpo"),
                "lora.targets": ("attention+mlp", "as flow-grpo"),
            },
        )
    ),
    departures=(
        "Nothing to depart from: nobody published this combination, and it has been measured only "
        "on the tiny FLUX (benchmarks/race, first-chunk).",
        "On the model's side: 1024 x 1024 if that is what you will draw (training at 720 has been "
        "seen to leave grids at 1024), 512 x 512 to save time; guidance 3.5; no VAE tiling.",
        "Watch a reward that you do not train on, and stop when it falls.",
    ),
    shorter_runs="With fewer iterations the average keeps 0.9 of what was learned if weights "
    "grow evenly (0.96 after 150), and the learning rate still rises over the first 5.",
)
