"""The node that says what a training optimises: ratio, trust region, penalties, advantages."""

from __future__ import annotations

from comfy_api.latest import io

from .setting_inputs import SettingInput, inputs_of
from .settings_node import SettingsNode
from .types import BUILD_ON, CATEGORY, SettingsSocket, settings_outputs

__all__ = ["GRPOObjective"]

_SETTINGS = (
    SettingInput(
        "ratio",
        "objective.ratio",
        "Whether the steps of a picture are judged together or each by itself.\n"
        "chunk: all steps of a chunk share one ratio and one clip (arXiv 2510.21583, Eq. 15). "
        "step: each step has its own, as in Flow-GRPO; for comparisons.",
        is_rare=True,
    ),
    SettingInput(
        "trust_region",
        "objective.trust_region",
        "What keeps an update small. clip: PPO's clip of the ratio, as in all presets. kl-mask: no "
        "clip; a sample is held back once its exact KL passes kl_threshold (Flow-DPPO, arXiv "
        "2606.11025).",
        is_rare=True,
    ),
    SettingInput(
        "kl_threshold",
        "objective.kl_threshold",
        "Only for kl-mask: largest KL per latent dimension. 0.00001 in Flow-DPPO. Lower it if "
        "pictures break, raise it if nothing is learnt.",
        step=1e-7,
        is_rare=True,
    ),
    SettingInput(
        "clip_low",
        "objective.clip_low",
        "How much less likely one update may make a picture.\n"
        "How far a ratio may fall below 1. Set it for an asymmetric clip, or to 0.000002 to "
        "0.000004 with ratio_norm.",
        step=1e-7,
    ),
    SettingInput(
        "clip_high",
        "objective.clip_high",
        "How much likelier one update may make a picture.\n"
        "How far a ratio may rise above 1. More than clip_low lets rare good samples gain weight.",
        step=1e-7,
    ),
    SettingInput(
        "ratio_norm",
        "objective.ratio_norm",
        "Let the limits of an update hold for all steps alike.\n"
        "Give the log-ratios of all steps mean 0 and the same spread (GRPO-Guard, arXiv "
        "2510.22319), so that the clip holds late steps, too. They get narrower: clip at 0.000002 "
        "to 0.000004. Try it against reward hacking.",
    ),
    SettingInput(
        "step_weights",
        "objective.step_weights",
        "How much each step counts. equal: the paper's. guard: 1 / abs(dt) (GRPO-Guard), more for "
        "the short steps. tempflow: the std of the step's noise (TempFlow-GRPO, arXiv 2508.04324), "
        "more for early steps.",
        is_rare=True,
    ),
    SettingInput(
        "kl_ref",
        "objective.kl_ref",
        "Pull towards the base model: weight of the distance that kl_type names. With velocity "
        "0.001 (Flow-Factory's advice, as in safe-lora) against reward hacking, more if pictures "
        "still degrade; costs one more forward pass. 0: off.",
        step=1e-5,
    ),
    SettingInput(
        "kl_type",
        "objective.kl_type",
        "What kl_ref weighs. velocity: mean (v - v_base)^2, all steps alike. flow-grpo: the KL "
        "term of Flow-GRPO's code, 0.01 to 0.04 there. exact: the KL of a step per latent "
        "dimension (Eq. 14 of the paper). The last two hold late steps much tighter than early "
        "ones.",
        is_rare=True,
    ),
    SettingInput(
        "kl_old",
        "objective.kl_old",
        "Pull towards the model as it was when it drew the pictures.\n"
        "Pull towards the policy that made the rollout: weight of the exact KL per latent "
        "dimension. Acts only from the second update of a rollout on, and keeps one more latent "
        "for each step in memory. 0: off.",
        step=1e-5,
        is_rare=True,
    ),
    SettingInput(
        "advantage_scale",
        "advantage.scale",
        "What scores minus their centre are divided by. group-std: the std of the group (Eq. 4). "
        "global-std: that of the iteration (Flow-GRPO), so that groups which differ little count "
        "little. none: nothing (Dr. GRPO).",
    ),
    SettingInput(
        "advantage_centre",
        "advantage.centre",
        "mean: the paper's. median: as many samples are pushed as pulled; for rewards with a few "
        "extreme scores (use_half_half_adv of the official code).",
        is_rare=True,
    ),
    SettingInput(
        "advantage_keep",
        "advantage.keep",
        "Train only this many best and this many worst pictures of a group (DanceGRPO's "
        "best-of-N); at most half of group_size. Saves time with large groups, if there is no KL "
        "penalty. 0: all.",
        is_rare=True,
    ),
    SettingInput(
        "advantage_combine",
        "advantage.combine",
        "For several rewards. rewards: add them up by weight, then compare. advantages: compare "
        "each on its own, then add up (GDPO, arXiv 2601.05242), so that none wins by its scale. "
        "Changes nothing for one reward.",
    ),
)


class GRPOObjective(SettingsNode):
    """Settings -> settings with another objective and other advantages."""

    SETTINGS = _SETTINGS

    @classmethod
    def define_schema(cls) -> io.Schema:
        """See ComfyUI's V3 node interface."""
        return io.Schema(
            node_id="ChunkGRPO_GRPOObjective",
            display_name="GRPO Objective",
            category=CATEGORY,
            description="What a training optimises: ratio and clip, penalties that keep the LoRA "
            "near the base model, and how scores become advantages. What you do not set stays as "
            "it comes in.",
            inputs=[
                *inputs_of(_SETTINGS),
                SettingsSocket.Input("settings", optional=True, tooltip=BUILD_ON),
            ],
            outputs=[*settings_outputs()],
            is_output_node=True,
        )
