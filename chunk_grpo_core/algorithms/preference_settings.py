"""Settings of offline preferences, and what of them does not go together."""

from __future__ import annotations

from typing import Protocol

from ..method.advantage import AdvantageConfig
from ..method.asking import AskConfig
from .common_settings import CommonSettings, check_times, refuse_chunks, refuse_part

__all__ = ["PreferenceSettings", "check_preference"]


class PreferenceSettings(CommonSettings, Protocol):
    """The settings that preferences read."""

    @property
    def advantage(self) -> AdvantageConfig: ...
    @property
    def ask(self) -> AskConfig: ...
    @property
    def share_initial_noise(self) -> bool: ...
    @property
    def group_size(self) -> int: ...


def check_preference(config: PreferenceSettings) -> None:
    """Refuse settings that do not suit offline preferences.

    Raises:
        ValueError: A setting of rollouts or of another algorithm is set, there are more times than
            levels, or pictures of a pair are left over.
    """
    refuse_chunks(config, "preference")
    for part in ("forward", "advantage", "sde", "ask"):
        refuse_part(config, part, "preference")
    for name, value, unset in (
        ("ode_solver", config.ode_solver, "euler"),
        ("share_initial_noise", config.share_initial_noise, True),
    ):
        if value != unset:
            raise ValueError(
                f"{name} is {value!r}, which has no effect in the algorithm preference: it makes "
                "no rollouts; leave it out"
            )
    check_times(config.preference, config.grid, "preference")
    if config.preference.objective == "dpo" and config.group_size % 2:
        raise ValueError(
            f'group_size is {config.group_size}, but preference.objective "dpo" trains on pairs; '
            "it must be even: 2 is one pair of each click"
        )
