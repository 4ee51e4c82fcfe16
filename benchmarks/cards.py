"""Seconds of an iteration and pictures an hour, for models, recipes and cards: a table to look up.

python -m benchmarks.cards

Rows of the H100 are put together from single calls that were measured on it
(``results/flux_size``). All others are computed: operations of the calls of a recipe, over the part
of the card's matrix peak that calls filling the H100 reached, uncompiled. What launches of kernels,
decoding and the reward take comes on top, and a card that is not filled by a call is slower.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

from chunk_grpo_core.presets import PRESETS
from chunk_grpo_core.presets.cost import preset_units

from .random_flux import FLUX, operations

__all__ = ["CARDS", "MODELS", "Row", "rows", "table"]

SHARE = 0.43
"""Of the matrix peak: bf16, 512 x 512, four samples in a call without gradients, H100."""
CARDS = {"RTX 4090": 165e12, "RTX 3090": 71e12, "RTX 4060 Ti 16 GB": 44e12}
"""Dense 16-bit products with float32 sums, operations a second, as the maker states."""
RECIPES = ("quick", "safe-lora", "gcpo-script")
_RESULTS = Path(__file__).resolve().parent / "results" / "flux_size"


@dataclass(frozen=True, kw_only=True)
class Model:
    """Weights that every token meets, and its attention."""

    parameters: float
    layers: int
    width: int
    text: int
    """Text tokens."""

    def forward(self, pixels: int) -> float:
        """Operations of one sample."""
        tokens = (pixels // 16) ** 2 + self.text
        return 2 * self.parameters * tokens + 4 * tokens**2 * self.width * self.layers

    def update(self, pixels: int) -> float:
        """The same with gradients; blocks are computed again."""
        return 3.1 * self.forward(pixels)


MODELS = {
    "FLUX.1-dev": None,
    "Z-Image": Model(parameters=6.0e9, layers=34, width=3840, text=256),
    "FLUX.2 klein 4B": Model(parameters=3.9e9, layers=25, width=3072, text=512),
}
"""FLUX.1's operations are counted by ``random_flux.operations``."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table."""

    hardware: str
    model: str
    weights: str
    pixels: int
    recipe: str
    seconds: float
    """Of an iteration."""
    pictures: int
    """Of an iteration."""
    source: str

    @property
    def pictures_an_hour(self) -> float:
        """Sampled and trained."""
        return 3600 * self.pictures / self.seconds


def rows() -> list[Row]:
    """All lines: measured calls first."""
    found = [
        _of_h100(name, weights, file, batch)
        for name in RECIPES
        for weights, file, batch in (
            ("bf16", "bf16", 4),
            ("bf16, compiled", "bf16_compiled_512", 4),
            ("fp8", "fp8", 1),
        )
    ]
    for model in MODELS:
        for recipe in RECIPES[:2]:
            found += [_computed(card, model, recipe) for card in CARDS]
    return found


def _work(recipe: str) -> tuple[float, float, int]:
    """Calls without and with gradients for each picture, and pictures of an iteration."""
    preset = PRESETS[recipe]
    units, values = preset_units(preset), {s.key: s.value for s in preset.values}
    assert units is not None
    pictures = int(values["group_size"]) * int(values["prompts_per_iteration"])  # type: ignore
    return units.rollout + units.compared, units.trained, pictures


def _of_h100(recipe: str, weights: str, file: str, batch: int) -> Row:
    cases = json.loads((_RESULTS / f"{file}.json").read_text(encoding="utf-8"))["cases"]
    step, update = (
        min(
            case["seconds"] / batch
            for case in cases
            if (case["what"], case["pixels"], case["batch"]) == (what, 512, batch)
        )
        for what in ("rollout step", "update micro-batch")
    )
    without, trained, pictures = _work(recipe)
    return Row(
        hardware="H100 80 GB", model="FLUX.1-dev", weights=weights, pixels=512, recipe=recipe,
        seconds=pictures * (without * step + trained * update), pictures=pictures,
        source=f"measured calls of {batch}",
    )  # fmt: skip


def _computed(card: str, name: str, recipe: str, pixels: int = 512) -> Row:
    model, image = MODELS[name], (pixels // 16) ** 2
    forward = model.forward(pixels) if model else operations(FLUX, image)
    update = model.update(pixels) if model else operations(FLUX, image, is_update=True)
    without, trained, pictures = _work(recipe)
    count = pictures * (without * forward + trained * update)
    return Row(
        hardware=card, model=name, weights="fp8", pixels=pixels, recipe=recipe,
        seconds=count / (SHARE * CARDS[card]), pictures=pictures, source="computed",
    )  # fmt: skip


def table(found: list[Row]) -> str:
    """As Markdown."""
    head = "| card | model | weights | pixels | recipe | s an iteration | pictures an hour | |"
    lines = [
        f"| {r.hardware} | {r.model} | {r.weights} | {r.pixels} | `{r.recipe}` | "
        f"{r.seconds:.0f} | {r.pictures_an_hour:.0f} | {r.source} |"
        for r in found
    ]
    return "\n".join([head, "|---" * 8 + "|", *lines])


def main() -> None:
    """Print the table."""
    argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0]).parse_args()
    print(table(rows()))


if __name__ == "__main__":
    main()
