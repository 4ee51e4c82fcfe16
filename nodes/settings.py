"""The node with settings that most trainings can leave at their defaults."""

from __future__ import annotations

from comfy_api.latest import io

from ..chunk_grpo_core.lora.targets import TARGET_PRESETS, target_pattern
from .setting_inputs import SettingInput, inputs_of
from .settings_node import SettingsNode
from .types import BUILD_ON, CATEGORY, SettingsSocket, settings_outputs
from .validation import verdict

__all__ = ["GRPOSettings"]

_SETTINGS = (
    SettingInput(
        "clip",
        "objective.clip_low",
        "How far one update may change what the model draws.\n"
        "How far the probability ratio of a chunk may move from 1 before its gradient is cut. "
        "Ratios are means over all latent dimensions, so this is tiny: 0.00005 in the paper.",
        also="objective.clip_high",
        step=1e-7,
    ),
    SettingInput(
        "advantage_clamp",
        "advantage.clamp",
        "How much a single picture may count. Its advantage is how much better it is "
        "than the others of its prompt.\n"
        "Largest advantage of one sample.",
        step=0.1,
        is_rare=True,
    ),
    SettingInput(
        "chunk_fraction",
        "chunk_fraction",
        "How many of a picture's steps are trained on. A chunk is some neighbouring "
        "steps that are judged together.\n"
        "Part of the chunks each sample trains on. 0.5 in the paper; 1 costs twice the time per "
        "update.",
        step=0.01,
    ),
    SettingInput(
        "updates_per_rollout",
        "optimizer.updates_per_rollout",
        "Optimiser steps per iteration; the prompts are shared out among them. Not more than "
        "prompts_per_iteration.",
        is_rare=True,
    ),
    SettingInput(
        "epochs",
        "optimizer.epochs",
        "How often the same pictures are trained on. A rollout is one batch of new "
        "pictures.\n"
        "How often each rollout is trained on. More reuses pictures, but moves away from the "
        "policy that made them.",
        is_rare=True,
    ),
    SettingInput(
        "weight_decay",
        "optimizer.weight_decay",
        "AdamW weight decay.",
        step=1e-5,
        is_rare=True,
    ),
    SettingInput(
        "max_grad_norm",
        "optimizer.max_grad_norm",
        "Longer gradients are scaled down to this length.",
        step=0.001,
        is_rare=True,
    ),
    SettingInput(
        "lora_targets",
        "lora.targets",
        f"Layers that get a LoRA: {', '.join(TARGET_PRESETS)}, or a regular expression that "
        "matches whole module names.",
    ),
    SettingInput(
        "share_initial_noise",
        "share_initial_noise",
        "Start all pictures of a group from the same noise, so that they differ only by what the "
        "sampler added.",
        is_rare=True,
    ),
    SettingInput(
        "batch_size",
        "batch_size",
        "Pictures in one call of the model. 0: a whole group at once. When memory runs out, it is "
        "halved and the call is made again; the result is the same up to rounding.",
    ),
    SettingInput(
        "checkpoint_every",
        "checkpoint_every",
        "Iterations between checkpoints; a stopped run goes on from the last.",
        is_rare=True,
    ),
    SettingInput(
        "rs_lora",
        "lora.rs",
        "Rank-stabilised LoRA: its scale is alpha / sqrt(rank), so a high rank does not weaken it. "
        "The saved file carries the scale.",
        is_rare=True,
    ),
    SettingInput(
        "warmup_updates",
        "optimizer.warmup_updates",
        "Updates over which the learning rate rises to its value. 10 to 50 if the first iterations "
        "break pictures; 0 in the sources.",
        is_rare=True,
    ),
    SettingInput(
        "ema_decay",
        "optimizer.ema_decay",
        "Above 0 the LoRA that you get is a moving average: over about 1 / (1 - ema_decay) "
        "updates, fewer early in a run. 0 gives that of the last update. Flow-GRPO and DanceGRPO "
        "average; use it in runs of some hundred updates whose reward jumps.",
        step=1e-4,
        is_rare=True,
    ),
    SettingInput(
        "recompute_log_p",
        "optimizer.recompute_log_p",
        "Compute the old probabilities again with the batch shapes of training, for one more "
        "forward pass. auto: where shapes may change numbers (on a GPU, with more than one update "
        "per rollout). on if the summary's ratio error comes near clip.",
        is_rare=True,
    ),
    SettingInput(
        "self_test",
        "self_test",
        "Before the first update, compare gradients with measured changes, and a few pictures and "
        "scores with new ones; stop if they differ. Some models and patches give wrong gradients "
        "without an error. Costs a few calls of the model, once.",
        is_rare=True,
    ),
    SettingInput(
        "optimizer",
        "optimizer.name",
        "adamw8bit keeps AdamW's moments in 8 bits: 2 bytes for each number of the LoRA instead "
        "of 8. Needs the package bitsandbytes; not tested on a GPU.",
    ),
    SettingInput(
        "activation_offloading",
        "model.activation_offloading",
        "During updates, keep what goes into the blocks in system memory until it is needed. Same "
        "gradients, less GPU memory, some time. Try it when batch_size 1 does not fit.",
    ),
    SettingInput(
        "evaluate_every",
        "evaluate_every",
        "How often the gain is measured while it trains, on prompts that it never "
        "trains on (held out).\n"
        "Iterations between measurements on the held-out prompts, for the monitor and the log. "
        "Each takes as long as the one before training. 0: before and after only.",
    ),
    SettingInput(
        "update_batch_size",
        "update_batch_size",
        "Pictures in one call of the model during updates, which need much more memory than "
        "sampling does. 0: as batch_size. The result is the same up to rounding.",
        is_rare=True,
    ),
    SettingInput(
        "stop_on",
        "run.stop_on",
        "Alarms that stop the run with a checkpoint, with commas between them: no-signal (no "
        "picture is better than the others), collapse (no gradient, or all pictures alike), "
        "divergence (numbers explode), all-masked (the reward gives no scores), velocity-norm "
        "(pictures will spoil), reward-fell (on the held-out prompts, see evaluate_every; the run "
        "ends with the weights from before). none: only show them.",
        is_rare=True,
    ),
    SettingInput(
        "reward_retries",
        "run.reward_retries",
        "When the reward scores no picture at all, as when its server is down: how often the same "
        "pictures are scored again before the run stops. It can be resumed.",
        is_rare=True,
    ),
    SettingInput(
        "reward_wait",
        "run.reward_wait",
        "Seconds to wait before that. Each further wait is twice as long: 6 waits from 5 seconds "
        "are 5 minutes.",
        is_rare=True,
    ),
    SettingInput(
        "ask_every",
        "ask.every",
        "For a training on your taste: iterations after which it stops, shows you its newest "
        "pictures, and fits the taste again to all that you clicked. 0: it never asks.",
        is_rare=True,
    ),
    SettingInput(
        "ask_clicks",
        "ask.clicks",
        "Clicks that it asks for. You may go on with fewer.",
        is_rare=True,
    ),
    SettingInput(
        "ask_pictures",
        "ask.pictures",
        "Pictures that it shows, four of each prompt.",
        is_rare=True,
    ),
    SettingInput(
        "ask_kind",
        "ask.kind",
        "How they are shown first. You may click otherwise.",
        is_rare=True,
    ),
    SettingInput(
        "ask_when_alarm",
        "ask.when_alarm",
        "Also ask when an alarm speaks that does not stop the run.",
        is_rare=True,
    ),
)


class GRPOSettings(SettingsNode):
    """Settings -> settings with other values."""

    SETTINGS = _SETTINGS

    @classmethod
    def define_schema(cls) -> io.Schema:
        """See ComfyUI's V3 node interface."""
        return io.Schema(
            node_id="ChunkGRPO_GRPOSettings",
            display_name="GRPO Settings",
            category=CATEGORY,
            description="Settings that most trainings can leave at their defaults. What you do not "
            "set stays as it comes in.",
            inputs=[
                *inputs_of(_SETTINGS),
                SettingsSocket.Input("settings", optional=True, tooltip=BUILD_ON),
            ],
            outputs=[*settings_outputs()],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, lora_targets: str | None = "") -> bool | str:
        """Refuse a broken expression before anything runs."""
        return verdict(target_pattern, lora_targets) if lora_targets else True
