"""Every key of a configuration file: its table, its type, what it means, and whose setting it is.

Types and meanings are read off the dataclasses that own the settings, so that a file, its errors
and its comments cannot disagree with the code.
"""

from __future__ import annotations

import ast
import difflib
import inspect
import math
import textwrap
from collections.abc import Mapping, Set
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from typing import Any, get_type_hints

from ..models.family import ModelTable
from ..models.registry import FAMILIES
from ..prompts.example import is_unicode
from ..prompts.split import PromptConfig
from ..settings.declared import EachOf, OneOf, Range, limits_of, shortened
from ..train.config import PARTS, TrainConfig
from .run_config import GridTable, PlanTable, PromptTable, RunTable

__all__ = ["Key", "checked", "keys", "nearest", "tables"]


@dataclass(frozen=True)
class Key:
    """One key of a file."""

    table: str
    """Empty for a key at the top of the file, before the first table."""
    name: str
    kind: Any
    """Its type, as annotated."""
    doc: str
    setting: str = ""
    """Dotted name in ``TrainConfig``; empty if it is not a setting of the training."""
    is_path: bool = False

    @property
    def dotted(self) -> str:
        """The key as ``--set`` takes it: ``iterations``, ``optimizer.learning_rate``."""
        return f"{self.table}.{self.name}" if self.table else self.name

    @property
    def can_be_none(self) -> bool:
        """Whether the text "none" is allowed."""
        return type(None) in getattr(self.kind, "__args__", ())

    @property
    def allowed(self) -> str:
        """What may stand there."""
        choices = _CHOICES[_plain(self.kind)]
        return f'{choices}, or "none"' if self.can_be_none else choices


_CHOICES = {
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "str": "a text in quotes",
    "float | str": "a number or a text in quotes",
    "tuple[str, ...]": "a list of texts",
    "tuple[float, ...]": "a list of numbers",
}
_LONGEST_NAME = 100
"""Characters of a name that are compared with others, which takes longer the more there are."""
_LARGEST = 2**63 - 1
"""Of whole numbers, as TOML says."""
_PATHS = {"file", "held_out_file", "wildcards", "folder", "continue_from", "picks"}


@cache
def keys(model: type[ModelTable] = ModelTable) -> dict[str, dict[str, Key]]:
    """Table -> name -> key, in the order of a file; the table "" is the top of it.

    Args:
        model: What a family has in [model] beside ``type``.
    """
    families = ", ".join(f'"{family.name}" ({family.title})' for family in FAMILIES.values())
    elsewhere = {*PARTS, "grid", "plan"}
    of_parts = {table: _of(kind, table, f"{table}.", _PATHS) for table, kind in PARTS.items()}
    of_run = of_parts.pop("run")
    plain = {name: key for name, key in _of(TrainConfig, "", "").items() if name not in elsewhere}
    return {
        "": plain,
        "model": {
            "type": Key("model", "type", str, f"Family of the model: {families}."),
            **_of(model, "model", paths=model.paths),
        },
        "prompts": {
            **_of(PromptTable, "prompts", paths=_PATHS),
            **_of(PromptConfig, "prompts"),
        },
        "grid": _of(GridTable, "grid"),
        "plan": _of(PlanTable, "plan"),
        **of_parts,
        "run": {**_of(RunTable, "run", paths=_PATHS), **of_run},
    }


def tables() -> list[str]:
    """All tables of a file, ``reward`` included."""
    return [*filter(None, keys()), "reward"]


def nearest(word: str, names: list[str]) -> str:
    """``; did you mean X?`` or the list of what there is."""
    near = difflib.get_close_matches(word[:_LONGEST_NAME], names, n=1)
    return f"; did you mean {near[0]}?" if near else f"; there are {', '.join(names)}"


def checked(key: Key, value: object) -> object:
    """Make sure that a value read from a file has the type of its key.

    Returns:
        The value; lists as tuples, whole numbers as floats where a float is wanted, "none" as None.

    Raises:
        ValueError: It has another type, is not finite, or is a text that no file can hold; the
            message says what is allowed.
    """
    if key.can_be_none and value == "none":
        return None
    for entry in value if isinstance(value, list) else (value,):
        if isinstance(entry, str) and not is_unicode(entry):
            raise ValueError(
                f"{key.dotted} is {shortened(value)}, which holds half a character (a lone "
                "surrogate); write it again"
            )
    kinds = _plain(key.kind)
    if kinds.startswith("tuple") and isinstance(value, list):
        item = "str" if "str" in kinds else "float"
        if all(_is(entry, item) for entry in value):
            return tuple(value if item == "str" else map(float, value))
    for kind in kinds.split(" | "):
        if _is(value, kind):
            return float(value) if kind == "float" else value  # type: ignore[arg-type]
    is_odd = "float" in kinds and isinstance(value, float)  # nan or inf
    allowed = "finite" if is_odd else key.allowed
    raise ValueError(f"{key.dotted} is {shortened(value)}; it must be {allowed}")


def _is(value: object, kind: str) -> bool:
    if isinstance(value, bool):
        return kind == "bool"
    if isinstance(value, int):
        return kind in ("int", "float") and -_LARGEST <= value <= _LARGEST
    if isinstance(value, float):
        return kind == "float" and math.isfinite(value)
    return isinstance(value, str) and kind == "str"


def _plain(kind: Any) -> str:
    """``int | None`` -> ``int``."""
    text = kind.__name__ if isinstance(kind, type) and not hasattr(kind, "__args__") else str(kind)
    return text.removesuffix(" | None")


def _of(
    kind: type, table: str, prefix: str | None = None, paths: Set[str] = frozenset()
) -> dict[str, Key]:
    """Keys for all fields of a dataclass; ``prefix`` if they are settings of the training."""
    hints, docs, limits = get_type_hints(kind), _field_docs(kind), limits_of(kind)
    return {
        field.name: Key(
            table,
            field.name,
            hints[field.name],
            _with_range(docs.get(field.name, ""), limits[field.name].bounds),
            "" if prefix is None else prefix + field.name,
            field.name in paths,
        )
        for field in fields(kind)
    }


def _with_range(doc: str, bounds: Range | OneOf | EachOf | None) -> str:
    """What a key means, and the numbers that it may have."""
    if not isinstance(bounds, Range):
        return doc
    return f"{doc} Allowed: {str(bounds).removeprefix('from ')}.".strip()


def _field_docs(kind: type) -> Mapping[str, str]:
    """The text under each field of a dataclass, also inherited; Python itself forgets it."""
    docs: dict[str, str] = {}
    for base in reversed([base for base in kind.__mro__ if is_dataclass(base)]):
        docs |= _texts_below_fields(base)
    return docs


def _texts_below_fields(kind: type) -> dict[str, str]:
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(body, ast.ClassDef)
    docs = {}
    for field, text in zip(body.body, body.body[1:], strict=False):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(text, ast.Expr)
            and isinstance(text.value, ast.Constant)
        ):
            docs[field.target.id] = " ".join(str(text.value.value).replace("``", "").split())
    return docs
