"""Nodes that judge pictures."""

from __future__ import annotations

import torch
from comfy_api.latest import io, ui

from ..chunk_grpo_core.pictures import best_first, enlargement, image_grid
from ..chunk_grpo_core.rewards import load_reward
from ..chunk_grpo_core.rewards.base import Reward
from ..chunk_grpo_core.rewards.combined import CombinedReward, WeightedReward
from .types import CATEGORY, RewardSocket
from .validation import verdict

__all__ = ["CombineRewards", "LoadReward", "ScoreImages", "prompts_for"]


_WITHOUT_FILES = ["tiny_world", "target_colour"]


class LoadReward(io.ComfyNode):
    """Name -> reward."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """See ComfyUI's V3 node interface."""
        return io.Schema(
            node_id="ChunkGRPO_LoadReward",
            display_name="Load Reward",
            category=f"{CATEGORY}/rewards",
            description="What the training maximises.",
            inputs=[
                io.Combo.Input(
                    "name",
                    options=_WITHOUT_FILES,
                    default="tiny_world",
                    tooltip="tiny_world: reads colour, shape, size, count and background from "
                    "pictures of the tiny FLUX and compares them with the caption. target_colour: "
                    "how close all pixels are to one colour; for a first try with any model.",
                ),
                io.String.Input(
                    "colour",
                    default="#2060c0",
                    tooltip="For target_colour: six hexadecimal digits, red green blue.",
                ),
            ],
            outputs=[
                RewardSocket.Output(
                    "reward",
                    display_name="reward",
                    tooltip="For Train LoRA, Score Images and Combine Rewards.",
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, name: str | None, colour: str | None) -> bool | str:
        """Refuse an unknown name or colour before anything runs."""
        return verdict(_load, name, colour)

    @classmethod
    def execute(cls, name: str, colour: str) -> io.NodeOutput:
        """Load it."""
        return io.NodeOutput(_load(name, colour))


def _load(name: str, colour: str) -> Reward:
    return load_reward(name, **({"colour": colour} if name == "target_colour" else {}))


def _weight(name: str, reward: str, *, optional: bool = False) -> io.Float.Input:
    return io.Float.Input(
        name,
        default=1.0,
        min=-1000.0,
        max=1000.0,
        step=1e-4,
        round=1e-4,
        optional=optional,
        tooltip=f"Factor of {reward}. Below 0 makes it small; 0 records it without training on it.",
    )


class CombineRewards(io.ComfyNode):
    """Two to four rewards and their weights -> reward."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """See ComfyUI's V3 node interface."""
        return io.Schema(
            node_id="ChunkGRPO_CombineRewards",
            display_name="Combine Rewards",
            category=f"{CATEGORY}/rewards",
            description="The weighted sum of several rewards, as one reward.",
            inputs=[
                RewardSocket.Input("reward_1", tooltip="From Load Reward or Combine Rewards."),
                RewardSocket.Input("reward_2", tooltip="A second reward."),
                _weight("weight_1", "reward_1"),
                _weight("weight_2", "reward_2"),
                RewardSocket.Input("reward_3", optional=True, tooltip="A third reward."),
                RewardSocket.Input(
                    "reward_4",
                    optional=True,
                    tooltip="A fourth reward. For more, put one Combine Rewards behind another.",
                ),
                _weight("weight_3", "reward_3", optional=True),
                _weight("weight_4", "reward_4", optional=True),
            ],
            outputs=[
                RewardSocket.Output(
                    "reward",
                    display_name="reward",
                    tooltip="For Train LoRA, Score Images and Combine Rewards.",
                )
            ],
        )

    @classmethod
    def execute(
        cls,
        reward_1: Reward,
        reward_2: Reward,
        weight_1: float,
        weight_2: float,
        reward_3: Reward | None = None,
        reward_4: Reward | None = None,
        weight_3: float = 1.0,
        weight_4: float = 1.0,
    ) -> io.NodeOutput:
        """Combine those that are connected."""
        rewards = (reward_1, reward_2, reward_3, reward_4)
        weights = (weight_1, weight_2, weight_3, weight_4)
        parts = [
            WeightedReward(reward=reward, weight=weight)
            for reward, weight in zip(rewards, weights, strict=True)
            if reward is not None
        ]
        return io.NodeOutput(CombinedReward(parts))


def prompts_for(text: str, count: int) -> list[str]:
    """One prompt for each of ``count`` pictures: the same for all, or one line for each.

    Raises:
        ValueError: There are several lines, but not one for each picture.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()] or [""]
    if len(lines) == 1:
        return lines * count
    if len(lines) != count:
        raise ValueError(
            f"{len(lines)} prompts for {count} pictures; write one prompt, or one line per picture"
        )
    return lines


class ScoreImages(io.ComfyNode):
    """IMAGE and prompts -> scores, table, sorted grid."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """See ComfyUI's V3 node interface."""
        return io.Schema(
            node_id="ChunkGRPO_ScoreImages",
            display_name="Score Images",
            category=f"{CATEGORY}/rewards",
            description="Score pictures with a reward and show them best first.",
            inputs=[
                RewardSocket.Input("reward", tooltip="From Load Reward or Combine Rewards."),
                io.Image.Input("images", tooltip="One or more pictures."),
                io.String.Input(
                    "prompt",
                    multiline=True,
                    tooltip="The prompt of all pictures, or one line for each.",
                ),
            ],
            outputs=[
                io.Float.Output("mean", display_name="mean", tooltip="Mean of the valid scores."),
                io.String.Output(
                    "table",
                    display_name="table",
                    tooltip="One line per picture: number, score, prompt.",
                ),
                io.Image.Output(
                    "grid",
                    display_name="grid",
                    tooltip="All pictures with their scores, best first.",
                ),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, reward: Reward, images: torch.Tensor, prompt: str) -> io.NodeOutput:
        """Score, sort, draw."""
        prompts = prompts_for(prompt, len(images))
        pictures = images[..., :3].cpu().float()
        batch = reward.score(pictures, prompts)
        shown = batch.known
        order = best_first(shown).tolist()
        table = "\n".join(
            f"{index}\t{float(shown[index]):.4f}\t{prompts[index]}" for index in range(len(prompts))
        )
        captions = [f"#{index}  {float(shown[index]):.3f}" for index in order]
        grid = image_grid(pictures[order], scale=enlargement(pictures), captions=captions)
        mean = float(shown.nanmean())
        return io.NodeOutput(mean, table, grid[None], ui=ui.PreviewText(table))
