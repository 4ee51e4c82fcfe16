"""Nodes that judge pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from comfy_api.latest import io, ui

from ..chunk_grpo_core.method.reward import Reward
from ..chunk_grpo_core.prompts.example import Example
from ..chunk_grpo_core.rewards.balance import BALANCE, BalancedReward
from ..chunk_grpo_core.rewards.combined import CombinedReward, WeightedReward, check_weight
from ..chunk_grpo_core.rewards.pixels import as_colour
from ..chunk_grpo_core.watch.pictures import best_first, enlargement, image_grid
from .lazy import ask_next
from .score_rows import score_rows
from .types import CATEGORY, PromptSet, PromptsSocket, RewardSocket

__all__ = [
    "BalanceRewards",
    "CombineRewards",
    "PickBestImages",
    "ScoreImages",
    "examples_for",
    "prompts_for",
]


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
            description="Several rewards as one: their weighted sum or, with advantage_combine of "
            "GRPO Objective, each brought to one scale first.",
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
        for number, weight in enumerate((weight_1, weight_2, weight_3, weight_4), 1):
            check_weight(weight, f"weight_{number}")
        rewards = (reward_1, reward_2, reward_3, reward_4)
        weights = (weight_1, weight_2, weight_3, weight_4)
        weighted = [
            WeightedReward(reward=reward, weight=weight)
            for reward, weight in zip(rewards, weights, strict=True)
            if reward is not None
        ]
        return io.NodeOutput(CombinedReward(weighted))


class BalanceRewards(io.ComfyNode):
    """Two rewards and one number between them -> reward."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """See ComfyUI's V3 node interface."""
        return io.Schema(
            node_id="ChunkGRPO_BalanceRewards",
            display_name="Balance Rewards",
            category=f"{CATEGORY}/rewards",
            description="Your taste and what follows the prompt, with one slider between them. "
            "Both are brought to one scale first.",
            inputs=[
                RewardSocket.Input(
                    "taste", tooltip="What you want: a fitted taste, or an aesthetic score."
                ),
                RewardSocket.Input(
                    "prompt_following",
                    tooltip="What must not be lost for it, such as clipscore or vlm_judge.",
                ),
                io.Float.Input(
                    "balance",
                    default=BALANCE,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    display_mode=io.NumberDisplay.slider,
                    tooltip="0: taste alone, and pictures may ignore their prompts. 1: prompt "
                    "following alone. Both are measured and shown at every value.",
                ),
            ],
            outputs=[
                RewardSocket.Output(
                    "reward", display_name="reward", tooltip="For Train LoRA and Score Images."
                )
            ],
        )

    @classmethod
    def execute(cls, taste: Reward, prompt_following: Reward, balance: float) -> io.NodeOutput:
        """Balance the two."""
        return io.NodeOutput(BalancedReward(taste, prompt_following, balance))


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


def examples_for(texts: Sequence[str], examples: Sequence[Example]) -> list[Example]:
    """For each text the example that has it, or an example that is only the text.

    Raises:
        ValueError: Several examples have one of the texts, with different metadata.
    """
    by_text: dict[str, set[Example]] = {}
    for example in examples:
        by_text.setdefault(example.text, set()).add(example)
    for text in texts:
        if len(same := by_text.get(text, ())) > 1:
            raise ValueError(
                f"prompts holds {text!r} {len(same)} times, with different metadata, so it is not "
                "known with which to score its pictures; measure such prompts with Evaluate LoRA"
            )
    return [next(iter(by_text.get(text, ())), Example(text)) for text in texts]


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
                io.Image.Input("images", lazy=True, tooltip="One or more pictures."),
                io.String.Input(
                    "prompt",
                    multiline=True,
                    tooltip="The prompt of all pictures, or one line for each.",
                ),
                PromptsSocket.Input(
                    "prompts",
                    lazy=True,
                    optional=True,
                    tooltip="From Prompt Set: prompts that are in it are scored with their "
                    "metadata, such as target_text of a .jsonl file.",
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
                io.Float.Output(
                    "scores",
                    display_name="scores",
                    is_output_list=True,
                    tooltip="The score of every picture, in their order; nan where there is none. "
                    "For Pick Best Images.",
                ),
            ],
            is_output_node=True,
        )

    @classmethod
    def check_lazy_status(cls, **inputs: Any) -> list[str]:
        """Ask for the pictures when the reward is there: a wrong one is told before they are
        drawn."""
        return ask_next(inputs, (("images", "prompts"),))

    @classmethod
    def execute(
        cls,
        reward: Reward,
        images: torch.Tensor,
        prompt: str,
        prompts: PromptSet | None = None,
    ) -> io.NodeOutput:
        """Score, sort, draw."""
        pictures = as_colour(images.cpu().float(), "images")
        texts = prompts_for(prompt, len(pictures))
        with_metadata = (*prompts.train, *prompts.held_out) if prompts else ()
        batch = reward.score(pictures, examples_for(texts, with_metadata))
        shown = batch.known
        order = best_first(shown).tolist()
        table = "\n".join(
            f"{index}\t{float(shown[index]):.4f}\t{text}" for index, text in enumerate(texts)
        )
        captions = [f"#{index}  {float(shown[index]):.3f}" for index in order]
        grid = image_grid(pictures[order], scale=enlargement(pictures), captions=captions)
        mean = float(shown.nanmean())
        page = {**ui.PreviewText(table).as_dict(), **score_rows(pictures, texts, batch)}
        return io.NodeOutput(mean, table, grid[None], shown.tolist(), ui=page)


class PickBestImages(io.ComfyNode):
    """IMAGE and scores -> the best of them."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """See ComfyUI's V3 node interface."""
        return io.Schema(
            node_id="ChunkGRPO_PickBestImages",
            display_name="Pick Best Images",
            category=f"{CATEGORY}/rewards",
            description="The pictures with the highest scores, best first.",
            is_input_list=True,
            inputs=[
                io.Image.Input("images", tooltip="The pictures that were scored."),
                io.Float.Input(
                    "scores",
                    force_input=True,
                    tooltip="From Score Images: one for each picture. Pictures without a score "
                    "are never picked.",
                ),
                io.Int.Input("count", default=1, min=1, max=4096, tooltip="Pictures to keep."),
            ],
            outputs=[
                io.Image.Output("best", display_name="images", tooltip="The best, best first."),
                io.Float.Output(
                    "kept",
                    display_name="scores",
                    is_output_list=True,
                    tooltip="Their scores, best first.",
                ),
                io.Int.Output(
                    "numbers",
                    display_name="numbers",
                    is_output_list=True,
                    tooltip="Their places in the batch, from 0.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls, images: list[torch.Tensor], scores: list[float], count: list[int]
    ) -> io.NodeOutput:
        """Sort and cut."""
        pictures = one_batch(images)
        if len(scores) != len(pictures):
            raise ValueError(
                f"{len(pictures)} pictures need as many scores, got {len(scores)}; wire images and "
                "scores from the same Score Images"
            )
        order = best_first(torch.tensor(scores)).tolist()
        best = [index for index in order if math.isfinite(scores[index])][: count[0]]
        if not best:
            raise ValueError("no picture has a score; see the table of Score Images for them")
        return io.NodeOutput(pictures[best], [scores[index] for index in best], best)


def one_batch(images: Sequence[torch.Tensor]) -> torch.Tensor:
    """Join the batches of a list.

    Raises:
        ValueError: The pictures have several sizes.
    """
    sizes = {tuple(batch.shape[1:]) for batch in images}
    if len(sizes) > 1:
        raise ValueError(f"the pictures have several sizes: {sorted(sizes)}; they must have one")
    return torch.cat(list(images))
