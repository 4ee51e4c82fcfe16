"""Step-level GRPO on flow models: Flow-GRPO, DanceGRPO and MixGRPO on FLUX.1-dev.

References:
    Flow-GRPO: Training Flow Matching Models via Online RL (Liu et al., 2025), arXiv 2505.05470;
    github.com/yifan123/flow_grpo (November 2025).
    DanceGRPO: Unleashing GRPO on Visual Generation (Xue et al., 2025), arXiv 2505.07818;
    github.com/XueZeyue/DanceGRPO, 15cc71d (October 2025).
    MixGRPO: Unlocking Flow-based GRPO Efficiency with Mixed ODE-SDE (Li et al., 2025), arXiv
    2507.21802; github.com/Tencent-Hunyuan/MixGRPO, e5cdd6a (August 2025).
"""

from __future__ import annotations

from ..method.schedule import flux_shift, shifted_grid
from .recipe import Preset, complete, settings

__all__ = ["DANCE_GRPO", "FLOW_GRPO", "MIX_GRPO"]

_TARGETS = "The source adapts {}; ours are the nearest layers that FLUX has in every layout."
_TIMESTEP = "The model's timestep there is int(1000 sigma); here it is sigma."
_ADAMW = {
    "optimizer.beta1": (0.9, "AdamW(betas=(0.9, 0.999))"),
    "optimizer.beta2": (0.999, "AdamW(betas=(0.9, 0.999))"),
    "optimizer.eps": (1e-8, "AdamW(eps=1e-8)"),
    "optimizer.epochs": (1, "train_one_step walks through the samples once"),
    "advantage.scale": ("group-std", "--use_group; train_one_step"),
    "advantage.centre": ("mean", "train_one_step"),
    "objective.ratio": ("step", "train_one_step"),
}

FLOW_GRPO = Preset(
    name="flow-grpo",
    title="Flow-GRPO on FLUX: arXiv 2505.05470; yifan123/flow_grpo, config/grpo.py, pickscore_flux",
    values=complete(
        settings(
            "config/grpo.py, pickscore_flux",
            {
                "grid": (
                    shifted_grid(6, flux_shift(1024)),
                    "sample.num_steps = 6, resolution = 512: FLUX's own shift, e^0.63",
                ),
                "sde.eta": (0.9, "sample.noise_level = 0.9"),
                "prompts_per_iteration": (48, "48 groups: sample.num_batches_per_epoch"),
                "group_size": (24, "sample.num_image_per_prompt = 24"),
                "share_initial_noise": (False, "sample.same_latent = False"),
                "chunk_fraction": (
                    1.0,
                    "train.timestep_fraction = 0.99: all steps but the last",
                ),
                "advantage.scale": ("global-std", "sample.global_std = True"),
                "objective.kl_ref": (0.0, "train.beta = 0; 0.01 to 0.04 for SD3.5"),
                "optimizer.updates_per_rollout": (
                    2,
                    "train.gradient_accumulation_steps = half the batches",
                ),
                "optimizer.epochs": (1, "train.num_inner_epochs = 1"),
            },
        ),
        settings(
            "config/base.py",
            {
                "objective.clip_low": (1e-4, "train.clip_range"),
                "objective.clip_high": (1e-4, "train.clip_range"),
                "advantage.clamp": (5.0, "train.adv_clip_max"),
                "optimizer.learning_rate": (3e-4, "train.learning_rate"),
                "optimizer.weight_decay": (1e-4, "train.adam_weight_decay"),
                "optimizer.beta1": (0.9, "train.adam_beta1"),
                "optimizer.beta2": (0.999, "train.adam_beta2"),
                "optimizer.eps": (1e-8, "train.adam_epsilon"),
                "optimizer.max_grad_norm": (1.0, "train.max_grad_norm"),
            },
        ),
        settings(
            "scripts/train_flux.py",
            {
                "plan": ("step", "a ratio for every step"),
                "objective.ratio": ("step", "a ratio for every step"),
                "sde.rule": ("flow", "sde_step_with_logprob"),
                "advantage.centre": ("mean", "PerPromptStatTracker.update"),
                "objective.kl_type": ("flow-grpo", "kl_loss, which train.beta weighs"),
                "optimizer.warmup_updates": (0, "constant learning rate, no scheduler"),
                "lora.rank": (64, "LoraConfig(r=64)"),
                "lora.alpha": (128.0, "LoraConfig(lora_alpha=128)"),
                "lora.targets": ("attention+mlp", "LoraConfig(target_modules=[...])"),
                "optimizer.ema_decay": (
                    0.924,
                    "EMAModuleWrapper(decay=0.9, update_step_interval=8), stepped after each of "
                    "the 6 micro-batches of an update, at every eighth update: 0.9^(6/8) for each",
                ),
            },
        ),
        settings("Ours", {"iterations": (300, "the source runs until it is stopped by hand")}),
    ),
    departures=(
        "The source has 32 GPUs (or 8) and 1152 pictures in one iteration.",
        "An update there takes half of all samples in random order; here it takes whole groups.",
        "A prompt that an iteration draws twice is one group there; here it is two.",
        "The standard deviation there is that of n samples plus 1e-4; here that of n - 1.",
        _TARGETS.format("attention, and the MLPs of the double blocks")
        + " A starts Gaussian there, uniform here.",
        "The average there takes the weights in at every eighth update, and 6 times; here at every "
        "update, and once. Its decay rises as here, up to update 80; here up to update 109. Of "
        "weights that grow evenly it has 0.84 after 60 updates and 0.98 after 600; here 0.90 and "
        "0.98.",
        "On the model's side the source has 512 x 512 pictures, guidance 3.5 and bf16, with "
        "PickScore as reward.",
    ),
    shorter_runs="With fewer iterations the average keeps 0.9 of what was learned if weights "
    "grow evenly (0.98 after 300).",
)

DANCE_GRPO = Preset(
    name="dance-grpo",
    title="DanceGRPO on FLUX: arXiv 2505.07818; XueZeyue/DanceGRPO, scripts/finetune/"
    "finetune_flux_grpo_8gpus.sh, and its LoRA script for what concerns the LoRA",
    values=complete(
        settings(
            "finetune_flux_grpo_8gpus.sh",
            {
                "grid": (shifted_grid(16, 3.0), "--sampling_steps 16 --shift 3"),
                "sde.eta": (0.3, "--eta 0.3"),
                "iterations": (300, "--max_train_steps 300"),
                "prompts_per_iteration": (16, "--train_batch_size 2, 8 GPUs"),
                "group_size": (12, "--num_generations 12"),
                "share_initial_noise": (True, "--init_same_noise"),
                "chunk_fraction": (0.6, "--timestep_fraction 0.6"),
                "advantage.clamp": (5.0, "--adv_clip_max 5.0"),
                "objective.clip_low": (1e-4, "--clip_range 1e-4"),
                "objective.clip_high": (1e-4, "--clip_range 1e-4"),
                "optimizer.weight_decay": (1e-4, "--weight_decay 0.0001"),
                "optimizer.warmup_updates": (0, "--lr_warmup_steps 0"),
                "optimizer.updates_per_rollout": (
                    2,
                    "--gradient_accumulation_steps 12, for the 24 samples of a GPU",
                ),
                "optimizer.ema_decay": (
                    0.9975,
                    "--use_ema --ema_decay 0.995, stepped after every iteration, which has two "
                    "updates; its root for each",
                ),
            },
        ),
        settings(
            "finetune_flux_grpo_8gpus_lora.sh",
            {
                "optimizer.learning_rate": (3e-4, "--learning_rate 3e-4 (whole model: 1e-5)"),
                "optimizer.max_grad_norm": (1.0, "--max_grad_norm 1.0 (whole model: 0.01)"),
                "lora.rank": (128, "--lora_rank 128"),
                "lora.alpha": (256.0, "--lora_alpha 256"),
            },
        ),
        settings(
            "train_grpo_flux_lora.py",
            {"lora.targets": ("attention", "LoraConfig(target_modules=[...])")},
        ),
        settings(
            "train_grpo_flux.py",
            {
                "plan": ("step", "train_one_step"),
                "sde.rule": ("dance", "flux_step"),
                **_ADAMW,
            },
        ),
    ),
    departures=(
        "A mixture that nobody published: sampling, updates and EMA are those of the script that "
        "trains the whole model; learning rate, gradient norm and LoRA those of the LoRA script, "
        "which samples 12 steps, not 16, and keeps no EMA.",
        "The average there has its full decay from the first iteration on, is scored nowhere and "
        "is saved beside the last weights: of weights that grow evenly it has 0.48 after 300 "
        "iterations and 0.07 after 30. Here it is the result, so its decay rises from 0.1, and it "
        "has 0.90 after any number.",
        _TARGETS.format("to_q, to_k, to_v and to_out of every attention"),
        _TIMESTEP,
        "The initial noise there is bf16 and shared by both groups of a GPU; here it is float32 "
        "and each group has its own.",
        "On the model's side the source has 720 x 720 pictures, guidance 3.5, bf16 autocast, VAE "
        "tiling and HPSv2.1 as reward.",
    ),
    shorter_runs="In a run of fewer iterations nothing changes but its length: the average keeps "
    "0.9 of what was learned if weights grow evenly.",
)

MIX_GRPO = Preset(
    name="mix-grpo",
    title="MixGRPO on FLUX: arXiv 2507.21802; Tencent-Hunyuan/MixGRPO, scripts/finetune/"
    "finetune_flux_grpo_MixGRPO.sh",
    values=complete(
        settings(
            "finetune_flux_grpo_MixGRPO.sh",
            {
                "grid": (shifted_grid(25, 3.0), "sampling_steps=25, --shift 3"),
                "sde.rule": ("flow", "--flow_grpo_sampling"),
                "sde.eta": (0.7, "eta=0.7"),
                "window.kind": (
                    "sliding",
                    'sample_strategy="progressive"',
                ),
                "window.chunks": (4, "group_size=4"),
                "window.start": (0, "GRPOTrainingStates(cur_timestep=0)"),
                "window.stride": (1, "--prog_overlap, prog_overlap_step=1"),
                "window.every": (25, "iters_per_group=25"),
                "noise": ("window", 'training_strategy="part"'),
                "ode_solver": ("euler", 'dpm_algorithm_type="null"'),
                "chunk_fraction": (1.0, "all steps of the window"),
                "iterations": (300, "--max_train_steps 300, one of its epochs; see below"),
                "prompts_per_iteration": (32, "--train_batch_size 1, 4 nodes with 8 GPUs"),
                "group_size": (12, "--num_generations 12"),
                "share_initial_noise": (True, "--init_same_noise"),
                "advantage.clamp": (5.0, "--adv_clip_max 5.0"),
                "advantage.combine": ("advantages", 'multi_reward_mix="advantage_aggr"'),
                "objective.clip_low": (1e-4, "--clip_range 1e-4"),
                "objective.clip_high": (1e-4, "--clip_range 1e-4"),
                "objective.kl_old": (0.0, "kl_coeff=0.0 (there: half the squared log-ratio)"),
                "optimizer.learning_rate": (1e-5, "--learning_rate 1e-5"),
                "optimizer.weight_decay": (1e-4, "--weight_decay 0.0001"),
                "optimizer.max_grad_norm": (1.0, "--max_grad_norm 1.0"),
                "optimizer.warmup_updates": (0, "--lr_warmup_steps 0"),
                "optimizer.updates_per_rollout": (
                    4,
                    "gradient_accumulation_steps=3, for the 12 samples of a GPU",
                ),
                "optimizer.ema_decay": (None, "--ema_decay is not used by the code"),
            },
        ),
        settings("train_grpo_flux.py", {"plan": ("step", "train_one_step"), **_ADAMW}),
        settings(
            "Ours",
            {
                "lora.rank": (64, "the source trains the whole model; Flow-GRPO's size for FLUX"),
                "lora.alpha": (128.0, "as for the rank"),
                "lora.targets": ("attention+mlp", "as for the rank"),
            },
        ),
    ),
    departures=(
        "The source trains all 12 B parameters; learning_rate 1e-5 belongs to that. A LoRA moves "
        "little with it: DanceGRPO's LoRA script takes 3e-4.",
        "The source goes through its 300 iterations again and again (a million epochs) until it is "
        "stopped by hand, and the window goes on meanwhile.",
        "An update there takes 3 of the 12 samples of every group; here it takes whole groups.",
        "Advantages of several rewards are only added up there; here their sum is also brought to "
        "standard deviation 1 (GDPO).",
        _TIMESTEP,
        "In a run of more than 500 iterations the window ends otherwise: there it runs out of the "
        "steps, and never trains the last one; here it stays whole and starts again at 525.",
        "MixGRPO-Flash, the faster script: ode_solver dpm2 and window.every 20; it also leaves out "
        "60 % of the steps after the window, which this loop does not.",
        "On the model's side the source has 720 x 720 pictures, guidance 3.5, bf16 autocast, VAE "
        "tiling, and HPSv2.1, ImageReward and PickScore as rewards.",
    ),
    shorter_runs="The window moves by one step every 25 iterations: 300 iterations train the first "
    "15 of the 24 steps, 25 iterations the first 4. Set window.every to a twelfth of the "
    "iterations to train the same steps in a shorter run.",
)
