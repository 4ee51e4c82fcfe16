"""The cheapest recipe that stayed clean in our race: the forward form on few-step rollouts."""

from __future__ import annotations

from ..method.schedule import shifted_grid
from .recipe import Preset, forward_form, settings

__all__ = ["QUICK"]

_RACE = "Ours, benchmarks/race"

QUICK = Preset(
    name="quick",
    title="Ours: the forward form on few-step rollouts, the cheapest recipe that stayed clean",
    values=forward_form(
        settings(
            _RACE,
            {
                "grid": (
                    shifted_grid(8, 3.0),
                    "few steps without noise: 5 for the tiny FLUX; Flow-Factory has 8 for "
                    "FLUX.1-dev and what a distilled model is made for (4 to 8) for others",
                ),
                "sde.rule": ("ode", "pictures as the model will draw them, and any solver"),
                "sde.eta": (0.7, "only the self-test takes noise"),
                "ode_solver": ("euler", "as every few-step model is sampled"),
                "share_initial_noise": (False, "without noise, only the start can differ"),
                "forward.objective": ("awm", "with nft and elbo it is one on the first update"),
                "forward.times": (2, "more times buy less than more updates"),
                "forward.time_distribution": ("grid", "the levels that the model is used at"),
                "forward.weight": ("equal", "the error of the velocity"),
                "forward.share_times": (False, "no gain was seen in sharing them"),
                "forward.kl_ref": (0.3, "without a leash pictures spoil; 1 learns more slowly"),
                "forward.norm_guard": (0.0, "the leash holds the norm, too"),
                "forward.old": ("rollout", "on-policy: an iteration has one update"),
                "iterations": (100, "an evening for a model of 6 billion parameters"),
                "prompts_per_iteration": (2, "24 pictures an iteration, all in one update"),
                "group_size": (12, "as gcpo-script"),
                "batch_size": (None, "as many as fit; halved where memory runs out"),
                "advantage.scale": ("group-std", "as every source"),
                "advantage.centre": ("mean", "as every source"),
                "advantage.clamp": (5.0, "as every source"),
                "advantage.combine": (
                    "advantages",
                    "GDPO: with several rewards the easiest would win; nothing for one reward",
                ),
                "optimizer.learning_rate": (
                    3e-4,
                    "Flow-Factory's for LoRAs; the tiny FLUX, with rank 16, took 2e-3",
                ),
                "optimizer.max_grad_norm": (1.0, "every LoRA script"),
                "optimizer.weight_decay": (1e-4, "as every source"),
                "optimizer.beta1": (0.9, "as every source"),
                "optimizer.beta2": (0.99, "a memory of 100 updates, as long as the run"),
                "optimizer.eps": (1e-10, "as safe-lora; gradients of means are small"),
                "optimizer.updates_per_rollout": (
                    1,
                    "as good as two updates of twice as many pictures, and always on-policy",
                ),
                "optimizer.epochs": (1, "as every source"),
                "optimizer.warmup_updates": (5, "Adam's first steps are as large as later ones"),
                "lora.rank": (64, "Flow-Factory's klein recipe"),
                "lora.alpha": (128.0, "Flow-Factory's klein recipe"),
                "lora.targets": ("attention+mlp", "as safe-lora"),
            },
        )
    ),
    departures=(
        "Measured on the tiny FLUX only (benchmarks/race): nobody has run it on a large model.",
        "On the model's side: 384 to 512 pixels, then, if you like, ten iterations at the size of "
        "use; cfg and steps as the model is used.",
        "Watch velocity_norm and a reward that you do not train on, and stop when it falls.",
    ),
    shorter_runs="Nothing: there is no average, and the learning rate rises over the first 5 "
    "iterations.",
)
