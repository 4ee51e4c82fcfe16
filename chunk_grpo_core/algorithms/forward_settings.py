"""Settings of the forward form, and what of them does not go together."""

from __future__ import annotations

from typing import Protocol

from ..method.advantage import AdvantageConfig
from ..method.matching import ForwardConfig
from ..method.sampler import Sampler
from ..settings.declared import changed_fields
from .common_settings import CommonSettings, check_times, refuse_chunks, refuse_part

__all__ = ["ForwardSettings", "check_forward", "doubts_of"]


class ForwardSettings(CommonSettings, Protocol):
    """The settings that the forward form reads."""

    @property
    def advantage(self) -> AdvantageConfig: ...
    @property
    def share_initial_noise(self) -> bool: ...


def check_forward(config: ForwardSettings, sampler: Sampler | None) -> None:
    """Refuse settings that do not suit the forward form.

    Args:
        config: The settings.
        sampler: What makes the rollouts; the library's own walk if None.

    Raises:
        ValueError: A setting of Chunk-GRPO is set, there are more times than levels, all pictures
            of a group would be the same, a setting of the library's walk is set beside a sampler,
            or a first pass saves nothing.
    """
    refuse_chunks(config, "forward")
    refuse_part(config, "preference", "forward")
    _check_sampling(config, sampler)
    check_times(config.forward, config.grid, "forward")
    forward = config.forward
    _refuse_unused(forward)
    _check_ranking(config)
    if forward.old == "average" and not forward.needs_old:
        raise ValueError(
            f'forward.old is "average", but forward.objective is "{forward.objective}", which '
            'compares with no old policy; use objective "nft" or "elbo", or old "rollout"'
        )


def doubts_of(config: ForwardSettings) -> list[str]:
    """What is allowed and may not be meant, in sentences."""
    forward, optimizer, doubts = config.forward, config.optimizer, []
    if not forward.needs_reference:
        doubts.append(
            "forward.kl_ref is 0 and forward.norm_guard is 0: nothing holds the model to what "
            "it was, and pictures may spoil while the reward still rises; watch velocity_norm"
        )
    on_policy = optimizer.updates_per_rollout * optimizer.epochs == 1 and forward.old == "rollout"
    idle = [name for name in changed_fields(forward) if name in ("beta", "clip")]
    if idle and on_policy:
        doubts.append(
            f"forward.{idle[0]} has no effect: with one update for each rollout, and forward.old "
            '"rollout", every objective has the gradient of awm'
        )
    return doubts


def _refuse_unused(forward: ForwardConfig) -> None:
    """Refuse a setting of another objective or old policy.

    Raises:
        ValueError: One differs from its default.
    """
    users = {
        "beta": ("objective", "nft"),
        "clip": ("objective", "elbo"),
        "old_decay": ("old", "average"),
    }
    for name in changed_fields(forward):
        chooser, needed = users.get(name, ("", ""))
        if chooser and getattr(forward, chooser) != needed:
            raise ValueError(
                f"forward.{name} is {getattr(forward, name)}, but forward.{chooser} is "
                f"{getattr(forward, chooser)!r}, which does not use it; leave it out, or set "
                f'forward.{chooser} to "{needed}"'
            )


def _check_ranking(config: ForwardSettings) -> None:
    """Refuse a first pass that saves nothing, or that draws other pictures.

    Raises:
        ValueError: See :func:`check_forward`.
    """
    steps, grid = config.forward.rank_steps, config.grid
    if not steps:
        return
    if not 2 <= steps < grid.steps:
        raise ValueError(
            f"forward.rank_steps is {steps}, but the grid has {grid.steps} steps; it must be 2 or "
            "more, and fewer than that, or 0"
        )
    if config.advantage.keep is None:
        raise ValueError(
            f"forward.rank_steps is {steps}, but advantage.keep is not set, so that the whole "
            "group would be drawn twice; set advantage.keep, or rank_steps to 0"
        )
    if config.sde.is_stochastic:
        raise ValueError(
            f"forward.rank_steps is {steps}, but sde is {config.sde.rule} with eta "
            f"{config.sde.eta}: with noise, more steps draw another picture; set sde.rule to "
            '"ode"'
        )


def _check_sampling(config: ForwardSettings, sampler: Sampler | None) -> None:
    """Refuse a walk that nobody takes, and rollouts that cannot differ.

    Raises:
        ValueError: See :func:`check_forward`.
    """
    sde, is_noisy = config.sde, config.sde.is_stochastic
    if sampler is not None and is_noisy:
        raise ValueError(
            f"sde is {sde.rule} with eta {sde.eta}, but the sampler {sampler.name} makes the "
            'rollouts; set sde.rule to "ode"'
        )
    if sampler is not None and config.ode_solver != "euler":
        raise ValueError(
            f"ode_solver is {config.ode_solver!r}, but the sampler {sampler.name} makes the "
            "rollouts; leave it out"
        )
    if is_noisy and config.ode_solver != "euler":
        raise ValueError(
            f"ode_solver is {config.ode_solver!r}, but every step takes noise, so that none "
            'follows the ODE; set sde.rule to "ode"'
        )
    if config.share_initial_noise and not (is_noisy or (sampler and sampler.draws_noise)):
        who = f"sde is {sde.rule} with eta {sde.eta}" if sampler is None else sampler.name
        draws = "" if sampler is None else " draws no noise"
        raise ValueError(
            f"share_initial_noise is true and {who}{draws}: without noise, all pictures of a group "
            "would be the same; set share_initial_noise to false"
        )
