"""From the names that a LoRA's layers have in their file to those of a model.

Legend: r rank, h hidden size.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Set

from .architectures import likely_architecture, some_names
from .contents import LoraContents
from .flux_names import (
    diffusers_to_native,
    flux_modules,
    is_block_layer,
    native_to_diffusers,
)
from .layers import Layout, LoraLayer, Piece, fused

__all__ = ["for_modules", "in_layout", "spellings"]

_Layers = Mapping[str, LoraLayer]
_RENAME = {"native": diffusers_to_native, "diffusers": native_to_diffusers}
#: Prefix of names that are native beyond doubt.
_NATIVE = "diffusion_model."
_QKV = ".linear1_qkv"


def spellings(modules: Iterable[str]) -> dict[str, str]:
    """Names of a model's layers, with dots and with underscores for them -> the names."""
    return {spelling: name for name in modules for spelling in (name.replace(".", "_"), name)}


def for_modules(contents: LoraContents, modules: Set[str]) -> dict[str, LoraLayer]:
    """Name the layers of a LoRA as a model does; FLUX.1's are renamed, cut or fused if needed.

    Args:
        contents: The LoRA.
        modules: Names of the model's layers that can carry one.

    Returns:
        Module name -> layer. Layers of FLUX.1 may be none of ``modules``.

    Raises:
        ValueError: A name is not known, or a layer is there twice.
    """
    names = spellings(modules)
    placed = _under(names, {n: layer for n, layer in contents.layers.items() if n in names})
    others = {n: layer for n, layer in contents.layers.items() if n not in names}
    known = flux_modules()
    layout: Layout | None = next((known[name][0] for name in modules if name in known), None)
    renamed, strange = _flux_named(others, layout) if layout else ({}, sorted(others))
    if strange:
        raise not_in_adapter(strange, len(contents.layers), modules)
    if twice := placed.keys() & renamed.keys():
        raise _twice(twice)
    return placed | renamed


def not_in_adapter(missing: Iterable[str], count: int, modules: Iterable[str]) -> ValueError:
    """Say which of the ``count`` layers of a LoRA an adapter on ``modules`` lacks."""
    missing, theirs, ours = (
        list(missing),
        likely_architecture(missing),
        likely_architecture(modules),
    )
    if theirs is not None and theirs != ours:
        advice = f"The LoRA looks like one for {theirs}; use the model that it was made for"
    else:
        advice = "Use the model that it was made for, and lora.targets that take its layers"
    return ValueError(
        f"{len(missing)} of the {count} layers of this LoRA are none of the adapter's: "
        f"{some_names(missing)}; the adapter has, for example, {min(modules)}. {advice}"
    )


def in_layout(contents: LoraContents, to: Layout) -> dict[str, LoraLayer]:
    """Name the layers of a LoRA in a layout, without a model to compare with.

    FLUX.1's are renamed, cut or fused. Those of other architectures can only stay native.

    Raises:
        ValueError: A name is none of FLUX.1's, and it must be known.
    """
    native = contents.prefixes == {_NATIVE}
    layers, strange = _flux_named(contents.layers, to, only_native=native)
    if not strange:
        return layers
    if to == "native" and native:
        if wrong := [name for name in contents.layers if not _may_be_native(name)]:
            raise ValueError(
                f"{len(wrong)} of the {len(contents.layers)} layers of this LoRA are no layers of "
                f"a FLUX: {some_names(wrong)}; the names are damaged"
            )
        return dict(contents.layers)
    architecture = likely_architecture(strange)
    hint = f"; they look like {architecture}" if architecture not in (None, "FLUX.1") else ""
    raise ValueError(
        f"{len(strange)} of the {len(contents.layers)} layers of this LoRA are not layers of "
        f"FLUX.1: {some_names(strange)}{hint}. Only FLUX.1 LoRAs have names in both layouts"
    )


def _flux_named(
    layers: _Layers, to: Layout, *, only_native: bool = False
) -> tuple[dict[str, LoraLayer], list[str]]:
    """FLUX.1's layers under their names in a layout, and the names of the others."""
    known = flux_modules()
    by_layout: dict[Layout, dict[str, LoraLayer]] = {"native": {}, "diffusers": {}}
    strange = []
    for spelling, layer in _whole(layers).items():
        layout, name = known.get(spelling, (None, spelling))
        if layout is None or (only_native and layout != "native"):
            strange.append(spelling)
        elif name in by_layout[layout]:
            raise _twice({name})
        else:
            by_layout[layout][name] = layer
    if strange:
        return {}, sorted(strange)
    kept = by_layout.pop(to)
    (others,) = by_layout.values()
    renamed = _RENAME[to](others)
    if twice := kept.keys() & renamed.keys():
        raise _twice(twice)
    return kept | renamed, []


def _whole(layers: _Layers) -> dict[str, LoraLayer]:
    """With the rows of Q, K and V in linear1, which XLabs trains, as a layer linear1."""
    out: dict[str, LoraLayer] = {}
    for name, layer in layers.items():
        if name.endswith(_QKV) and layer.b.shape[0] % 3 == 0:
            rows = layer.b.shape[0] // 3 * 7
            name, layer = name.replace(_QKV, ".linear1"), fused([Piece(layer=layer, first=0)], rows)
        if name in out:
            raise _twice({name})
        out[name] = layer
    return out


def _under(names: Mapping[str, str], layers: _Layers) -> dict[str, LoraLayer]:
    out: dict[str, LoraLayer] = {}
    for spelling, layer in layers.items():
        if names[spelling] in out:
            raise _twice({names[spelling]})
        out[names[spelling]] = layer
    return out


def _may_be_native(name: str) -> bool:
    """Whether a name that begins like a FLUX block goes on like one, too."""
    return is_block_layer(name) or not re.match("(double|single)_blocks", name)


def _twice(names: Iterable[str]) -> ValueError:
    return ValueError(
        f"this LoRA gives {some_names(names)} twice, under two spellings; a file must hold one "
        "LoRA, in one layout"
    )
