"""What the campaign knows of settings, independently of the code that checks them."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Any

__all__ = ["FLUX", "KEYS", "Known", "nonsense_for", "sane_for"]

TOO_LARGE = (2**63, 9_200_000_000_000_000_000, 10**30)
"""Of sizes: more than any machine has."""
WRONG = ("", "abc", [], [1], {"a": 1}, "\u0000", "ｎａｎ", "1e-4")
"""For a number."""


@dataclass(frozen=True)
class Known:
    """What is known of one key."""

    kind: str
    """whole, number, flag, word or words."""
    sane: tuple[Any, ...]
    """Must be accepted, and stand in the record."""
    nonsense: tuple[Any, ...] = ()
    """Must be refused, besides what is nonsense for every key of the kind."""
    none: bool = False
    """Whether it can be left unset, as "none"."""


def _whole(*sane: int, low: int = 1, harmless: bool = False, none: bool = False) -> Known:
    """``harmless`` says that as much as one likes is no size that is taken."""
    return Known("whole", sane, (low - 1, -(2**40), *(() if harmless else TOO_LARGE)), none)


def _number(
    *sane: float, bad: tuple[float, ...] = (), harmless: bool = False, none: bool = False
) -> Known:
    """``harmless`` says that a huge number means no limit."""
    huge = () if harmless else (1e308, math.inf)
    return Known("number", sane, (-1e308, -1.0, -1e-9, *huge, *bad), none)


def _words(*sane: list[str]) -> Known:
    return Known("words", sane, ("divergence", ["no such"], ["divergence", 2], [["divergence"]]))


def _seed() -> Known:
    return Known("whole", (0, 1, 12345, 2**31 - 1))


def _word(*sane: str) -> Known:
    return Known("word", sane, ("", "Flow", "no such", "a" * 5000))


_FLAG = Known("flag", (True, False))

KEYS: dict[str, Known] = {
    "iterations": _whole(1, 2),
    "prompts_per_iteration": _whole(1, 2),
    "group_size": _whole(2, 3, 4, low=2),
    "chunk_fraction": _number(0.5, 1.0, bad=(0.0, 1.5)),
    "noise": _word("all", "window", "drawn"),
    "ode_solver": _word("euler", "dpm2"),
    "share_initial_noise": _FLAG,
    "batch_size": _whole(1, 2, none=True),
    "update_batch_size": _whole(1, 2, none=True),
    "score_while_sampling": _FLAG,
    "checkpoint_every": _whole(1, 2, 10, harmless=True),
    "evaluate_every": _whole(0, 1, low=0, harmless=True),
    "algorithm": _word("chunk_grpo"),
    "seed": _seed(),
    "self_test": _FLAG,
    "prompts.held_out": _whole(2, 3, low=0, harmless=True),
    "prompts.held_out_share": _number(0.0, bad=(1.0, 2.0)),
    "prompts.split_seed": _seed(),
    "prompts.variants": _whole(1, 2, harmless=True),
    "prompts.wildcard_seed": _seed(),
    "prompts.shuffle_seed": _seed(),
    "grid.steps": _whole(3, low=2),
    "grid.shift": _number(1.0, 3.0, 5, bad=(0.0, 1e-300)),
    "sde.rule": _word("flow"),
    "sde.eta": _number(0.3, 0.7, 1.0, bad=(100.0,)),
    "advantage.clamp": _number(1.0, 5.0, bad=(0.0,), harmless=True),
    "advantage.scale": _word("group-std"),
    "advantage.centre": _word("mean"),
    "advantage.keep": _whole(1, none=True),
    "advantage.combine": _word("rewards", "advantages"),
    "objective.clip_low": _number(1e-5, 1e-4, 0.2),
    "objective.clip_high": _number(1e-5, 1e-4, 0.2),
    "objective.ratio": _word("chunk"),
    "objective.trust_region": _word("clip"),
    "objective.kl_threshold": _number(1e-5, bad=(0.0,), harmless=True),
    "objective.ratio_norm": _FLAG,
    "objective.step_weights": _word("equal"),
    "objective.kl_old": _number(0.0, 0.01),
    "objective.kl_ref": _number(0.0, 0.001),
    "objective.kl_type": _word("velocity", "flow-grpo", "exact"),
    # The campaign's run is one of Chunk-GRPO, which refuses every other value by name.
    "forward.rank_steps": Known("whole", (0,), (-1, 1001, *TOO_LARGE)),
    "forward.objective": _word("awm"),
    "forward.times": Known("whole", (2,), (0, -1, 65, *TOO_LARGE)),
    "forward.time_distribution": _word("grid"),
    "forward.weight": _word("equal"),
    "forward.share_times": Known("flag", (False,)),
    "forward.kl_ref": _number(0.3),
    "forward.norm_guard": _number(0.0),
    "forward.beta": _number(1.0),
    "forward.clip": _number(1e-3, bad=(0.0,)),
    "forward.old": _word("rollout"),
    "forward.old_decay": _number(0.5, bad=(1.0, 2.0)),
    "preference.picks": Known("word", ("",), ("a folder that is not there",)),
    "preference.objective": _word("dpo"),
    "preference.times": Known("whole", (2,), (0, -1, 65, *TOO_LARGE)),
    "preference.time_distribution": _word("grid"),
    "preference.weight": _word("equal"),
    "preference.beta": _number(200.0, bad=(0.0,)),
    "preference.noise": _word("stored"),
    "optimizer.name": _word("adamw"),
    "optimizer.fused": _FLAG,
    "optimizer.learning_rate": _number(1e-5, 1e-3, 1e-2, bad=(0.0,)),
    "optimizer.weight_decay": _number(0.0, 1e-4, 0.1),
    "optimizer.beta1": _number(0.0, 0.9, bad=(1.0, 2.0)),
    "optimizer.beta2": _number(0.9, 0.999, bad=(1.0, 2.0)),
    "optimizer.eps": _number(1e-10, 1e-8, bad=(0.0,)),
    "optimizer.max_grad_norm": _number(0.1, 1.0, 10.0, bad=(0.0,), harmless=True),
    "optimizer.updates_per_rollout": Known("whole", (1,), (0, -1, 5, *TOO_LARGE)),
    "optimizer.epochs": _whole(1, 2),
    "optimizer.warmup_updates": _whole(0, 1, 5, low=0, harmless=True),
    "optimizer.ema_decay": _number(0.5, 0.9, bad=(1.0, 2.0, 0.0), none=True),
    "optimizer.recompute_log_p": Known("flag", (True, False), none=True),
    "lora.rank": _whole(1, 2, 4),
    "lora.alpha": _number(1.0, 2.0, 32.0, bad=(0.0,)),
    "lora.rs": _FLAG,
    "lora.targets": _word("attention", "attention+mlp"),
    "window.kind": _word("all"),
    "window.chunks": _whole(1, 2, 4),
    "window.start": _whole(0, 1, low=0),
    "window.stride": Known("whole", (1, 2, 4), (0, -1, 5, *TOO_LARGE)),
    "window.every": _whole(1, 25, 1000),
    "run.pictures": _whole(1, 2),
    "run.reward_retries": _whole(0, 1, 20, low=0),
    "run.reward_wait": _number(0.0, 0.5, 600.0, bad=(601.0,)),
    # The campaign's reward is no taste, so that a run that asks is refused by name; where nothing
    # asks, a setting of asking is.
    "ask.every": Known("whole", (0,), (-1, 5, *TOO_LARGE)),
    "ask.clicks": Known("whole", (16,), (0, 1, -1, 65, *TOO_LARGE)),
    "ask.pictures": Known("whole", (16,), (1, 2, -1, 65, *TOO_LARGE)),
    "ask.kind": Known("word", ("duels",), ("", "hearts", "Flow", "no such", "a" * 5000)),
    "ask.when_alarm": Known("flag", (False,)),
    "run.stop_on": _words([], ["divergence"], ["no-signal", "collapse"], ["all-masked"]),
}

FLUX: dict[str, Known] = {
    "model.width": Known("whole", (), (0, -512, 63, 100, 8208, *TOO_LARGE)),
    "model.height": Known("whole", (), (0, -512, 63, 100, 8208, *TOO_LARGE)),
    "model.guidance": _number(bad=(101.0,)),
    "model.max_tokens": _whole(),
    "model.gradient_checkpointing": _FLAG,
    "model.compile": _FLAG,
    "model.activation_budget": _number(bad=(1.01,)),
    "model.vae_tiling": _FLAG,
    "model.attention": Known("word", (), ("fast", "a" * 5000)),
    "model.weights": _word(),
    "model.device": Known("word", (), ("", "cuda:99", "tpu")),
    "model.text_cache": Known("word", (), ("a\0b",)),
    "model.path": Known("word", (), ("", "no such folder", "nobody/nothing", "a" * 5000)),
    "model.transformer": Known("word", (), ("no such.safetensors", "config.toml", ".")),
    "model.vae": Known("word", (), ("no such.safetensors", "config.toml", ".")),
    "model.clip": Known("word", (), ("no such.safetensors",)),
    "model.t5": Known("word", (), ("no such.safetensors",)),
    "model.clip_tokenizer": Known("word", (), ("no such folder",)),
    "model.t5_tokenizer": Known("word", (), ("no such folder",)),
}
"""Of a real model nonsense alone is tried: its weights are not here."""


def nonsense_for(known: Known, rng: random.Random) -> Any:
    """A value that no user can mean."""
    if known.kind == "flag":
        return rng.choice([1, 0, "yes", "true", [True], {"a": True}, 0.5, math.nan])
    if known.kind == "word":
        return rng.choice([*known.nonsense, 1, True, [], ["x"], {"a": "b"}, math.inf])
    if known.kind == "words":
        return rng.choice([*known.nonsense, 1, True, "", [1], {"a": "b"}, math.nan])
    every = [math.nan, -math.inf, True, *WRONG]
    wrong_kind = [0.5, -0.5, 1e300] if known.kind == "whole" else []
    return rng.choice([*every, *wrong_kind, *3 * known.nonsense])


def sane_for(known: Known, rng: random.Random) -> Any:
    """A value that must be accepted."""
    return rng.choice([*known.sane, "none"] if known.none else known.sane)
