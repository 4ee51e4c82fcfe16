"""PROTOCOL.md in code: what trains, with which guards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from chunk_grpo_core.train.config import TrainConfig

from ..race.arms import ARMS as RACE
from ..race.arms import Arm as Recipe
from ..race.arms import config_of as race_config

__all__ = ["ARMS", "RATES", "SEEDS", "UNITS", "Arm", "config_of"]

SEEDS = (0, 1, 2)
UNITS = 8_000
"""Length of a run, see ``race/units.py``."""


@dataclass(frozen=True)
class Arm:
    """One way to train on a head."""

    what: str
    balance: float = 0.5
    """Share of prompt following, see ``rewards/balance.py``: 0 is taste alone."""
    pessimism: float = 0.0
    judges_itself: bool = False
    """Prompt following is what the model says of its own pictures (``rewards/follows_prompt.py``),
    not what is really there. Its calls are counted."""
    settings: Mapping[str, object] = field(default_factory=dict)
    picks: tuple[int, ...] = (40,)
    """Numbers of picks that it is run with."""
    refits: bool = False
    """Half of the picks at half-time, on the newest pictures."""
    stops: bool = False
    """Ends with the weights from before when adherence falls, see ``measure/reward_fell.py``."""
    offline: str = ""
    """Without a head and rollouts: dpo or kto, see ``offline.py``."""
    units: int = UNITS
    seeds: tuple[int, ...] = SEEDS
    tastes: tuple[str, ...] | None = None
    """All of them if None."""
    is_preparation: bool = False
    """It decides on a setting, and is no result."""


_RATE = "optimizer.learning_rate"
RATES = ("3e-4", "1e-3")
"""Learning rates that are screened."""


def _noise(noise: str) -> Arm:
    return Arm(
        f"dpo, {noise} noise",
        offline="dpo",
        settings={_RATE: 1e-3, "preference.noise": noise},
        picks=(160,),
        units=2_000,
        seeds=(0, 1, 2, 3, 4),
        tastes=("large blue", "clean", "yellow triangles"),
        is_preparation=True,
    )


def _screen(objective: str, rate: str) -> Arm:
    return Arm(
        f"{objective}, learning rate {rate}",
        offline=objective,
        settings={_RATE: float(rate)},
        picks=(160,),
        units=4_000,
        seeds=(100,),
        tastes=("large blue", "clean"),
        is_preparation=True,
    )


ARMS: dict[str, Arm] = {
    "default": Arm("taste and prompt following half and half, with a leash", picks=(40, 160)),
    "no-prompt": Arm("taste alone, with a leash", balance=0.0, picks=(40, 160)),
    "balance-25": Arm("a quarter of prompt following", balance=0.25),
    "balance-75": Arm("three quarters of prompt following", balance=0.75),
    "no-leash": Arm("half and half, without a leash", settings={"forward.kl_ref": 0.0}),
    "pessimism": Arm("half and half, pessimism 1", pessimism=1.0),
    "stop": Arm("taste alone, ended when adherence falls", balance=0.0, stops=True),
    "default-stop": Arm("the default, ended when adherence falls", stops=True),
    "own-judge": Arm("half and half, judged by the model itself", judges_itself=True, picks=(160,)),
    "two-rounds": Arm("half and half, 20 picks first and 20 at half-time", refits=True),
    "dpo": Arm("offline, pairs", offline="dpo", picks=(40, 160)),
    "kto": Arm("offline, liked and not", offline="kto", picks=(40, 160)),
    **{f"noise-{noise}": _noise(noise) for noise in ("stored", "fresh")},
    **{
        f"screen-{objective}-{rate}": _screen(objective, rate)
        for objective in ("dpo", "kto")
        for rate in RATES
    },
}


def config_of(arm: Arm, seed: int) -> TrainConfig:
    """All settings of a run: those of the race's winner, with one scale for both rewards."""
    patch = {"advantage.combine": "advantages", **arm.settings}
    return race_config(Recipe(arm.what, {**RACE["awm"].base, **patch}), 0, seed)
