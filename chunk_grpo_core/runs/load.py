"""What a configuration names: prompts, rewards, the model, a LoRA to start from."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from ..configfile.run_config import RunConfig
from ..lora.contents import LoraContents, read_lora
from ..lora.continuing import start_from
from ..lora.files import load_lora
from ..method.reward import NoReward, Reward
from ..models.diffusers_policy import DiffusersPolicy
from ..prompts.example import Prompt
from ..prompts.files import PromptLine, read_prompt_file
from ..prompts.split import PromptSet, make_prompt_set
from ..prompts.wildcards import WildcardFolder
from ..rewards import load_reward
from ..rewards.balance import BalancedReward
from ..rewards.combined import CombinedReward, WeightedReward
from ..rewards.follows_prompt import EMPTY
from ..rewards.taste.picks import Taste
from ..settings.blaming import blaming
from .preferences import judged_prompts

__all__ = ["load_policy", "load_prompts", "load_rewards"]


def load_prompts(config: RunConfig) -> PromptSet:
    """Read and split the prompts; those of a run that is the source are as it recorded them.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: A line is wrong, or none is left to train on.
    """
    if config.recorded is not None:
        return config.recorded
    table, family = config.prompts, config.model.family
    held_out = read_prompt_file(table.held_out_file) if table.held_out_file else []
    if config.settings.algorithm == "preference":
        if family.captions is not None and not held_out:
            held_out = _lines(family.captions().held_out, f"held-out captions of {family.title}")
        preference = config.settings.preference
        taste = Taste(preference.picks)
        return judged_prompts(taste, preference.objective, held_out, config.prompt_config)
    if table.file:
        lines = read_prompt_file(table.file)
    elif family.captions is None or table.text:
        lines = _lines(table.text, "prompts.text")
    else:
        captions = family.captions()
        lines = _lines(captions.train, f"captions of {family.title}")
        held_out = held_out or _lines(captions.held_out, f"held-out captions of {family.title}")
    folder = WildcardFolder(table.wildcards) if table.wildcards else None
    return make_prompt_set(lines, held_out, config.prompt_config, folder)


def load_rewards(config: RunConfig) -> Reward:
    """Load the rewards; several, or one with a weight, become a combination; without any nothing is
    measured.

    Raises:
        FileNotFoundError: A file that one of them needs is missing.
        ValueError: A setting is out of range; the message names the reward, and of several tables
            its number.
    """
    if not config.rewards:
        return NoReward()
    weighted, balanced = [], None
    for number, entry in enumerate(config.rewards, start=1):
        with blaming(f"[[reward]] {number}") if len(config.rewards) > 1 else nullcontext():
            reward = load_reward(entry.name, **entry.settings)
        if entry.balance is None:
            weighted.append(WeightedReward(reward=reward, weight=entry.weight))
        else:
            balanced = reward, entry.balance
    others = _combined(weighted)
    return BalancedReward(others, *balanced) if balanced else others


def _combined(weighted: list[WeightedReward]) -> Reward:
    if len(weighted) == 1 and weighted[0].weight == 1.0:
        return weighted[0].reward
    return CombinedReward(weighted)


def load_policy(
    config: RunConfig,
    prompts: Sequence[Prompt],
    *,
    lora: Path | None = None,
    keep_on_cpu: bool = False,
) -> DiffusersPolicy[Any]:
    """Load the model with a fresh adapter, or with a LoRA file in it.

    The file is read first: a model takes minutes.

    Args:
        config: What to load.
        prompts: All prompts that it will be asked for; the empty one, with which a model judges
            its own pictures (``rewards/follows_prompt.py``), is added.
        lora: In any layout that can be read; ``run.continue_from`` if there is none.
        keep_on_cpu: See :class:`~chunk_grpo_core.models.family.Load`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not a plain LoRA of this model, or has a higher rank than the adapter.
    """
    settings, model = config.settings, config.model
    path = lora or (Path(config.run.continue_from) if config.run.continue_from else None)
    contents = _read(path) if path else None
    policy = model.family.load(
        model.table, [*prompts, EMPTY], settings.lora, settings.seed, keep_on_cpu=keep_on_cpu
    )
    if contents is not None:
        adapter = policy.adapter
        with blaming(path):
            state = start_from(contents, adapter.state_dict(), adapter.config.scale)
        adapter.load_state_dict(state)
    return policy


def _read(path: Path) -> LoraContents:
    tensors, _ = load_lora(path)
    with blaming(path):
        return read_lora(tensors)


def _lines(texts: Sequence[str], where: str) -> list[PromptLine]:
    return [
        PromptLine(text=text, where=f"{where}, number {number}")
        for number, text in enumerate(texts, start=1)
    ]
