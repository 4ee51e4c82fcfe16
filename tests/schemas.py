"""Inputs and outputs of the nodes, read from their source without ComfyUI."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

NODES = Path(__file__).resolve().parent.parent / "nodes"


@dataclass(frozen=True)
class Socket:
    """An input or an output of a node, under the name that users see."""

    name: str
    tooltip: bool


@dataclass(frozen=True)
class NodeSchema:
    """What a node's ``define_schema`` says."""

    node_id: str
    display_name: str
    inputs: tuple[Socket, ...]
    outputs: tuple[Socket, ...]


@functools.cache
def node_schemas() -> dict[str, NodeSchema]:
    """Return the schema of every node, by its id."""
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in sorted(NODES.glob("*.py"))]
    functions = {
        item.name: item for tree in trees for item in tree.body if isinstance(item, ast.FunctionDef)
    }
    schemas = [
        _schema(call, functions, _tables(tree))
        for tree in trees
        for call in ast.walk(tree)
        if _attribute(call) == "Schema"
    ]
    return {schema.node_id: schema for schema in schemas}


def _tables(tree: ast.Module) -> dict[str, list[ast.expr]]:
    """Name -> elements of every tuple of a module."""
    return {
        item.targets[0].id: item.value.elts
        for item in tree.body
        if isinstance(item, ast.Assign)
        and isinstance(item.targets[0], ast.Name)
        and isinstance(item.value, ast.Tuple)
    }


def _schema(
    call: ast.Call, functions: dict[str, ast.FunctionDef], tables: dict[str, list[ast.expr]]
) -> NodeSchema:
    given = {keyword.arg: keyword.value for keyword in call.keywords}
    sides = [
        tuple(_sockets(given[side].elts, functions, tables)) if side in given else ()
        for side in ("inputs", "outputs")
    ]
    return NodeSchema(given["node_id"].value, given["display_name"].value, *sides)


def _sockets(
    elements: list[ast.expr],
    functions: dict[str, ast.FunctionDef],
    tables: dict[str, list[ast.expr]],
) -> Iterator[Socket]:
    for element in elements:
        call = _plain(element.value if isinstance(element, ast.Starred) else element)
        if _attribute(call) in ("Input", "Output"):
            yield _socket(call)
            continue
        if call.func.id == "inputs_of":  # a table of SettingInput(name, key, tooltip, ...)
            for entry in tables[call.args[0].id]:
                yield Socket(entry.args[0].value, len(entry.args) > 2)
            continue
        made = _returned(functions[call.func.id])
        if isinstance(made, ast.List):  # a helper that gives several
            yield from _sockets(made.elts, functions, tables)
        else:  # a helper that gives one, named by its first argument if it has one
            of_helper = _socket(made)
            yield Socket(call.args[0].value, of_helper.tooltip) if call.args else of_helper


def _socket(call: ast.Call) -> Socket:
    given = {keyword.arg: keyword.value for keyword in call.keywords}
    tooltip = given.get("tooltip")
    said = tooltip is not None and not (isinstance(tooltip, ast.Constant) and not tooltip.value)
    shown = given.get("display_name") if _attribute(call) == "Output" else None
    name = shown or (call.args[0] if call.args else None)
    if isinstance(name, ast.Name):  # the argument of a helper
        return Socket(name.id, said)
    return Socket(name.value if name else call.func.value.attr.upper(), said)


def _returned(function: ast.FunctionDef) -> ast.expr:
    return _plain(next(item.value for item in function.body if isinstance(item, ast.Return)))


def _plain(call: ast.expr) -> ast.expr:
    """An input without ``rare``, which says only how it is shown."""
    is_rare = isinstance(call, ast.Call) and getattr(call.func, "id", "") == "rare"
    return call.args[0] if is_rare else call


def _attribute(node: ast.AST) -> str | None:
    is_call = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    return node.func.attr if is_call else None
