"""The command that lists families of models."""

# No ``from __future__ import annotations`` here: typer reads the annotations at run time.
from typing import Annotated, Any

import typer

from ..configfile.keys import keys
from ..models.family import Family
from ..models.registry import FAMILIES, family_named
from .outcome import AsJson
from .progress import clear_errors

__all__ = ["models"]

_SHOWN = ("width", "height", "guidance", "max_tokens")
"""Keys of [model] whose defaults are worth a line."""


def models(
    family: Annotated[
        str | None,
        typer.Argument(metavar="[FAMILY]", help="Show the keys of [model] for this one, too."),
    ] = None,
    as_json: AsJson = False,
) -> dict[str, object] | None:
    """List families of models: published checkpoints, sizes, licences, defaults, what was tested.

    For example: chunk-grpo models z-image
    """
    with clear_errors("nothing was written"):
        chosen = list(FAMILIES.values()) if family is None else [family_named(family)]
        facts = [family_facts(one) for one in chosen]
    if as_json:
        return {"families": facts}
    for one, its in zip(chosen, facts, strict=True):
        typer.echo(f"{one.name:15} {one.title}; needs {one.needs}")
        for checkpoint in one.checkpoints:
            name, size, licence = checkpoint.name, checkpoint.parameters, checkpoint.licence
            typer.echo(f"{'':15} {name}: {size}, {licence}")
        values = ", ".join(f"{key} {value:g}" for key, value in _defaults(one).items())
        values = f"by default {values}; " if values else ""
        typer.echo(f"{'':15} {values}{one.few_steps} steps")
        typer.echo(f"{'':15} {its['tested']}")
    if family is not None:
        for key in keys(chosen[0].table)["model"].values():
            typer.echo(f"  {key.name:24} {' '.join(key.doc.split())}")
    return None


def family_facts(family: Family[Any]) -> dict[str, object]:
    """What ``--json`` says of a family."""
    return {
        "type": family.name,
        "title": family.title,
        "needs": family.needs,
        "checkpoints": [
            {"name": one.name, "parameters": one.parameters, "licence": one.licence}
            for one in family.checkpoints
        ],
        "defaults": _defaults(family),
        "steps": family.few_steps,
        "tested": family.tested,
    }


def _defaults(family: Family[Any]) -> dict[str, float]:
    table = family.table()
    return {key: getattr(table, key) for key in _SHOWN if hasattr(table, key)}
