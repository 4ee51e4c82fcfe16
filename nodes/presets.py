"""The node that gives a published recipe, wired into Train LoRA."""

from __future__ import annotations

import torch
from comfy_api.latest import io

from ..chunk_grpo_core.method.dynamics import DynamicsCurve
from ..chunk_grpo_core.method.plan_text import needs_curve
from ..chunk_grpo_core.presets import PRESETS, Preset, preset_config, preset_values
from ..chunk_grpo_core.presets.recipe import shown
from ..chunk_grpo_core.train.config import TrainConfig
from .bridge.sampler import flow_sde_sampler
from .patch import PRESET
from .setting_inputs import KEEP
from .types import CATEGORY, CurveSocket, PlanSocket, SettingsSocket
from .validation import choice

__all__ = ["GRPOPreset"]


class GRPOPreset(io.ComfyNode):
    """Name of a preset -> all that Train LoRA needs of it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """See ComfyUI's V3 node interface."""
        return io.Schema(
            node_id="ChunkGRPO_GRPOPreset",
            display_name="GRPO Preset",
            category=CATEGORY,
            description="A published recipe, every value with its source. Connect the outputs to "
            "the inputs of Train LoRA; what you leave unconnected is yours.",
            inputs=[
                io.Combo.Input(
                    "preset",
                    options=list(PRESETS),
                    default=next(iter(PRESETS)),
                    tooltip="quick: ours, the forward form on few-step rollouts; start here. "
                    "safe-lora: ours, Chunk-GRPO for a LoRA on one GPU. few-step: ours, a ratio "
                    "for every step. gcpo-script and gcpo-v3: Chunk-GRPO as released and as in "
                    "the paper (arXiv 2510.21583). flow-grpo, dance-grpo, mix-grpo: step-level "
                    "methods. All but the first three were made for 8 to 32 GPUs, and most for "
                    "whole models: read the text output.",
                ),
                io.Int.Input(
                    "batch_size",
                    default=KEEP,
                    min=KEEP,
                    max=256,
                    tooltip="Pictures in one call of the model. 0: a whole group at once. When "
                    "memory runs out it is halved; the method stays the same.\n"
                    "-1: as the preset; 1 for safe-lora, a whole group for the others.",
                ),
                CurveSocket.Input(
                    "curve",
                    optional=True,
                    tooltip="Only for gcpo-v3, whose plan is read off a curve: from Analyze "
                    "Temporal Dynamics, measured with Flow SDE Sampler (flow, 0.7) and Shifted "
                    "Sigmas (17, 3). The others have their own plan and do not use it.",
                ),
            ],
            outputs=[
                SettingsSocket.Output(
                    "settings",
                    display_name="settings",
                    tooltip="All values of the preset, for Train LoRA; or for a settings node, "
                    "which changes what you set there.",
                ),
                io.Sampler.Output(
                    "sampler", display_name="sampler", tooltip="Rule and eta of the preset."
                ),
                io.Sigmas.Output(
                    "sigmas", display_name="sigmas", tooltip="Noise levels of the preset."
                ),
                PlanSocket.Output(
                    "plan",
                    display_name="plan",
                    tooltip="Chunks of the preset; nothing of quick, which has none.",
                ),
                io.Float.Output(
                    "learning_rate",
                    display_name="learning_rate",
                    tooltip="For learning_rate. Values of sources that train whole models are too "
                    "small for a LoRA: see the text.",
                ),
                io.Int.Output("lora_rank", display_name="lora_rank", tooltip="For rank."),
                io.Float.Output("lora_alpha", display_name="lora_alpha", tooltip="For alpha."),
                io.Int.Output(
                    "iterations",
                    display_name="iterations",
                    tooltip="For iterations; leave it unconnected for a first try.",
                ),
                io.Int.Output(
                    "prompts_per_iteration",
                    display_name="prompts_per_iteration",
                    tooltip="For prompts_per_iteration: what the source's GPUs do together. Fewer "
                    "take less time and make noisier updates.",
                ),
                io.Int.Output(
                    "group_size",
                    display_name="group_size",
                    tooltip="For group_size of Train LoRA.",
                ),
                io.String.Output(
                    "text",
                    display_name="text",
                    tooltip="Every value with its source, and what differs from it; for Preview "
                    "Any.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls, preset: str, batch_size: int, curve: DynamicsCurve | None = None
    ) -> io.NodeOutput:
        """Build the run and take it apart into sockets."""
        choice("preset", preset)
        overrides = {} if batch_size == KEEP else {"batch_size": batch_size or None}
        if preset in PRESETS and curve is None:
            _check_no_curve_needed(PRESETS[preset])
        config = preset_config(preset, curve=curve, **overrides)
        patch = {PRESET: preset, **preset_values(preset), **overrides}
        return io.NodeOutput(
            {**patch, "grid": config.grid, "plan": config.plan},
            flow_sde_sampler(config.sde),
            torch.tensor(config.grid.sigmas),
            config.plan,
            config.optimizer.learning_rate,
            config.lora.rank,
            config.lora.alpha,
            config.iterations,
            config.prompts_per_iteration,
            config.group_size,
            preset_text(PRESETS[preset], config),
        )


def _check_no_curve_needed(preset: Preset) -> None:
    stated = {setting.key: setting for setting in preset.values}
    if needs_curve(str(stated["plan"].value or "")):
        raise ValueError(
            f"the plan of {preset.name} is read off a curve, but no curve is connected; measure it "
            "with Roll Out Trajectories and Analyze Temporal Dynamics, with a Flow SDE Sampler of "
            f"rule {stated['sde.rule'].value} and eta {shown(stated['sde.eta'].value)}, and sigmas "
            f"of {shown(stated['grid'].value)} ({stated['grid'].source})"
        )


def preset_text(preset: Preset, config: TrainConfig) -> str:
    """List every value of a run with its source, and what departs from the source, in Markdown.

    Args:
        preset: Where the run comes from.
        config: The run, with the values of the preset or others.
    """
    values = config.flat()
    sizes = config.plan.sizes if config.plan else ()
    values |= {"grid": config.grid, "plan": ", ".join(map(str, sizes))}
    lines = [f"{preset.name}: {preset.title}", ""]
    for setting in preset.values:
        value, stated = shown(values[setting.key]), shown(setting.value)
        preset_value = "" if value == stated else f"; the preset says {stated}"
        lines.append(f"- {setting.key} = {value}   [{setting.source}{preset_value}]")
    stated_keys = {setting.key for setting in preset.values} | {"seed"}
    lines += ["", "What the preset does not say:", ""]
    lines += [f"- {key} = {shown(v)}" for key, v in values.items() if key not in stated_keys]
    lines += ["", "What is different here, or left to you:", ""]
    lines += [f"- {note}" for note in preset.notes]
    return "\n".join(lines)
