"""What the pictures of the help pages show: a graph of the tiny FLUX, and a view of it per node."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tools.comfyui.graphs import Prompt, node, upstream

__all__ = ["FIRST_RUN", "LORA_FILE", "SECOND_RUN", "VIEWS", "Shown", "View", "graph_of", "sockets"]

CAPTION = "two large green triangles on a black background"
LORA_FILE = "chunk_grpo/triangles"
"""Name under which the first run saves its LoRA; the second run loads it."""


@dataclass(frozen=True)
class Shown:
    """One node of a picture."""

    key: str
    """Name of the node in the graph."""
    width: int = 400
    height: int = 0
    """At least this; 0: what the node needs."""


@dataclass(frozen=True)
class View:
    """One picture: columns of nodes, from left to right and from top to bottom."""

    columns: Sequence[Sequence[Shown]]

    @property
    def keys(self) -> list[str]:
        """Names of all nodes of the picture."""
        return [shown.key for column in self.columns for shown in column]


def _stack(*shown: str | tuple[str, int]) -> View:
    """Nodes below each other, with their least heights; ComfyUI's help panel is narrow."""
    pairs = [(entry, 0) if isinstance(entry, str) else entry for entry in shown]
    return View([[Shown(key, height=height) for key, height in pairs]])


def graph_of(keys: Sequence[str]) -> tuple[Prompt, bool]:
    """Return the nodes that some nodes need, and whether they stand in the second run."""
    second = not all(key in FIRST_RUN for key in keys)
    return upstream(SECOND_RUN if second else FIRST_RUN, *keys), second


def sockets(inputs: Iterable[str], outputs: Iterable[str]) -> str:
    """Return what a picture keeps of its node, so that a test can tell when it is out of date."""
    return f"inputs {', '.join(sorted(inputs))}; outputs {', '.join(sorted(outputs))}"


def _sampled(name: str, title: str, model: list, sampler: list) -> Prompt:
    """Nodes that sample the caption and show the pictures."""
    guider, latent, decoded = f"{name}_guider", f"{name}_latent", f"{name}_images"
    return {
        guider: node("BasicGuider", model=model, conditioning=["positive", 0]),
        f"{name}_noise": node("RandomNoise", noise_seed=1),
        latent: node(
            "SamplerCustomAdvanced",
            noise=[f"{name}_noise", 0],
            guider=[guider, 0],
            sampler=sampler,
            sigmas=["sigmas", 0],
            latent_image=["six", 0],
        ),
        decoded: node("VAEDecode", samples=[latent, 0], vae=["tiny", 2]),
        **_enlarged(name, title, [decoded, 0]),
    }


def _enlarged(name: str, title: str, source: list) -> Prompt:
    """Nodes that show small pictures; the page lays out pictures of 64 pixels badly."""
    large = f"{name}_large"
    return {
        large: node("ImageScaleBy", image=source, upscale_method="nearest-exact", scale_by=3.0),
        name: _image([large, 0], title),
    }


def _titled(class_type: str, title: str, **inputs: object) -> dict:
    return {**node(class_type, **inputs), "_meta": {"title": title}}


def _text(source: list, title: str = "Preview as Text") -> dict:
    return _titled("PreviewAny", title, source=source)


def _image(source: list, title: str) -> dict:
    return _titled("PreviewImage", title, images=source)


MODEL, CLIP, VAE = (["tiny", slot] for slot in range(3))
PROMPTS, SIGMAS, LATENT, REWARD = ["prompts", 0], ["sigmas", 0], ["latent", 0], ["reward", 0]
EVALUATED = {
    "model": MODEL,
    "vae": VAE,
    "prompts": PROMPTS,
    "reward": REWARD,
    "sigmas": SIGMAS,
    "latent": LATENT,
    "lora": ["train", 0],
    "pictures_per_prompt": 2,
    "noise_seed": 20000,
    "batch_size": 0,
    "dark": True,
}
"""What Evaluate LoRA gets in both of its pictures."""

_BASE: Prompt = {
    "tiny": node("ChunkGRPO_LoadTinyFlux"),
    "positive": node("CLIPTextEncode", text=CAPTION, clip=CLIP),
    "six": node("EmptySD3LatentImage", width=64, height=64, batch_size=6),
    "latent": node("EmptySD3LatentImage", width=64, height=64, batch_size=1),
    "euler": node("KSamplerSelect", sampler_name="euler"),
    "sigmas": node("ChunkGRPO_ShiftedSigmas", steps=9, shift=3.0),
    "reward": node("ChunkGRPO_LoadReward", name="tiny_world", colour="#2060c0"),
}

FIRST_RUN: Prompt = {
    **_BASE,
    "captions": _text(["tiny", 3], "Its captions"),
    **_sampled("drawn", "Pictures of the base model", MODEL, ["euler", 0]),
    "prompts": node(
        "ChunkGRPO_PromptSet",
        clip=CLIP,
        text=["tiny", 3],
        held_out_text=["tiny", 4],
        held_out=8,
    ),
    "typed": node(
        "ChunkGRPO_PromptSet",
        clip=CLIP,
        text="a small {red|blue|green} circle on a white background\n"
        "two large {yellow|white} {squares|crosses} on a black background",
        held_out_text="",
        held_out=2,
        variants=3,
    ),
    "typed_summary": _text(["typed", 1]),
    "sampler": node("ChunkGRPO_FlowSDESampler", rule="flow", eta=0.7),
    **_sampled("noisy", "Pictures sampled with it", MODEL, ["sampler", 0]),
    "levels": _text(["sigmas", 0]),
    "rollouts": node(
        "ChunkGRPO_RollOutTrajectories",
        model=MODEL,
        prompts=PROMPTS,
        sampler=["sampler", 0],
        sigmas=SIGMAS,
        latent=LATENT,
        prompt_count=4,
        group_size=4,
        seed=0,
    ),
    "rolled_images": node("VAEDecode", samples=["rollouts", 1], vae=VAE),
    **_enlarged("rolled", "4 pictures of 4 prompts", ["rolled_images", 0]),
    "dynamics": node(
        "ChunkGRPO_AnalyzeTemporalDynamics", trajectories=["rollouts", 0], dark=True, distance="l1"
    ),
    "dynamics_plot": _image(["dynamics", 1], "plot"),
    "plan": node(
        "ChunkGRPO_PlanChunks",
        chunk_sizes="1, 2, 2, 3",
        weights="0.4, 0.35, 0.2, 0.05",
        dark=True,
        curve=["dynamics", 0],
    ),
    "plan_plot": _image(["plan", 1], "plot"),
    "saturation": node("ChunkGRPO_LoadReward", name="saturation", colour="#2060c0"),
    "taste": node(
        "ChunkGRPO_FitTaste",
        taste="example",
        encoder="tiny",
        at_least=20,
        pessimism=0.0,
        dark=True,
    ),
    "taste_report": _image(["taste", 2], "picture"),
    "combined": node(
        "ChunkGRPO_CombineRewards",
        reward_1=REWARD,
        reward_2=["saturation", 0],
        weight_1=1.0,
        weight_2=0.2,
    ),
    "balanced": node(
        "ChunkGRPO_BalanceRewards",
        taste=["saturation", 0],
        prompt_following=REWARD,
        balance=0.5,
    ),
    "scores": node(
        "ChunkGRPO_ScoreImages", reward=REWARD, images=["drawn_images", 0], prompt=CAPTION
    ),
    "scored": _image(["scores", 2], "grid of Score Images"),
    "combined_scores": node(
        "ChunkGRPO_ScoreImages",
        reward=["combined", 0],
        images=["drawn_images", 0],
        prompt=CAPTION,
    ),
    "pick": node(
        "ChunkGRPO_PickBestImages", images=["drawn_images", 0], scores=["scores", 3], count=4
    ),
    **_enlarged("picked", "The best four", ["pick", 0]),
    "picker": node(
        "ChunkGRPO_PickPictures",
        images=["drawn_images", 0],
        taste="mine",
        kind="hearts",
        wait=False,
        picks="liked: 1, 4\ndisliked: 3",
    ),
    "settings": node("ChunkGRPO_GRPOSettings", clip=0.0001, checkpoint_every=10),
    "offloaded": node("ChunkGRPO_GRPOSettings", activation_offloading="on", settings=["preset", 0]),
    "objective": node("ChunkGRPO_GRPOObjective", kl_ref=0.002, settings=["preset", 0]),
    "exploration": node("ChunkGRPO_GRPOExploration", noise="drawn", settings=["preset", 0]),
    "forward": node("ChunkGRPO_ForwardObjective", kl_ref=0.5, settings=["preset", 0]),
    "preference": node(
        "ChunkGRPO_PreferenceObjective",
        taste="example",
        clip=CLIP,
        objective="kto",
        held_out=4,
        guidance=3.5,
        cache_gib=4.0,
    ),
    "preset": node("ChunkGRPO_GRPOPreset", preset="safe-lora", batch_size=-1),
    "preset_text": _text(["preset", 10]),
    "train": node(
        "ChunkGRPO_TrainLoRA",
        model=MODEL,
        vae=VAE,
        prompts=PROMPTS,
        reward=REWARD,
        plan=["plan", 0],
        sampler=["sampler", 0],
        sigmas=SIGMAS,
        latent=LATENT,
        settings=["settings", 0],
        iterations=12,
        prompts_per_iteration=4,
        group_size=8,
        learning_rate=0.002,
        rank=16,
        alpha=32.0,
        seed=0,
        pictures_per_held_out=2,
        run_name="",
        resume=False,
        recipe="by hand",
    ),
    "training": node("ChunkGRPO_PlotTraining", log=["train", 2], dark=True),
    "training_plot": _image(["training", 0], "plot"),
    "save": node(
        "ChunkGRPO_SaveLoRA",
        lora=["train", 0],
        log=["train", 2],
        name=LORA_FILE,
        for_diffusers=False,
    ),
    "saved": _text(["save", 0]),
    "apply": node(
        "ChunkGRPO_ApplyLoRA",
        model=MODEL,
        lora=["train", 0],
        lora_name="none",
        strength=1.0,
        start_percent=0.0,
        end_percent=0.6,
    ),
    **_sampled("applied", "The same noise with the LoRA", ["apply", 0], ["euler", 0]),
    "evaluate": node(
        "ChunkGRPO_EvaluateLoRA",
        **EVALUATED,
        duels=0,
    ),
    "gains": _image(["evaluate", 1], "plot"),
    "blind": _titled(
        "ChunkGRPO_EvaluateLoRA",
        "Evaluate LoRA with duels",
        **EVALUATED,
        duels=20,
        log=["train", 2],
    ),
}

SECOND_RUN: Prompt = {
    **_BASE,
    "load": node("ChunkGRPO_LoadLoRAFile", lora_name=f"{LORA_FILE}.safetensors"),
    "apply_file": node(
        "ChunkGRPO_ApplyLoRA",
        model=MODEL,
        lora=["load", 0],
        lora_name="none",
        strength=1.0,
        start_percent=0.0,
        end_percent=1.0,
    ),
    **_sampled("with_file", "Pictures", ["apply_file", 0], ["euler", 0]),
}

VIEWS = {
    "LoadTinyFlux": _stack("tiny", ("captions", 170), ("drawn", 270)),
    "PromptSet": _stack("typed", ("typed_summary", 110)),
    "FlowSDESampler": _stack("sampler", ("noisy", 270)),
    "ShiftedSigmas": _stack("sigmas", ("levels", 110)),
    "RollOutTrajectories": _stack("rollouts", ("rolled", 400)),
    "AnalyzeTemporalDynamics": _stack("dynamics", ("dynamics_plot", 270)),
    "PlanChunks": _stack("plan", ("plan_plot", 270)),
    "LoadReward": _stack(("reward", 220)),
    "FitTaste": _stack(("taste", 340), ("taste_report", 300)),
    "CombineRewards": View(
        [[Shown("reward", 280, 210), Shown("saturation", 280, 210)], [Shown("combined", 260)]]
    ),
    "BalanceRewards": View(
        [[Shown("saturation", 280, 210), Shown("reward", 280, 210)], [Shown("balanced", 260)]]
    ),
    "ScoreImages": _stack(("scores", 590), ("scored", 270)),
    "PickBestImages": _stack("pick", ("picked", 250), ("scored", 310)),
    "PickPictures": _stack(("picker", 705)),
    "GRPOSettings": _stack(("offloaded", 760)),
    "GRPOObjective": _stack(("objective", 560)),
    "GRPOExploration": _stack(("exploration", 330)),
    "ForwardObjective": _stack(("forward", 520)),
    "PreferenceObjective": _stack(("preference", 470)),
    "GRPOPreset": _stack("preset", ("preset_text", 330)),
    "TrainLoRA": View([[Shown("train", 460)]]),
    "PlotTraining": _stack("training", ("training_plot", 380)),
    "SaveLoRA": _stack("save", ("saved", 90)),
    "LoadLoRAFile": View([[Shown("load", 390)], [Shown("apply_file", 280)]]),
    "ApplyLoRA": _stack("apply", ("drawn", 270), ("applied", 270)),
    "EvaluateLoRA": View(
        [[Shown("evaluate", 400), Shown("gains", 400, 190)], [Shown("blind", 400)]]
    ),
}
"""Node id without the name of the pack -> its picture."""
