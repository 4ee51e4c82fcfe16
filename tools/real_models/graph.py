"""The graph that all example workflows of real models share: API prompt and layout."""

from __future__ import annotations

from pathlib import Path

from tools.comfyui.graphs import node

from .models import Loader, ModelExample

__all__ = ["layout_of", "prompt_of"]

TRAIN_SIZE, MEASURE_SIZE = 512, 1024
RECIPE, PICTURES = "quick", 24  # in an iteration
ITERATIONS = 30  # a first try
AS_THE_RECIPE = dict.fromkeys(
    ("prompts_per_iteration", "group_size", "learning_rate", "rank", "alpha"), 0
)
SHIFT = 3.0  # of the recipe's noise levels


def text(name: str) -> str:
    """Read a text that lies beside this file."""
    return Path(__file__).with_name(name).read_text().strip()


def read_me(model: ModelExample) -> str:
    """Text of the note that one reads first."""
    return text("read_me.md").format(
        title=model.title,
        files="\n".join(f"- `models/{file.directory}/{file.name}`" for file in model.files),
        memory=model.memory,
        recipe=RECIPE,
        pictures=PICTURES,
        steps=model.steps,
        iterations=ITERATIONS,
        calls=PICTURES * model.steps,
        twice=", each twice for `cfg`" if model.cfg > 1 else "",
        advice=" ".join(filter(None, (model.advice, model.needs))),
    )


def prompt_of(model: ModelExample) -> dict[str, dict]:
    """API-format prompt."""
    ids = [f"{number}" for number in range(1, 1 + len(model.loaders))]
    loaders = {
        key: node(
            loader.class_type,
            **{name: file.name for name, file in loader.files.items()},
            **loader.options,
        )
        for key, loader in zip(ids, model.loaders, strict=True)
    }
    base, clip, vae = ([ids[index], slot] for index, slot in (model.model, model.clip, model.vae))
    shared = {"model": base, "vae": vae, "prompts": ["10", 0], "reward": ["30", 0]}
    guided = {"cfg": model.cfg} | ({"negative": ["11", 0]} if model.cfg > 1 else {})
    nodes = loaders | {
        "10": node(
            "ChunkGRPO_PromptSet", clip=clip, text=text("prompts.txt"), variants=4,
            held_out_text=text("held_out.txt"), held_out=8, split_seed=0, guidance=model.guidance,
        ),
        "12": _size(model, TRAIN_SIZE),
        "13": _levels(model, TRAIN_SIZE),
        "30": node(
            "ChunkGRPO_LoadReward", name="follows_prompt", colour="#2060c0", settings="", file="",
            url="", allow_download=False,
        ),
        "45": node("PreviewImage", images=["40", 3]),
        "41": node("PreviewAny", source=["40", 4]),
        "42": node(
            "ChunkGRPO_SaveLoRA", lora=["40", 0], log=["40", 2], for_diffusers=False,
            name=f"chunk_grpo/{model.name[3:]}",
        ),
        "50": _size(model, MEASURE_SIZE),
        "52": node("PreviewAny", source=["51", 0]),
        "54": node("PreviewImage", images=["51", 2]),
    }  # fmt: skip
    if model.cfg > 1:
        nodes["11"] = node("CLIPTextEncode", clip=clip, text="")
    if model.scheduler:
        nodes["55"] = _levels(model, MEASURE_SIZE)
    drawn = {}
    if model.sampler:
        drawn["sampler"] = ["14", 0]
        nodes["14"] = node("KSamplerSelect", sampler_name=model.sampler)
    nodes["40"] = node(
        "ChunkGRPO_TrainLoRA", **shared, **guided, **drawn, **AS_THE_RECIPE, sigmas=["13", 0],
        latent=["12", 0], iterations=ITERATIONS, seed=0, pictures_per_held_out=2, run_name="",
        resume=False, recipe=RECIPE, check_only=False,
    )  # fmt: skip
    nodes["51"] = node(
        "ChunkGRPO_EvaluateLoRA", **shared, **guided, **drawn,
        sigmas=["55" if model.scheduler else "13", 0], latent=["50", 0], lora=["40", 0],
        pictures_per_prompt=2, noise_seed=20_000, batch_size=1, dark=True,
    )  # fmt: skip
    return dict(sorted(nodes.items()))


def _size(model: ModelExample, side: int) -> dict:
    return node(model.latent, width=side, height=side, batch_size=1)


def _levels(model: ModelExample, side: int) -> dict:
    """Noise levels: those of the recipe, or the model's own of this size."""
    if model.scheduler:
        return node(model.scheduler, steps=model.steps, width=side, height=side)
    return node("ChunkGRPO_ShiftedSigmas", steps=model.steps, shift=SHIFT)


TITLE_BAR, GAP, TOP, BOTTOM = 30, 30, 80, 1680
STEP = TITLE_BAR + GAP


def layout_of(model: ModelExample) -> dict:
    """Layout as ``workflow_from_api.py`` takes it."""
    nodes: dict[str, dict] = {}

    def place(x: int, y: int, width: int, *entries: tuple[str, int, str | None]) -> int:
        """Stack nodes from ``y`` down, a height of 0 filling the room; return where they end."""
        room = BOTTOM - 20 - y - sum(height + STEP for _, height, _ in entries) + STEP
        for key, height, title in entries:
            named = {"title": title} if title else {}
            nodes[key] = {"pos": [x, y], "size": [width, height or room], **named}
            y += (height or room) + STEP
        return y - STEP

    loaders = [(str(n), loader.height, None) for n, loader in enumerate(model.loaders, 1)]
    files = BOTTOM - sum(loader.height + STEP for loader in model.loaders) - TOP + GAP
    place(20, files + TOP, 420, *loaders)
    for (key, _, _), loader in zip(loaders, model.loaders, strict=True):
        nodes[key]["models"] = _offered(loader)

    size = ("12", 106, f"Picture size: {TRAIN_SIZE} for a first try")
    levels = ("13", 106, "Noise levels of this size") if model.scheduler else ("13", 112, None)
    negative = [("11", 88, "Negative prompt")] if model.cfg > 1 else []
    sampler = [("14", 58, "Sampler, as you draw")] if model.sampler else []
    place(520, TOP, 420, ("10", 0, None), *negative, size, levels, *sampler)

    place(1020, TOP, 420, ("30", 250, "Load Reward: choose yours here"))
    nodes["30"] |= {"color": "#322", "bgcolor": "#533"}
    place(1520, TOP, 460, ("40", 1100, None))
    shown = ("41", 898, "What the training gained")
    place(2000, TOP, 480, shown, ("42", 142, None))
    place(1520, 1240, 960, ("45", 0, "Held-out prompts, before and after"))

    size = ("50", 106, f"Picture size: {MEASURE_SIZE}, as you will draw")
    levels = [("55", 106, "Noise levels of this size")] if model.scheduler else []
    place(2560, TOP, 360, size, *levels, ("51", 0, None))
    place(2940, TOP, 480, ("52", 340, "Base against LoRA"), ("54", 0, "Base above, LoRA below"))
    return {
        "nodes": nodes,
        "groups": [
            _group("Model files", 0, files, 460, BOTTOM - files, "#3f789e"),
            _group("Prompts and size", 500, 0, 460, BOTTOM, "#3f789e"),
            _group("Reward", 1000, 0, 460, 910, "#8a3535"),
            _group("Train and save", 1500, 0, 1000, BOTTOM, "#6a4a8c"),
            _group("Measure at the size you will use", 2540, 0, 900, BOTTOM, "#8a6a35"),
        ],
        "notes": [
            _note("Read me first", read_me(model), 0, 30, 460, files - 60),
            _note("What to change first", text("change_first.md"), 1000, 960, 460, BOTTOM - 960),
            _note("The reward", text("reward.md"), 1020, 385, 420, 505),
        ],
    }  # fmt: skip


def _offered(loader: Loader) -> list[dict[str, str]]:
    return [
        {"name": file.name, "url": file.url, "directory": file.directory}
        for file in loader.files.values()
    ]


def _group(title: str, x: int, y: int, width: int, height: int, color: str) -> dict:
    return {"title": title, "bounding": [x, y, width, height], "color": color}


def _note(title: str, text: str, x: int, y: int, width: int, height: int) -> dict:
    return {"title": title, "text": text, "pos": [x, y], "size": [width, height]}
