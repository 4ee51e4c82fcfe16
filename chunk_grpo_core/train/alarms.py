"""Is the run learning? Pure functions that judge the rows of metrics of the last iterations.

    no-signal     no sample has an advantage, so there is nothing to learn from
    collapse      there are advantages, but no gradient, or all of it is clipped away; or the
                  pictures of a group have become one
    divergence    a number is not finite, ratios are far from 1, or gradients have exploded
    all-masked    most pictures have no score
    velocity-norm velocities have grown longer than the model's own, and pictures may spoil

and one that is judged where the held-out prompts are measured (``measure/reward_fell.py``):

    reward-fell   a reward fell below the base model's on the same prompts and noise

Where the thresholds come from: the 176 committed runs of ``benchmarks/results/chunk_vs_step``, also
those with four times the best learning rate, stay well inside those of divergence and of clipping.
There, ratios are at most 0.11 from 1, three gradients in a row at most twice the median of those
before, and at most 100 % of the samples that can be clipped are clipped once, 75 % three times in a
row. They recorded neither advantages, nor missing scores, nor how alike pictures are, and so say
nothing about the other signs. That of the norm is the most that NormGuard's authors saw velocities
grow by (arXiv 2606.27771: 5 to 15 %).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from statistics import median
from typing import Any, Protocol

__all__ = [
    "ALARMS",
    "REWARD_FELL",
    "Alarm",
    "AlarmSettings",
    "AlarmStop",
    "alarms_of",
    "standing_alarms",
]

REWARD_FELL = "reward-fell"
ALARMS = ("no-signal", "collapse", "divergence", "all-masked", "velocity-norm", REWARD_FELL)
"""Names, as ``run.stop_on`` takes them."""

Row = Mapping[str, Any]

_NUMBERS = ("iteration", "advantage_std", "masked_scores")
_NUMBERS_OR_NULL = ("reward_mean", "grad_norm")
_OPTIONAL = ("reward_std", "picture_spread", "approx_kl", "velocity_norm")
_LISTS = ("clip_fraction", "ratio_max_deviation", "ratio_mean")
"""Columns that are judged; not every algorithm reports the last ones."""

_LONG, _SHORT = 5, 3
"""Iterations in which a sign must be seen: by chance all groups may be without a signal once or
twice, when a reward has few values; numbers that explode need less patience."""
_ALIKE = 0.5 / 255
"""Spread of the pictures of a group, 0..1, below which they are one picture after rounding."""
_ALL_CLIPPED = 0.95
"""Part of what can be clipped at all; the first update of a rollout never is."""
_FAR = 1.0
"""Distance of a ratio from 1: densities that have doubled, per dimension of the latent."""
_EXPLODED = 100.0
"""Gradient norms, relative to the median of those before."""
_BEFORE = 20
"""Iterations that this median looks at, at most; at least ``_LONG``."""
_LONGER = 1.15
"""|v| / |v_ref|."""
_MISSING = 0.5
"""Part of the pictures without a score."""


@dataclass(frozen=True)
class Alarm:
    """A sign that a run does not learn."""

    name: str
    """One of :data:`ALARMS`."""
    iteration: int
    """Iterations that were done when it was raised."""
    cause: str
    """What is seen, and what it likely comes from: a sentence without its full stop."""
    advice: str
    """Which setting to change: a sentence without its full stop."""

    @property
    def text(self) -> str:
        """All of it, for people."""
        return f"{self.name} after iteration {self.iteration}: {self.cause}. {self.advice}."

    def to_json(self) -> dict[str, object]:
        """Plain values."""
        return asdict(self)


class AlarmStop(RuntimeError):
    """An alarm that ``run.stop_on`` names ended the run; whole iterations are kept."""

    def __init__(self, alarm: Alarm) -> None:
        super().__init__(
            f"{alarm.text} The run stopped because run.stop_on names {alarm.name}; to go on all "
            "the same, take it out"
        )
        self.alarm = alarm


class AlarmSettings(Protocol):
    """What the judges ask of a TrainConfig."""

    @property
    def iterations(self) -> int: ...
    @property
    def prompts_per_iteration(self) -> int: ...
    @property
    def group_size(self) -> int: ...
    @property
    def optimizer(self) -> _Updates: ...


class _Updates(Protocol):
    @property
    def updates_per_rollout(self) -> int: ...
    @property
    def epochs(self) -> int: ...


def standing_alarms(rows: Sequence[Row], config: AlarmSettings) -> tuple[Alarm, ...]:
    """The alarms that hold after the last row.

    Args:
        rows: Of consecutive iterations, the newest last; see ``train/metrics.py``.
        config: Sizes. A run that is shorter than the patience of an alarm is judged at its end.
    """
    return _standing(_whole(rows), config)


def alarms_of(rows: Sequence[Row], config: AlarmSettings) -> tuple[Alarm, ...]:
    """All alarms of a run: of each name the first, in their order."""
    rows = _whole(rows)
    alarms: dict[str, Alarm] = {}
    for end in range(1, len(rows) + 1):
        for alarm in _standing(rows[:end], config):
            alarms.setdefault(alarm.name, alarm)
    return tuple(alarms.values())


def _standing(rows: Sequence[Row], config: AlarmSettings) -> tuple[Alarm, ...]:
    """See :func:`standing_alarms`; of whole rows."""
    if not rows:
        return ()
    done = int(rows[-1]["iteration"]) + 1
    signs = ((name, judge(rows, config)) for name, judge in _JUDGES.items())
    return tuple(Alarm(name, done, *sign) for name, sign in signs if sign is not None)


_Sign = tuple[str, str] | None
"""Cause and advice."""


def _no_signal(rows: Sequence[Row], config: AlarmSettings) -> _Sign:
    last = _last(rows, _LONG, config)
    if not last or not all(row["advantage_std"] == 0 and _mean_of(row) for row in last):
        return None
    seen = f"in {_times(last)} no picture was better or worse than the others of its group"
    spread = last[-1].get("picture_spread")
    if spread is not None and spread < _ALIKE:
        return (
            f"{seen}, because the pictures of a group are alike",
            "Raise sde.eta (eta of Flow SDE Sampler), or let more steps take noise",
        )
    if any((row.get("reward_std") or 0) > 0 for row in last):
        return (
            f"{seen}: scores differ by less than a millionth",
            "Raise the weight or the scale of the reward, or take one that tells pictures apart",
        )
    return (
        f"{seen}: all of them have the same score",
        "Look at the pictures: take prompts that sometimes succeed, a larger group_size, or a "
        "reward that tells such pictures apart",
    )


def _collapse(rows: Sequence[Row], config: AlarmSettings) -> _Sign:
    last = _last(rows, _LONG, config)
    if not last:
        return None
    if _were_different(rows, last):
        return (
            f"in {_times(last)} all pictures of a group were alike, and they were not before",
            "Go back to an earlier checkpoint with a smaller optimizer.learning_rate, or add "
            "objective.kl_ref",
        )
    if all(row["advantage_std"] > 0 and row["grad_norm"] == 0 for row in last):
        return (
            f"in {_times(last)} there were advantages, but no gradient",
            "The model may be broken by large steps: lower optimizer.learning_rate; or the LoRA "
            "has no effect: look at lora.targets",
        )
    updates = config.optimizer.updates_per_rollout * config.optimizer.epochs
    clipped = _ALL_CLIPPED * (1 - 1 / updates)
    if updates > 1 and all(_clip(row) >= clipped for row in last):
        return (
            f"in {_times(last)} every sample was clipped away after the first update",
            "Lower optimizer.learning_rate, widen objective.clip_low and clip_high, or take fewer "
            "updates_per_rollout",
        )
    return None


def _were_different(rows: Sequence[Row], last: Sequence[Row]) -> bool:
    """Whether the pictures of a group are alike in the last rows, and were not before."""
    spreads = [row.get("picture_spread") for row in last]
    if not all(spread is not None and spread < _ALIKE for spread in spreads):
        return False
    spreads = [row.get("picture_spread") for row in rows]  # rarely, for it takes all of them
    known = [spread for spread in spreads if spread is not None]
    return len(known) == len(rows) and max(known) / 4 > _ALIKE


def _divergence(rows: Sequence[Row], config: AlarmSettings) -> _Sign:
    advice = (
        "Lower optimizer.learning_rate, add objective.kl_ref, and go back to the LoRA of an "
        "earlier run or checkpoint"
    )
    if strange := next(_not_finite(rows[-1]), None):
        return f"{strange} is not finite", advice
    last = rows[-_SHORT:]
    if len(last) == _SHORT and all(_deviation(row) >= _FAR for row in last):
        return (
            f"in {_times(last)} the probability of a picture changed by {_deviation(last[-1]):.2g} "
            "times itself or more within one iteration",
            advice,
        )
    before = [row["grad_norm"] or 0.0 for row in rows[-_SHORT - _BEFORE : -_SHORT]]
    if len(before) >= _LONG:
        usual = median(before)
        if usual > 0 and all((row["grad_norm"] or 0) > _EXPLODED * usual for row in last):
            times = last[-1]["grad_norm"] / usual
            return f"gradients are {times:.0f} times as long as they were", advice
    return None


def _all_masked(rows: Sequence[Row], config: AlarmSettings) -> _Sign:
    last = _last(rows, _SHORT, config)
    samples = config.prompts_per_iteration * config.group_size
    if not last or not all(row["masked_scores"] >= _MISSING * samples for row in last):
        return None
    return (
        f"in {_times(last)} half of the pictures or more had no score "
        f"({last[-1]['masked_scores']} of {samples} in the last one)",
        "Look at what the reward says in the log; the run learns from the other pictures alone",
    )


def _velocity_norm(rows: Sequence[Row], config: AlarmSettings) -> _Sign:
    last = _last(rows, _LONG, config)
    if not last or not all((row.get("velocity_norm") or 0.0) > _LONGER for row in last):
        return None
    times = last[-1]["velocity_norm"]
    return (
        f"in {_times(last)} velocities were more than {_LONGER} times as long as those of the "
        f"model without its LoRA ({times:.2f} times in the last one); flat areas and edges may be "
        "lost before the reward shows it",
        "Go back to an earlier checkpoint, and raise the leash (objective.kl_ref, or "
        "forward.kl_ref), or lower optimizer.learning_rate",
    )


_JUDGES: dict[str, Callable[[Sequence[Row], AlarmSettings], _Sign]] = {
    "no-signal": _no_signal,
    "collapse": _collapse,
    "divergence": _divergence,
    "all-masked": _all_masked,
    "velocity-norm": _velocity_norm,
}


def _last(rows: Sequence[Row], count: int, config: AlarmSettings) -> Sequence[Row]:
    """The last ``count`` rows, all of a shorter run that is at its end; none if there are fewer."""
    count = min(count, config.iterations)
    return rows[-count:] if len(rows) >= count else ()


def _whole(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if _is_whole(row)]


def _is_whole(row: Row) -> bool:
    """Whether a row of a file has all that is judged; a damaged one may not."""
    lists = [row.get(name) or [] for name in _LISTS]
    numbers = [row.get(name) for name in (*_NUMBERS_OR_NULL, *_OPTIONAL)]
    return (
        all(_is_number(row.get(name)) for name in _NUMBERS)
        and all(name in row for name in _NUMBERS_OR_NULL)
        and all(isinstance(items, (list, tuple)) for items in lists)
        and all(n is None or _is_number(n) for n in chain(numbers, *lists))
    )


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _times(rows: Sequence[Row]) -> str:
    return f"{len(rows)} iterations in a row" if len(rows) > 1 else "the one iteration"


def _mean_of(row: Row) -> bool:
    return row["reward_mean"] is not None


def _clip(row: Row) -> float:
    clipped = [share for share in row.get("clip_fraction") or () if share is not None]
    return sum(clipped) / len(clipped) if clipped else 0.0


def _deviation(row: Row) -> float:
    return max((d for d in row.get("ratio_max_deviation") or () if d is not None), default=0.0)


def _not_finite(row: Row) -> Iterator[str]:
    """Names of numbers that are NaN or infinite; in metrics.jsonl a gradient like this is null."""
    lists = (row.get(name) or () for name in ("ratio_max_deviation", "ratio_mean"))
    numbers = chain(
        [("the gradient", math.nan if row["grad_norm"] is None else row["grad_norm"])],
        [("the reward", row["reward_mean"]), ("the KL", row.get("approx_kl"))],
        (("a ratio", ratio) for ratios in lists for ratio in ratios),
    )
    return (name for name, number in numbers if number is not None and not math.isfinite(number))
