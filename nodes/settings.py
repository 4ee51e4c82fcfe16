"""The node with the knobs most trainings leave as they are."""

from __future__ import annotations

from comfy_api.latest import io

from ..chunk_grpo_core.advantage import AdvantageConfig
from ..chunk_grpo_core.config import OptimizerConfig
from ..chunk_grpo_core.lora import TARGET_PRESETS, target_pattern
from ..chunk_grpo_core.objective import ObjectiveConfig
from .types import CATEGORY, Settings, SettingsSocket
from .validation import verdict

__all__ = ["GRPOSettings"]


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
                    step=1e-6,
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
                    round=1e-7,
                    tooltip="AdamW weight decay.",
                ),
                io.Float.Input(
                    "max_grad_norm",
                    default=optimizer.max_grad_norm,
                    min=1e-6,
                    max=100.0,
                    step=0.01,
                    round=1e-6,
                    tooltip="Longer gradients are scaled down to this length.",
                ),
                io.String.Input(
                    "lora_targets",
                    default=default.lora_targets,
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
                    tooltip="Pictures in one call of the model. 0 sends a whole group at once; "
                    "lower it when memory runs out. The result is the same up to rounding.",
                ),
                io.Int.Input(
                    "checkpoint_every",
                    default=default.checkpoint_every,
                    min=1,
                    max=1000,
                    tooltip="Iterations between checkpoints; a stopped run goes on from the last.",
                ),
                io.Boolean.Input(
                    "rs_lora",
                    default=default.rs_lora,
                    optional=True,
                    tooltip="Rank-stabilised LoRA: its scale is alpha / sqrt(rank), so a high rank "
                    "does not weaken it. The saved file carries the scale.",
                ),
            ],
            outputs=[
                SettingsSocket.Output(
                    "settings", display_name="settings", tooltip="For Train LoRA (Chunk-GRPO)."
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
        rs_lora: bool = Settings.rs_lora,
    ) -> io.NodeOutput:
        """Collect them."""
        return io.NodeOutput(
            Settings(
                advantage=AdvantageConfig(clamp=advantage_clamp),
                objective=ObjectiveConfig(clip_low=clip, clip_high=clip),
                optimizer=OptimizerConfig(
                    updates_per_rollout=updates_per_rollout,
                    epochs=epochs,
                    weight_decay=weight_decay,
                    max_grad_norm=max_grad_norm,
                ),
                lora_targets=lora_targets,
                rs_lora=rs_lora,
                chunk_fraction=chunk_fraction,
                share_initial_noise=share_initial_noise,
                batch_size=batch_size or None,
                checkpoint_every=checkpoint_every,
            )
        )
