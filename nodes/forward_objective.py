"""The node that trains with the forward form: any sampler, no plan, noised finished pictures."""

from __future__ import annotations

from comfy_api.latest import io

from .setting_inputs import SettingInput, inputs_of
from .settings_node import SettingsNode
from .types import BUILD_ON, CATEGORY, SettingsSocket, settings_outputs

__all__ = ["ForwardObjective"]

_SETTINGS = (
    SettingInput(
        "objective",
        "forward.objective",
        "awm: advantage-weighted matching (arXiv 2509.25050). nft: DiffusionNFT (2509.16117), held "
        "to the policy that sampled. elbo: a clipped ratio of likelihood estimates. With one "
        "update for each rollout the three are the same.",
    ),
    SettingInput(
        "times",
        "forward.times",
        "At how many noise levels each picture is trained. Two to four; each costs a pass with "
        "gradients.",
    ),
    SettingInput(
        "kl_ref",
        "forward.kl_ref",
        "Leash: weight of the squared distance of the velocity to the base model's. 0.3 keeps "
        "pictures clean; raise it when velocity_norm passes 1.1 or pictures spoil. 0: off.",
        step=0.01,
    ),
    SettingInput(
        "norm_guard",
        "forward.norm_guard",
        "Weight of what the velocity is longer than the base model's (NormGuard, arXiv "
        "2606.27771). 0: off.",
        step=0.01,
    ),
    SettingInput(
        "time_distribution",
        "forward.time_distribution",
        "Which levels. grid: those of sigmas, so that the model is trained where it is used. "
        "uniform: anywhere, evenly. logit-normal: mostly in the middle.",
        is_rare=True,
    ),
    SettingInput(
        "weight",
        "forward.weight",
        "How much a level counts. equal: all alike. x0: by the square of the level. adaptive: "
        "DiffusionNFT's, by the level over the size of the error.",
        is_rare=True,
    ),
    SettingInput(
        "share_times",
        "forward.share_times",
        "All pictures of a group get the same levels and the same noise.",
        is_rare=True,
    ),
    SettingInput(
        "rank_steps",
        "forward.rank_steps",
        "Steps of the pictures that are scored; 0: all of them. With fewer, a large group is "
        "sampled cheaply, and the best and worst that advantage_keep leaves are drawn again with "
        "all steps.",
        is_rare=True,
    ),
    SettingInput(
        "beta",
        "forward.beta",
        "Only for nft: pull back to the policy that sampled.",
        step=0.01,
        is_rare=True,
    ),
    SettingInput(
        "clip",
        "forward.clip",
        "Only for elbo: how far the ratio may move from 1.",
        step=1e-7,
        is_rare=True,
    ),
    SettingInput(
        "old",
        "forward.old",
        "Only for nft and elbo: the policy that samples and is compared with. rollout: the newest "
        "weights. average: a slow average of them.",
        is_rare=True,
    ),
    SettingInput(
        "old_decay",
        "forward.old_decay",
        "Only for old average: part of the average that each iteration keeps.",
        step=0.01,
        is_rare=True,
    ),
)


class ForwardObjective(SettingsNode):
    """Settings -> settings of the algorithm ``forward``."""

    SETTINGS = _SETTINGS
    ALWAYS = {"algorithm": "forward", "share_initial_noise": False}
    LEFT_OUT = (
        "plan",
        "objective.",
        "window.",
        "noise",
        "ode_solver",
        "chunk_fraction",
        "optimizer.recompute_log_p",
    )

    @classmethod
    def define_schema(cls) -> io.Schema:
        """See ComfyUI's V3 node interface."""
        return io.Schema(
            node_id="ChunkGRPO_ForwardObjective",
            display_name="Forward Objective",
            category=CATEGORY,
            description="Train on finished pictures instead of steps: Train LoRA then takes any "
            "sampler, with as few steps as you use, and needs no plan. Settings that come in for "
            "chunks of steps alone are left out.",
            inputs=[
                *inputs_of(_SETTINGS),
                SettingsSocket.Input("settings", optional=True, tooltip=BUILD_ON),
            ],
            outputs=[*settings_outputs()],
            is_output_node=True,
        )
