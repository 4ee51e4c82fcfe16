"""What a training of a large model takes, computed for every preset; nothing is measured here.

python -m benchmarks.recipe_cost

Operations of one sample forward come from the model's own layers at its true size (torch counts
them on a model without weights); units of a picture from ``presets/cost.py``. A unit is one forward
pass, and with gradients and checkpoints three. Time is operations over what a card reaches: the
share of the matrix peak that ``results/flux_size`` measured for bf16 calls of four samples,
uncompiled, on an H100 (its rollout and its update), times the peak of the card. Decoding, scoring,
text and measuring are not counted. Weights that must be widened from 8 bits cost one pass through
memory on top, for each call of four.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from chunk_grpo_core.optional import require
from chunk_grpo_core.presets import PRESETS, preset_config
from chunk_grpo_core.presets.cost import units_of

__all__ = ["CARDS", "MODELS", "Card", "Model", "forward_operations", "hours", "table"]

ITERATIONS = 100
_CALL = 4
_ROLLOUT_SHARE, _UPDATE_SHARE = 0.43, 0.39
"""Of the peak that a bf16 product of 8192 x 8192 reached; docs/performance.md."""


@dataclass(frozen=True)
class Card:
    """What a card reaches."""

    peak: float
    """Operations of bf16 products in a second, 10^12; measured, or four fifths of the maker's."""
    bandwidth: float
    """GB of memory in a second, of the maker."""
    memory: int
    """GiB."""


CARDS = {
    "RTX 4090": Card(0.8 * 165, 1008, 24),
    "H200": Card(777, 4800, 141),
}


@dataclass(frozen=True)
class Model:
    """A transformer at its true size."""

    make: Callable[[], Any]
    """Makes it, on the device ``meta``."""
    call: Callable[[Any, int], Any]
    """Calls it for one sample of so many pixels a side."""


def _empty(*shape: int) -> torch.Tensor:
    return torch.empty(*shape, device="meta", dtype=torch.bfloat16)


def _diffusers() -> Any:
    return require("diffusers", "To count operations")


def _flux(model: Any, pixels: int) -> Any:
    tokens = (pixels // 16) ** 2
    return model(
        hidden_states=_empty(1, tokens, 64),
        encoder_hidden_states=_empty(1, 512, 4096),
        pooled_projections=_empty(1, 768),
        timestep=_empty(1),
        img_ids=_empty(tokens, 3),
        txt_ids=_empty(512, 3),
        guidance=_empty(1),
    )


def _klein(model: Any, pixels: int) -> Any:
    tokens = (pixels // 16) ** 2
    return model(
        hidden_states=_empty(1, tokens, 128),
        encoder_hidden_states=_empty(1, 512, 12288),
        timestep=_empty(1),
        img_ids=_empty(1, tokens, 4),
        txt_ids=_empty(1, 512, 4),
        guidance=None,
    )


def _z_image(model: Any, pixels: int) -> Any:
    latent = _empty(16, 1, pixels // 8, pixels // 8)
    return model([latent], _empty(1), [_empty(128, 2560)])


MODELS = {
    "FLUX.1": Model(
        lambda: _diffusers().FluxTransformer2DModel(guidance_embeds=True),
        _flux,
    ),
    "FLUX.2 klein 9B": Model(
        lambda: _diffusers().Flux2Transformer2DModel(
            num_layers=8,
            num_single_layers=24,
            num_attention_heads=32,
            joint_attention_dim=12288,
            guidance_embeds=False,
        ),
        _klein,
    ),
    "Z-Image 6B": Model(lambda: _diffusers().ZImageTransformer2DModel(), _z_image),
}
"""Sizes as published; a sample has 512 tokens of text, of Z-Image 128."""


@cache
def _made(name: str) -> Any:
    with torch.device("meta"):
        return MODELS[name].make().to(torch.bfloat16)


@cache
def forward_operations(name: str, pixels: int) -> float:
    """Operations of one sample through a model once, 10^12 (a product and a sum are two).

    Args:
        name: A key of :data:`MODELS`.
        pixels: Width and height.
    """
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        MODELS[name].call(_made(name), pixels)
    return counter.get_total_flops() / 1e12


def hours(preset: str, model: str, card: str, pixels: int = 512) -> float:
    """Hours of a hundred iterations with the pictures of the preset.

    Args:
        preset: One without a plan that needs a curve.
        model: A key of :data:`MODELS`.
        card: A key of :data:`CARDS`. Weights are in 8 bits where 16 do not fit.
        pixels: Width and height.
    """
    config, known = preset_config(preset), CARDS[card]
    units, operations = units_of(config), forward_operations(model, pixels)
    weights = sum(parameter.numel() for parameter in _made(model).parameters()) / 1e9
    widened = 3.0 * weights / known.bandwidth if 2.0 * weights > 0.7 * known.memory else 0.0
    in_rollout = operations / (_ROLLOUT_SHARE * known.peak) + widened / _CALL
    in_update = operations / (_UPDATE_SHARE * known.peak) + widened / _CALL
    seconds = in_rollout * (units.rollout + units.compared) + 3.0 * in_update * units.trained
    pictures = ITERATIONS * config.prompts_per_iteration * config.group_size
    return pictures * seconds / 3600.0


def table(pixels: int) -> str:
    """Presets, models and cards, in Markdown."""
    columns = [(model, card) for model in MODELS for card in CARDS]
    rows = [
        f"| preset | pictures | units a picture | {' | '.join(f'{m}, {c}' for m, c in columns)} |",
        "|---" * (3 + len(columns)) + "|",
    ]
    for name in PRESETS:
        if name == "gcpo-v3":  # its plan is read off a curve; it costs what gcpo-script costs
            continue
        config = preset_config(name)
        pictures = ITERATIONS * config.prompts_per_iteration * config.group_size
        cells = []
        for model, card in columns:
            time = hours(name, model, card, pixels)
            cells.append(f"{time:.1f} h, {pictures / time:,.0f} / h")
        rows.append(
            f"| `{name}` | {pictures:,} | {units_of(config).total:.1f} | {' | '.join(cells)} |"
        )
    return "\n".join(rows)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.recipe_cost",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--pixels", type=int, default=512, help="width and height")
    print(table(parser.parse_args().pixels))


if __name__ == "__main__":
    main()
