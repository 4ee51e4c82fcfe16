"""The list of nodes, in the order of the data flow."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from comfy_api.latest import ComfyExtension, io

from .apply import ApplyLoRA
from .bridge.duels import add_duel_routes
from .bridge.routes import add_routes
from .bridge.tastes import add_taste_routes
from .dynamics import AnalyzeTemporalDynamics, PlanChunks, RollOutTrajectories
from .evaluation import EvaluateLoRA
from .exploration import GRPOExploration
from .fit_taste import FitTaste
from .forward_objective import ForwardObjective
from .load_reward import LoadReward
from .loras import LoadLoRAFile, SaveLoRA
from .numbers import check_limits, refuse_nan
from .objective import GRPOObjective
from .pick_pictures import PickPictures
from .plot_training import PlotTraining
from .preference_objective import PreferenceObjective
from .presets import GRPOPreset
from .prompts import PromptSetNode
from .rewards import BalanceRewards, CombineRewards, PickBestImages, ScoreImages
from .sampling import FlowSDESampler, ShiftedSigmas
from .search import add_search_words
from .settings import GRPOSettings
from .tiny import LoadTinyFlux
from .training import TrainLoRA

__all__ = ["ChunkGRPOExtension"]


class ChunkGRPOExtension(ComfyExtension):
    """What ComfyUI loads."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """All nodes of this pack, and the routes that their panels in the page ask."""
        add_routes()
        add_taste_routes()
        add_duel_routes()
        nodes = [
            LoadTinyFlux,
            PromptSetNode,
            FlowSDESampler,
            ShiftedSigmas,
            RollOutTrajectories,
            AnalyzeTemporalDynamics,
            PlanChunks,
            LoadReward,
            FitTaste,
            CombineRewards,
            BalanceRewards,
            ScoreImages,
            PickBestImages,
            PickPictures,
            GRPOPreset,
            GRPOSettings,
            GRPOObjective,
            GRPOExploration,
            ForwardObjective,
            PreferenceObjective,
            TrainLoRA,
            PlotTraining,
            SaveLoRA,
            LoadLoRAFile,
            ApplyLoRA,
            EvaluateLoRA,
        ]
        return [_finished(node) for node in nodes]


def _finished(node: type[io.ComfyNode]) -> type[io.ComfyNode]:
    """Give a node what all have: words to search for, and numbers inside their limits."""
    plain = node.define_schema

    def define_schema(cls: type[io.ComfyNode]) -> io.Schema:
        schema = plain()
        add_search_words(schema)
        refuse_nan(schema)
        return schema

    limits = cache(plain)  # those of numbers are the same every time

    def held(method: Callable[..., Any]) -> Any:
        def within_limits(cls: type[io.ComfyNode], *values: Any, **inputs: Any) -> Any:
            check_limits(limits(), inputs)
            return method(cls, *values, **inputs)

        return classmethod(within_limits)

    node.define_schema = classmethod(define_schema)  # type: ignore[method-assign]
    for name in ("check_lazy_status", "execute"):
        method = getattr(node, name).__func__
        if method is not getattr(io.ComfyNode, name).__func__:
            setattr(node, name, held(method))
    return node
