"""The node with the knobs most trainings leave as they are."""

from __future__ import annotations

from dataclasses import replace

from comfy_api.latest import io

from ..chunk_grpo_core.lora.adapter import TARGET_PRESETS, target_pattern
from ..chunk_grpo_core.train.config import OPTIMIZERS
from .types import BUILD_ON, CATEGORY, Settings, SettingsSocket
from .validation import verdict

__all__ = ["GRPOSettings"]

_RECOMPUTE = {"auto": None, "on": True, "off": False}


class GRPOSettings(io.ComfyNode):
    """The rarely touched knobs -> settings."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """See ComfyUI's V3 node interface."""
        default = Settings()
        optimizer, objective = default.optimizer, default.objective
        return io.Schema(
            node_id="ChunkGRPO_GRPOSettings",
            display_name="GRPO Settings",
            category=CATEGORY,
            description="Knobs most trainings leave as they are.",
            inputs=[
                io.Float.Input(
                    "clip",
                    default=objective.clip_low,
                    min=1e-7,
                    max=0.5,
                    step=1e-7,
                    round=1e-7,
                    tooltip="How far the probability ratio of a chunk may move from 1 before its "
                    "gradient is cut. Ratios are means over all latent dimensions, so this is "
                    "tiny: 0.00005 in the paper.",
                ),
                io.Float.Input(
                    "advantage_clamp",
                    default=default.advantage.clamp,
                    min=0.1,
                    max=100.0,
                    step=0.1,
                    tooltip="Largest advantage of one sample.",
                ),
                io.Float.Input(
                    "chunk_fraction",
                    default=default.chunk_fraction,
                    min=0.01,
                    max=1.0,
                    step=0.05,
                    tooltip="Part of the chunks each sample trains on. 0.5 in the paper; 1 costs "
                    "twice the time per update.",
                ),
                io.Int.Input(
                    "updates_per_rollout",
                    default=optimizer.updates_per_rollout,
                    min=1,
                    max=64,
                    tooltip="Optimiser steps per iteration; the prompts are shared out among them. "
                    "Not more than prompts_per_iteration.",
                ),
                io.Int.Input(
                    "epochs",
                    default=optimizer.epochs,
                    min=1,
                    max=16,
                    tooltip="How often each rollout is trained on. More reuses pictures, but moves "
                    "away from the policy that made them.",
                ),
                io.Float.Input(
                    "weight_decay",
                    default=optimizer.weight_decay,
                    min=0.0,
                    max=1.0,
                    step=1e-5,
                    round=1e-5,
                    tooltip="AdamW weight decay.",
                ),
                io.Float.Input(
                    "max_grad_norm",
                    default=optimizer.max_grad_norm,
                    min=0.001,
                    max=100.0,
                    step=0.001,
                    round=0.001,
                    tooltip="Longer gradients are scaled down to this length.",
                ),
                io.String.Input(
                    "lora_targets",
                    default=default.lora.targets,
                    tooltip=f"Layers that get a LoRA: {', '.join(TARGET_PRESETS)}, or a regular "
                    "expression that matches whole module names.",
                ),
                io.Boolean.Input(
                    "share_initial_noise",
                    default=default.share_initial_noise,
                    tooltip="Start all pictures of a group from the same noise, so that they "
                    "differ only by what the sampler added.",
                ),
                io.Int.Input(
                    "batch_size",
                    default=0,
                    min=0,
                    max=256,
                    tooltip="Pictures in one call of the model. 0: a whole group at once. When "
                    "memory runs out, it is halved and the call is made again; the result is the "
                    "same up to rounding.",
                ),
                io.Int.Input(
                    "checkpoint_every",
                    default=default.checkpoint_every,
                    min=1,
                    max=1000,
                    tooltip="Iterations between checkpoints; a stopped run goes on from the last.",
                ),
                # Optional, so that prompts saved before they existed still run.
                io.Boolean.Input(
                    "rs_lora",
                    default=default.lora.rs,
                    optional=True,
                    tooltip="Rank-stabilised LoRA: its scale is alpha / sqrt(rank), so a high rank "
                    "does not weaken it. The saved file carries the scale.",
                ),
                io.Int.Input(
                    "warmup_updates",
                    default=optimizer.warmup_updates,
                    min=0,
                    max=100_000,
                    optional=True,
                    tooltip="Updates over which the learning rate rises to its value. 10 to 50 if "
                    "the first iterations break pictures; 0 in the sources.",
                ),
                io.Float.Input(
                    "ema_decay",
                    default=optimizer.ema_decay or 0.0,
                    min=0.0,
                    max=0.9999,
                    step=1e-4,
                    round=1e-4,
                    optional=True,
                    tooltip="Above 0 the LoRA that you get is a moving average: over about "
                    "1 / (1 - ema_decay) updates, fewer early in a run. 0 gives that of the last "
                    "update. Flow-GRPO and DanceGRPO average; use it in runs of some hundred "
                    "updates whose reward jumps.",
                ),
                io.Combo.Input(
                    "recompute_log_p",
                    options=list(_RECOMPUTE),
                    default="auto",
                    optional=True,
                    tooltip="Compute the old probabilities again with the batch shapes of "
                    "training, for one more forward pass. auto: where shapes may change numbers "
                    "(on a GPU, with more than one update per rollout). on if the summary's ratio "
                    "error comes near clip.",
                ),
                io.Boolean.Input(
                    "self_test",
                    default=default.self_test,
                    optional=True,
                    tooltip="Before the first update, compare one gradient with a measured change, "
                    "and stop if they differ: some models and patches give wrong gradients without "
                    "an error. Costs a few calls of the model, once.",
                ),
                io.Combo.Input(
                    "optimizer",
                    options=list(OPTIMIZERS),
                    default=optimizer.name,
                    optional=True,
                    tooltip="adamw8bit keeps AdamW's moments in 8 bits: 2 bytes for each number of "
                    "the LoRA instead of 8. Needs the package bitsandbytes; not tested on a GPU.",
                ),
                io.Boolean.Input(
                    "activation_offloading",
                    default=default.activation_offloading,
                    optional=True,
                    tooltip="During updates, keep what goes into the blocks in system memory until "
                    "it is needed. Same gradients, less GPU memory, some time. Try it when "
                    "batch_size 1 does not fit.",
                ),
                io.Int.Input(
                    "evaluate_every",
                    default=default.evaluate_every,
                    min=0,
                    max=100_000,
                    optional=True,
                    tooltip="Iterations between measurements on the held-out prompts, for the "
                    "monitor and the log. Each takes as long as the one before training. 0: before "
                    "and after only.",
                ),
                io.Int.Input(
                    "update_batch_size",
                    default=default.update_batch_size or 0,
                    min=0,
                    max=256,
                    optional=True,
                    tooltip="Pictures in one call of the model during updates, which need much "
                    "more memory than sampling does. 0: as batch_size. The result is the same up "
                    "to rounding.",
                ),
                SettingsSocket.Input("settings", optional=True, tooltip=BUILD_ON),
            ],
            outputs=[
                SettingsSocket.Output(
                    "changed",  # ids of inputs and outputs may not be equal
                    display_name="settings",
                    tooltip="For Train LoRA (Chunk-GRPO).",
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, lora_targets: str | None) -> bool | str:
        """Refuse a broken expression before anything runs."""
        return verdict(target_pattern, lora_targets)

    @classmethod
    def execute(
        cls,
        clip: float,
        advantage_clamp: float,
        chunk_fraction: float,
        updates_per_rollout: int,
        epochs: int,
        weight_decay: float,
        max_grad_norm: float,
        lora_targets: str,
        share_initial_noise: bool,
        batch_size: int,
        checkpoint_every: int,
        rs_lora: bool = False,
        warmup_updates: int = 0,
        ema_decay: float = 0.0,
        recompute_log_p: str = "auto",
        self_test: bool = True,
        optimizer: str = "adamw",
        activation_offloading: bool = False,
        evaluate_every: int = 0,
        update_batch_size: int = 0,
        settings: Settings | None = None,
    ) -> io.NodeOutput:
        """Collect them."""
        if recompute_log_p not in _RECOMPUTE:
            raise ValueError(
                f"recompute_log_p is {recompute_log_p!r}; it must be one of {', '.join(_RECOMPUTE)}"
            )
        base = settings or Settings()
        return io.NodeOutput(
            replace(
                base,
                advantage=replace(base.advantage, clamp=advantage_clamp),
                objective=replace(base.objective, clip_low=clip, clip_high=clip),
                optimizer=replace(
                    base.optimizer,
                    name=optimizer,
                    updates_per_rollout=updates_per_rollout,
                    epochs=epochs,
                    weight_decay=weight_decay,
                    max_grad_norm=max_grad_norm,
                    warmup_updates=warmup_updates,
                    ema_decay=ema_decay or None,
                    recompute_log_p=_RECOMPUTE[recompute_log_p],
                ),
                lora=replace(base.lora, targets=lora_targets, rs=rs_lora),
                chunk_fraction=chunk_fraction,
                share_initial_noise=share_initial_noise,
                batch_size=batch_size or None,
                checkpoint_every=checkpoint_every,
                self_test=self_test,
                activation_offloading=activation_offloading,
                evaluate_every=evaluate_every,
                update_batch_size=update_batch_size or None,
            )
        )
