"""Chunk-level GRPO as its authors run it, and as their paper describes it.

References:
    GCPO: Principled RL for Flow Matching Emerges from the Chunk-level Policy Optimization (Luo et
    al., 2026), arXiv 2510.21583v3; github.com/xingzhejun/GCPO, ea6cc4d (June 2026).
"""

from __future__ import annotations

from ..method.schedule import shifted_grid
from .recipe import Preset, complete, settings

__all__ = ["GCPO_SCRIPT", "GCPO_V3"]

_LORA = settings(
    "Ours",
    {
        "lora.rank": (64, "the source trains the whole model; Flow-GRPO's size for FLUX"),
        "lora.alpha": (128.0, "as for the rank"),
        "lora.targets": ("attention+mlp", "as for the rank"),
    },
)
_OPTIMIZER = {
    "optimizer.beta1": (0.9, "AdamW(betas=(0.9, 0.999))"),
    "optimizer.beta2": (0.999, "AdamW(betas=(0.9, 0.999))"),
    "optimizer.eps": (1e-8, "AdamW(eps=1e-8)"),
    "optimizer.epochs": (1, "train_one_step walks through the samples once"),
}
_FULL_MODEL = (
    "The source trains all 12 B parameters of FLUX.1-dev with FSDP; learning_rate 1e-5 and "
    "max_grad_norm 0.01 belong to that. A LoRA moves little with them: DanceGRPO's LoRA script "
    "takes 3e-4 and 1.0."
)
_MODEL_SIDE = (
    "On the model's side the source has 720 x 720 pictures, guidance 3.5, bf16 autocast, VAE "
    "tiling in the rollout and HPSv3 as reward. Leave tiling off: its seams are learnt."
)
_SHORTER_RUNS = (
    "In a run of fewer iterations nothing changes but its length: the learning rate is constant, "
    "and no weights are averaged."
)

GCPO_SCRIPT = Preset(
    name="gcpo-script",
    title="Chunk-GRPO as released: xingzhejun/GCPO, scripts/finetune/finetune_hpsv3_chunk.sh",
    values=complete(
        settings(
            "finetune_hpsv3_chunk.sh",
            {
                "grid": (shifted_grid(17, 3.0), "--sampling_steps 17 --shift 3"),
                "plan": ("2, 3, 4, 7", "--new_fix_chunk --new_chunk_list '[2, 3, 4, 7]'"),
                "chunk_fraction": (0.5, "--timestep_fraction 0.5; --sample_weight is off"),
                "sde.rule": ("flow", "--grpo_step_mode flow"),
                "sde.eta": (0.7, "--eta 0.7"),
                "iterations": (151, "--max_train_steps 151"),
                "prompts_per_iteration": (16, "--train_batch_size 2, 8 GPUs"),
                "group_size": (12, "--num_generations 12"),
                "share_initial_noise": (True, "--init_same_noise"),
                "advantage.scale": ("group-std", "--use_group; --use_global_std is off"),
                "advantage.centre": ("mean", "--use_half_half_adv is off"),
                "advantage.clamp": (5.0, "--adv_clip_max 5.0"),
                "objective.ratio": ("chunk", "--use_chunk"),
                "objective.clip_low": (5e-5, "--clip_range 5e-5"),
                "objective.clip_high": (5e-5, "--right_clip_range 5e-5"),
                "objective.kl_old": (0.0, "--kl_coeff is off (there: k3 of the ratio)"),
                "objective.step_weights": ("equal", "--use_reweight is off"),
                "optimizer.learning_rate": (1e-5, "--learning_rate 1e-5"),
                "optimizer.weight_decay": (1e-4, "--weight_decay 0.0001"),
                "optimizer.max_grad_norm": (0.01, "--max_grad_norm 0.01"),
                "optimizer.warmup_updates": (0, "--lr_warmup_steps 0"),
                "optimizer.updates_per_rollout": (
                    2,
                    "--gradient_accumulation_steps 12, for the 24 samples of a GPU",
                ),
                "optimizer.ema_decay": (None, "no --use_ema"),
            },
        ),
        settings("train_grpo_flux_hpsv3.py", _OPTIMIZER),
        _LORA,
    ),
    departures=(
        _FULL_MODEL,
        "An update there takes 12 of a GPU's 24 samples in random order; here it takes whole "
        "groups.",
        "The initial noise there is bf16 and shared by both groups of a GPU; here it is float32 "
        "and each group has its own.",
        "The model's timestep there is int(1000 sigma); here it is sigma.",
        "A chunk there goes through the model as one batch; here step by step, which gives the "
        "same gradient.",
        _MODEL_SIDE,
    ),
    shorter_runs=_SHORTER_RUNS,
)

GCPO_V3 = Preset(
    name="gcpo-v3",
    title="Chunk-GRPO as in the paper: GCPO, arXiv 2510.21583v3",
    values=complete(
        settings(
            "arXiv 2510.21583v3",
            {
                "grid": (shifted_grid(17, 3.0), "Table 8, 17 sampling steps, shift 3"),
                "plan": ("adaptive", "adaptive chunking, the default of v3"),
                "chunk_fraction": (0.5, "Table 8, timestep fraction; drawn uniformly"),
                "sde.rule": ("flow", "Eq. 7"),
                "sde.eta": (0.7, "Table 8"),
                "iterations": (150, "Table 8"),
                "prompts_per_iteration": (16, "Table 8, 2 prompts on each of 8 GPUs"),
                "group_size": (12, "Table 8"),
                "advantage.scale": ("group-std", "Eq. 4"),
                "advantage.centre": ("mean", "Eq. 4"),
                "objective.ratio": ("chunk", "Eq. 15"),
                "objective.clip_low": (5e-5, "Table 8"),
                "objective.clip_high": (5e-5, "Table 8"),
                "objective.kl_ref": (0.0, "Eq. 14 has a KL term, but no coefficient is given"),
                "objective.kl_type": ("exact", "Eq. 14, D_KL; here per latent dimension"),
                "optimizer.learning_rate": (1e-5, "Table 8"),
                "optimizer.weight_decay": (1e-4, "Table 8"),
                "optimizer.max_grad_norm": (0.01, "Table 8"),
                "optimizer.updates_per_rollout": (2, "Table 8, gradient accumulation 12"),
            },
        ),
        settings(
            "not in the paper; the official code",
            {
                "share_initial_noise": (True, "--init_same_noise"),
                "advantage.clamp": (5.0, "--adv_clip_max 5.0"),
                "optimizer.warmup_updates": (0, "--lr_warmup_steps 0"),
                **_OPTIMIZER,
            },
        ),
        _LORA,
    ),
    departures=(
        "The paper cuts every trajectory by its own curve; here one curve, averaged over prompts "
        "and measured before training, cuts them all. The paper's stopping threshold is not "
        "published; here chunks aim at 2 to 4 steps. The released code has no adaptive cut.",
        _FULL_MODEL,
        "Half of K chunks is rounded down, as in the released code: 3 of 7.",
        "The paper scores with 30 steps of the trained model and then 20 of the base model.",
        _MODEL_SIDE,
    ),
    shorter_runs=_SHORTER_RUNS,
)
