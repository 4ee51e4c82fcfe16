"""The node that says what a training optimises: ratio, trust region, penalties, advantages."""

from __future__ import annotations

from dataclasses import replace

from comfy_api.latest import io

from ..chunk_grpo_core.method.advantage import CENTRES, COMBINATIONS, SCALES, AdvantageConfig
from ..chunk_grpo_core.method.objective import RATIOS, STEP_WEIGHTS, TRUST_REGIONS, ObjectiveConfig
from .types import BUILD_ON, CATEGORY, Settings, SettingsSocket
from .validation import verdict

__all__ = ["GRPOObjective"]


class GRPOObjective(io.ComfyNode):
    """Settings -> settings with another objective and other advantages."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """See ComfyUI's V3 node interface."""
        objective, advantage = ObjectiveConfig(), AdvantageConfig()
        return io.Schema(
            node_id="ChunkGRPO_GRPOObjective",
            display_name="GRPO Objective",
            category=CATEGORY,
            description="What a training optimises: ratio and clip, penalties that keep the LoRA "
            "near the base model, and how scores become advantages.",
            inputs=[
                io.Combo.Input(
                    "ratio",
                    options=list(RATIOS),
                    default=objective.ratio,
                    tooltip="chunk: all steps of a chunk share one ratio and one clip (arXiv "
                    "2510.21583, Eq. 15). step: each step has its own, as in Flow-GRPO; for "
                    "comparisons.",
                ),
                io.Combo.Input(
                    "trust_region",
                    options=list(TRUST_REGIONS),
                    default=objective.trust_region,
                    tooltip="What keeps an update small. clip: PPO's clip of the ratio, as in all "
                    "presets. kl-mask: no clip; a sample is held back once its exact KL passes "
                    "kl_threshold (Flow-DPPO, arXiv 2606.11025).",
                ),
                io.Float.Input(
                    "kl_threshold",
                    default=objective.kl_threshold,
                    min=1e-7,
                    max=1.0,
                    step=1e-7,
                    round=1e-7,
                    tooltip="Only for kl-mask: largest KL per latent dimension. 0.00001 in "
                    "Flow-DPPO. Lower it if pictures break, raise it if nothing is learnt.",
                ),
                io.Float.Input(
                    "clip_low",
                    default=0.0,
                    min=0.0,
                    max=0.5,
                    step=1e-7,
                    round=1e-7,
                    tooltip="How far a ratio may fall below 1. 0 keeps the clip of the settings "
                    "that come in (without any: 0.00005, the paper's). Set it for an asymmetric "
                    "clip, or to 0.000002 to 0.000004 with ratio_norm.",
                ),
                io.Float.Input(
                    "clip_high",
                    default=0.0,
                    min=0.0,
                    max=0.5,
                    step=1e-7,
                    round=1e-7,
                    tooltip="How far a ratio may rise above 1. 0 keeps the clip of the settings "
                    "that come in. More than clip_low lets rare good samples gain weight.",
                ),
                io.Boolean.Input(
                    "ratio_norm",
                    default=objective.ratio_norm,
                    tooltip="Give the log-ratios of all steps mean 0 and the same spread "
                    "(GRPO-Guard, arXiv 2510.22319), so that the clip holds late steps, too. They "
                    "get narrower: clip at 0.000002 to 0.000004. Try it against reward hacking.",
                ),
                io.Combo.Input(
                    "step_weights",
                    options=list(STEP_WEIGHTS),
                    default=objective.step_weights,
                    tooltip="How much each step counts. equal: the paper's. guard: 1 / abs(dt) "
                    "(GRPO-Guard), more for the short steps. tempflow: the std of the step's noise "
                    "(TempFlow-GRPO, arXiv 2508.04324), more for early steps.",
                ),
                io.Float.Input(
                    "kl_ref",
                    default=objective.kl_ref,
                    min=0.0,
                    max=100.0,
                    step=1e-5,
                    round=1e-5,
                    tooltip="Pull towards the base model: weight of mean (v - v_base)^2. 0.001 "
                    "(Flow-Factory's advice, as in safe-lora) against reward hacking, more if "
                    "pictures still degrade; costs one more forward pass. 0: off.",
                ),
                io.Float.Input(
                    "kl_ref_k3",
                    default=objective.kl_ref_k3,
                    min=0.0,
                    max=100.0,
                    step=1e-5,
                    round=1e-5,
                    tooltip="The KL term of Eq. 14 of the paper to the base model, estimated from "
                    "the ratio (k3). Its size depends on the noise of the step: prefer kl_ref, "
                    "unless you repeat a paper. 0: off.",
                ),
                io.Float.Input(
                    "kl_old",
                    default=objective.kl_old,
                    min=0.0,
                    max=100.0,
                    step=1e-5,
                    round=1e-5,
                    tooltip="Pull towards the policy that made the rollout (kl_coeff of the "
                    "official code, 0 there). Acts only from the second update of a rollout on. "
                    "0: off.",
                ),
                io.Combo.Input(
                    "advantage_scale",
                    options=list(SCALES),
                    default=advantage.scale,
                    tooltip="What scores minus their centre are divided by. group-std: the std of "
                    "the group (Eq. 4). global-std: that of the iteration (Flow-GRPO), so that "
                    "groups which differ little count little. none: nothing (Dr. GRPO).",
                ),
                io.Combo.Input(
                    "advantage_centre",
                    options=list(CENTRES),
                    default=advantage.centre,
                    tooltip="mean: the paper's. median: as many samples are pushed as pulled; for "
                    "rewards with a few extreme scores (use_half_half_adv of the official code).",
                ),
                io.Int.Input(
                    "advantage_keep",
                    default=advantage.keep or 0,
                    min=0,
                    max=128,
                    tooltip="Train only this many best and this many worst pictures of a group "
                    "(DanceGRPO's best-of-N); at most half of group_size. Saves time with large "
                    "groups, if there is no KL penalty. 0: all.",
                ),
                io.Combo.Input(
                    "advantage_combine",
                    options=list(COMBINATIONS),
                    default=advantage.combine,
                    tooltip="For several rewards. rewards: add them up by weight, then compare. "
                    "advantages: compare each on its own, then add up (GDPO, arXiv 2601.05242), so "
                    "that none wins by its scale. Changes nothing for one reward.",
                ),
                SettingsSocket.Input("settings", optional=True, tooltip=BUILD_ON),
            ],
            outputs=[
                SettingsSocket.Output(
                    "changed",  # ids of inputs and outputs may not be equal
                    display_name="settings",
                    tooltip="For Train LoRA (Chunk-GRPO), or the next settings node.",
                )
            ],
        )

    @classmethod
    def validate_inputs(
        cls, advantage_scale: str | None, advantage_combine: str | None
    ) -> bool | str:
        """Refuse two choices that contradict each other before anything runs."""
        return verdict(
            lambda scale, combine: AdvantageConfig(scale=scale, combine=combine),
            advantage_scale,
            advantage_combine,
        )

    @classmethod
    def execute(
        cls,
        ratio: str,
        trust_region: str,
        kl_threshold: float,
        clip_low: float,
        clip_high: float,
        ratio_norm: bool,
        step_weights: str,
        kl_ref: float,
        kl_ref_k3: float,
        kl_old: float,
        advantage_scale: str,
        advantage_centre: str,
        advantage_keep: int,
        advantage_combine: str,
        settings: Settings | None = None,
    ) -> io.NodeOutput:
        """Replace objective and advantages, but for the clamp."""
        base = settings or Settings()
        objective = ObjectiveConfig(
            ratio=ratio,
            trust_region=trust_region,
            kl_threshold=kl_threshold,
            clip_low=clip_low or base.objective.clip_low,
            clip_high=clip_high or base.objective.clip_high,
            ratio_norm=ratio_norm,
            step_weights=step_weights,
            kl_ref=kl_ref,
            kl_ref_k3=kl_ref_k3,
            kl_old=kl_old,
        )
        advantage = AdvantageConfig(
            clamp=base.advantage.clamp,
            scale=advantage_scale,
            centre=advantage_centre,
            keep=advantage_keep or None,
            combine=advantage_combine,
        )
        return io.NodeOutput(replace(base, objective=objective, advantage=advantage))
