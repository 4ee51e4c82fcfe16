"""A run that is there already: what its record says, compared with what its checkpoint was trained
with.

A record may have been edited. What may not change is refused here, before anything is loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..configfile.facts import loaded_facts
from ..configfile.record import read_run
from ..configfile.run_config import RunConfig
from ..method.policy import Policy
from ..method.reward import Reward
from ..train.checkpoint import TrainingState
from ..train.may_change import changes_since
from .folder import RunFolder

__all__ = ["RecordedRun", "open_to_look", "open_to_resume"]

_LOOKED_AT = "set it back; --set KEY=VALUE looks at the run with another value"


@dataclass(frozen=True)
class RecordedRun:
    """The configuration of a run, and what it was trained with."""

    config: RunConfig
    file: Path
    """Its record."""
    state: TrainingState | None
    """Of its newest checkpoint; None if nothing was trained."""
    way: str = "set it back, or start a new run"
    """What to do about a difference."""

    def check_settings(self) -> None:
        """Make sure that the record says what the checkpoint was trained with, or what may change.

        Raises:
            ValueError: It does not; the message names the difference.
        """
        config = self.config
        now = {**config.settings.flat(), **loaded_facts(config.tables())}
        if config.needs_curve:  # only its text is known: plan.chunks, plan.weights
            del now["plan"]
        self._compare(now, f"{self.file} says")

    def check_reward(self, reward: Reward) -> None:
        """Make sure that a reward, once loaded, is the one that was trained on.

        Raises:
            ValueError: It is another.
        """
        now = {"reward": reward.name, "reward_fingerprint": dict(reward.fingerprint)}
        self._compare(now, f"the reward that {self.file} names has")

    def check_model(self, policy: Policy) -> None:
        """Make sure that a model, once loaded, is the one that was trained.

        Raises:
            ValueError: It is another.
        """
        now = {"model": policy.name, "latent_shape": list(policy.latent_shape)}
        self._compare(now, f"the model that {self.file} names has")

    def _compare(self, now: dict[str, object], says: str) -> None:
        if self.state:
            changes_since(self.state, now, says, self.way)


def open_to_resume(folder: RunFolder, changes: Sequence[str] = ()) -> RecordedRun:
    """Read the record of a run that goes on.

    As long as nothing was trained, the record is a configuration like any other: prompts come from
    their files, and a plan is read off its curve again.

    Args:
        folder: Run folder.
        changes: Settings to change, as ``KEY=VALUE``.

    Raises:
        FileNotFoundError: There is no run.
        ValueError: Something in the record is wrong, or is not what was trained with.
    """
    config = read_run(folder.path, changes, resumes=True)
    state = folder.checkpoints.newest_state()
    if state is None:
        config = replace(config, recorded=None, is_measured=False)
    run = RecordedRun(config, folder.run_file, state)
    run.check_settings()
    return run


def open_to_look(folder: RunFolder, changes: Sequence[str] = ()) -> RecordedRun:
    """Read the record of a run that is sampled or measured; see :func:`open_to_resume`.

    Args:
        folder: Run folder.
        changes: Values to look at it with instead of those it was trained with.
    """
    config = read_run(folder.path)
    run = RecordedRun(config, folder.run_file, folder.checkpoints.newest_state(), _LOOKED_AT)
    run.check_settings()
    return replace(run, config=read_run(folder.path, changes)) if changes else run
