"""What the graph of a prompt tells of values before any node has made them.

Legend: a graph is node id -> ``{"class_type": ..., "inputs": {...}}``; an input that is a list of
two is a link, ``[node id, output]``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..chunk_grpo_core.rewards.taste.importing.comfy_graph import is_link

__all__ = ["check_steps_of_plans", "is_lora_file"]

_TRAIN, _PLAN = "ChunkGRPO_TrainLoRA", "ChunkGRPO_PlanChunks"
_CURVE, _ROLL_OUT = "ChunkGRPO_AnalyzeTemporalDynamics", "ChunkGRPO_RollOutTrajectories"
_SIGMAS, _FILE = "ChunkGRPO_ShiftedSigmas", "ChunkGRPO_LoadLoRAFile"


def check_steps_of_plans(graph: Any) -> None:
    """Refuse a plan from a curve of other steps than those of its training.

    Only what stands in the graph itself is compared: the steps of two Shifted Sigmas nodes, as
    numbers and not through links.

    Args:
        graph: That of the prompt; None if nobody knows it.

    Raises:
        ValueError: The plan cannot fit.
    """
    if not isinstance(graph, Mapping):
        return
    for train, node in graph.items():
        if not isinstance(node, Mapping) or node.get("class_type") != _TRAIN:
            continue
        rolled = train
        for name, kind in (("plan", _PLAN), ("curve", _CURVE), ("trajectories", _ROLL_OUT)):
            rolled = _source(graph, rolled, name, kind)
        measured, trained = (
            _number(graph, _source(graph, end, "sigmas", _SIGMAS)) for end in (rolled, train)
        )
        if measured is not None and trained is not None and measured != trained:
            raise ValueError(
                f"plan of Train LoRA (RL) comes from a curve of {measured} steps, but its sigmas "
                f"have {trained}; a plan fits the steps it was measured with. Link the same sigmas "
                "to Roll Out Trajectories and to Train LoRA (RL)"
            )


def is_lora_file(graph: Any, node: str | None, name: str) -> bool:
    """Whether an input of a node is linked to Load LoRA File, which reads a file and nothing else.

    Args:
        graph: That of the prompt; None if nobody knows it.
        node: Its id.
        name: That of the input.
    """
    is_known = isinstance(graph, Mapping) and node in graph
    return is_known and _source(graph, node, name, _FILE) is not None


def _source(graph: Mapping[str, Any], node: str | None, name: str, kind: str) -> str | None:
    """Id of the node of a class that an input is linked to; None if it is linked to no such."""
    link = _input(graph, node, name)
    if not is_link(link):
        return None
    source = graph.get(link[0])
    is_kind = isinstance(source, Mapping) and source.get("class_type") == kind
    return link[0] if is_kind else None


def _number(graph: Mapping[str, Any], node: str | None) -> int | None:
    """The steps that a node says; None where they come through a link."""
    steps = _input(graph, node, "steps")
    return steps if isinstance(steps, int) and not isinstance(steps, bool) else None


def _input(graph: Mapping[str, Any], node: str | None, name: str) -> Any:
    return None if node is None else (graph[node].get("inputs") or {}).get(name)
