"""From the names that a LoRA's layers have in their file to those of a model.

Several families have layers of one name: attention in FLUX.1's double blocks, FLUX.2's, SD3's and
Qwen-Image's is ``transformer_blocks.0.attn.to_q`` in diffusers. Which family a file is for is told
by all of its names, and by its shapes; where that leaves two answers, the user is asked.

Legend: r rank.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence, Set

from ..settings.declared import shortened
from .architectures import likely_architecture, some_names
from .contents import LoraContents
from .layers import LAYOUTS, Layout, LoraLayer, Piece, fused
from .name_table import NameTable, twice
from .name_tables import FAMILIES, FLUX1, TABLES

__all__ = ["for_modules", "in_layout", "not_in_adapter", "renamed", "spellings"]

_Layers = Mapping[str, LoraLayer]
#: Prefix of names that are native beyond doubt, or so it should be: ai-toolkit puts it before
#: diffusers' names of Z-Image, too.
_NATIVE = "diffusion_model."
_QKV = ".linear1_qkv"


def spellings(modules: Iterable[str]) -> dict[str, str]:
    """Names of a model's layers, with dots and with underscores for them -> the names."""
    return {spelling: name for name in modules for spelling in (name.replace(".", "_"), name)}


def for_modules(contents: LoraContents, modules: Set[str]) -> dict[str, LoraLayer]:
    """Name the layers of a LoRA as a model does; they are renamed, cut or fused if needed.

    Args:
        contents: The LoRA.
        modules: Names of the model's layers that can carry one.

    Returns:
        Module name -> layer. Layers of a known family may be none of ``modules``.

    Raises:
        ValueError: A name is not known, a layer is there twice or has another shape.
    """
    names = spellings(modules)
    placed = _under(names, {n: layer for n, layer in contents.layers.items() if n in names})
    others = {n: layer for n, layer in contents.layers.items() if n not in names}
    if not others:
        return placed
    moved = renamed(others, modules)
    if moved is None:
        # Names of another family are strange here, though a table knows them all.
        raise not_in_adapter(_strange(others) or others, len(contents.layers), modules)
    if doubled := placed.keys() & moved.keys():
        raise twice(some_names(doubled))
    return placed | moved


def renamed(layers: _Layers, modules: Set[str]) -> dict[str, LoraLayer] | None:
    """Name layers as a model does, by the table of its family.

    Args:
        layers: Names in a file, without prefixes -> layer.
        modules: Names of the model's layers that can carry one.

    Returns:
        None if no family has both these names and the model's.

    Raises:
        ValueError: A layer has not the shape of the family's, or is there twice.
    """
    layers = _whole(layers)
    best: tuple[int, dict[str, LoraLayer]] | None = None
    errors: list[ValueError] = []
    for table in _knowing(layers):
        for to in LAYOUTS:
            if not any(to in table.spelled(name) for name in modules):
                continue
            try:
                found = table.convert(layers, to)
            except ValueError as error:
                errors.append(error)
                continue
            hits = len(found.keys() & modules)
            if best is None or hits > best[0]:
                best = hits, found
    if best is None and errors:
        raise errors[0]
    return None if best is None else best[1]


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


def in_layout(contents: LoraContents, to: Layout, family: str | None = None) -> _Layers:
    """Name the layers of a LoRA in a layout, without a model to compare with.

    They are renamed, cut or fused. Those of families without a table can only stay native.

    Args:
        contents: The LoRA.
        to: Layout wanted.
        family: One of :data:`~.name_tables.FAMILIES`; None to tell it by names and shapes.

    Raises:
        ValueError: There is no such family, a name is none of a family's that has both layouts, a
            layer has another shape, or the names fit two families.
    """
    if family is not None and family not in FAMILIES:
        raise ValueError(
            f"--model (family) is {shortened(family)}; it must be one of {', '.join(FAMILIES)}"
        )
    layers, native = _whole(contents.layers), contents.prefixes == {_NATIVE}
    asked = TABLES if family is None else (FAMILIES[family],)
    tables = _knowing(layers, asked)
    if not tables:
        if to == "native" and native and family is None:
            return _unchanged(contents)
        raise _unknown(layers, len(contents.layers), asked)
    if native:  # Qwen-Image's native names are diffusers' names of others
        tables = [t for t in tables if all("native" in t.spelled(n) for n in layers)] or tables
    answers: dict[frozenset[str], tuple[str, _Layers]] = {}
    errors: list[ValueError] = []
    for table in tables:
        try:
            found = table.convert(layers, to)
        except ValueError as error:
            errors.append(error)
        else:
            answers.setdefault(frozenset(found), (table.title, found))
    if len(answers) > 1:
        titles = " and of ".join(title for title, _ in answers.values())
        families = ", ".join(name for name, table in FAMILIES.items() if table in tables)
        raise ValueError(
            f"the layers of this LoRA ({some_names(contents.layers)}) may be layers of {titles}, "
            f"which have other {to} names; say which model it is for, with --model (family of "
            f"convert_lora), one of {families}"
        )
    if not answers:
        raise errors[0]
    ((_, found),) = answers.values()
    return found


def _knowing(layers: _Layers, tables: Iterable[NameTable] = TABLES) -> list[NameTable]:
    """The tables that have all of these names."""
    return [table for table in tables if all(table.spelled(name) for name in layers)]


def _strange(layers: _Layers, tables: Iterable[NameTable] = TABLES) -> list[str]:
    """The names that the table that knows most of them does not know."""
    left = ([name for name in _whole(layers) if not table.spelled(name)] for table in tables)
    return sorted(min(left, key=len))


def _unchanged(contents: LoraContents) -> _Layers:
    """A native LoRA of another family, if its names are not damaged."""
    if wrong := [name for name in contents.layers if not _may_be_native(name)]:
        raise ValueError(
            f"{len(wrong)} of the {len(contents.layers)} layers of this LoRA are no layers of "
            f"a FLUX: {some_names(wrong)}; the names are damaged"
        )
    return contents.layers


def _unknown(layers: _Layers, count: int, tables: Sequence[NameTable]) -> ValueError:
    strange = _strange(layers, tables)
    architecture = likely_architecture(strange)
    titles = [table.title for table in tables]
    hint = f"; they look like {architecture}" if architecture not in (None, *titles) else ""
    more = "" if len(tables) == 1 else ". Names in both layouts are known for these models alone"
    return ValueError(
        f"{len(strange)} of the {count} layers of this LoRA are not layers of "
        f"{' or '.join(titles)}: {some_names(strange)}{hint}{more}"
    )


def _whole(layers: _Layers) -> dict[str, LoraLayer]:
    """With the rows of Q, K and V in linear1, which XLabs trains, as a layer linear1."""
    out: dict[str, LoraLayer] = {}
    for name, layer in layers.items():
        if name.endswith(_QKV) and layer.b.shape[0] % 3 == 0:
            rows = layer.b.shape[0] // 3 * 7
            name, layer = name.replace(_QKV, ".linear1"), fused([Piece(layer=layer, first=0)], rows)
        if name in out:
            raise twice(name)
        out[name] = layer
    return out


def _under(names: Mapping[str, str], layers: _Layers) -> dict[str, LoraLayer]:
    out: dict[str, LoraLayer] = {}
    for spelling, layer in layers.items():
        if names[spelling] in out:
            raise twice(names[spelling])
        out[names[spelling]] = layer
    return out


def _may_be_native(name: str) -> bool:
    """Whether a name that begins like a FLUX block goes on like one, of a longer model, too."""
    return bool(FLUX1.pieces(name)) or not re.match("(double|single)_blocks", name)
