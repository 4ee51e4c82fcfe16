"""Words under which the search of ComfyUI's page finds the nodes, beside their names.

Newer versions of ComfyUI know ``search_aliases``; on older ones the words are left out. No node
has an ``essentials_category``: the page shows that tab for ComfyUI's own nodes alone, and takes a
node of a pack that has one out of its filter *Extensions*.
"""

from __future__ import annotations

from comfy_api.latest import io

__all__ = ["SEARCH_WORDS", "add_search_words"]

SEARCH_WORDS: dict[str, tuple[str, ...]] = {
    "ChunkGRPO_TrainLoRA": (
        "rl", "reinforcement learning", "lora train", "lora training", "train lora by reward",
        "grpo", "dpo", "rlhf", "align", "alignment", "fine-tune", "finetune",
    ),
    "ChunkGRPO_LoadReward": (
        "reward model", "aesthetic score", "aesthetic predictor", "pickscore", "hpsv3", "hpsv2",
        "imagereward", "clip score", "ocr", "vlm judge", "quality metric",
    ),
    "ChunkGRPO_ScoreImages": (
        "score", "rate images", "rank images", "aesthetic score of images", "image quality",
    ),
    "ChunkGRPO_PickBestImages": ("best of n", "select best", "filter images", "top k images"),
    "ChunkGRPO_PickPictures": (
        "image chooser", "choose images", "image picker", "preview chooser", "like", "favourites",
        "vote", "compare pictures", "preference", "human feedback", "stars",
    ),
    "ChunkGRPO_FitTaste": (
        "taste", "my style", "personal reward", "preference model", "train reward model",
        "learn from likes",
    ),
    "ChunkGRPO_CombineRewards": ("add rewards", "weighted rewards", "sum of scores"),
    "ChunkGRPO_BalanceRewards": ("balance taste and prompt", "blend rewards", "prompt following"),
    "ChunkGRPO_GRPOPreset": ("recipe", "rl preset", "training preset", "quick training"),
    "ChunkGRPO_GRPOSettings": ("rl settings", "training settings", "optimizer", "lora targets"),
    "ChunkGRPO_GRPOObjective": ("kl", "clip range", "ppo", "objective settings"),
    "ChunkGRPO_GRPOExploration": ("groups", "shared noise", "noise window"),
    "ChunkGRPO_ForwardObjective": (
        "nft", "awm", "diffusion nft", "advantage weighted matching", "few-step training",
    ),
    "ChunkGRPO_PreferenceObjective": (
        "dpo", "diffusion dpo", "flow dpo", "kto", "preference", "train on likes",
    ),
    "ChunkGRPO_PromptSet": ("prompts", "prompt list", "wildcards", "training prompts"),
    "ChunkGRPO_EvaluateLoRA": (
        "compare lora", "before and after", "ab test", "benchmark lora", "held-out",
    ),
    "ChunkGRPO_ApplyLoRA": ("load lora", "lora loader", "lora without merging"),
    "ChunkGRPO_SaveLoRA": ("export lora", "save lora file"),
    "ChunkGRPO_LoadLoRAFile": ("continue training", "resume lora", "convert lora"),
    "ChunkGRPO_PlotTraining": ("loss graph", "training curve", "reward curve"),
    "ChunkGRPO_FlowSDESampler": ("sde", "stochastic sampler", "ancestral flow"),
    "ChunkGRPO_ShiftedSigmas": ("scheduler", "sigmas", "shift", "timesteps"),
    "ChunkGRPO_RollOutTrajectories": ("rollout", "trajectories", "sample groups"),
    "ChunkGRPO_AnalyzeTemporalDynamics": ("relative l1", "temporal dynamics", "curve of steps"),
    "ChunkGRPO_PlanChunks": ("chunks", "chunk plan", "steps to train"),
    "ChunkGRPO_LoadTinyFlux": ("tiny flux", "toy model", "demo model", "test model"),
}  # fmt: skip
"""Id of a node -> what people may type who do not know its name."""


def add_search_words(schema: io.Schema) -> None:
    """Give the schema of a node its words, where this ComfyUI has a field for them."""
    if hasattr(schema, "search_aliases"):
        schema.search_aliases = list(SEARCH_WORDS.get(schema.node_id, ()))
