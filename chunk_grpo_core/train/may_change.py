"""What may be different when a run goes on: one table, and the comparison with a checkpoint.

A checkpoint holds every setting and fact that it was trained with. Whoever resumes it compares
them with those of now; what differs is in the table, and is recorded, or the run is refused.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..method.policy import Policy
from ..method.reward import Reward
from ..prompts.example import Prompt, examples_of
from .checkpoint import Checkpoint, Checkpoints, TrainingState
from .config import TrainConfig, defaults

__all__ = [
    "MAY_CHANGE",
    "Change",
    "changes_since",
    "check_keys",
    "differences",
    "load_to_resume",
    "may_change",
    "prompts_digest",
    "short",
    "trained_with",
]

_FILE = "places of files; the model's name must stay"
_OF_REWARD = "where a reward is and how fast it is; its name and fingerprint must stay"
_NOTHING = "the numbers of a training do not depend on them"
_MEMORY = "how much memory is taken; numbers change by rounding at most"
_NUMBERS = "change the numbers from there on"
_ASKED = "what a person is asked from there on"
MAY_CHANGE: dict[str, str] = {
    "iterations": "to train for longer, or to end sooner; not below those that are done",
    "checkpoint_every": _NOTHING,
    "evaluate_every": _NOTHING,
    "batch_size": _MEMORY,
    "update_batch_size": _MEMORY,
    "score_while_sampling": _NOTHING,
    "self_test": _NOTHING,
    "optimizer.learning_rate": _NUMBERS,
    "objective.clip_low": _NUMBERS,
    "objective.clip_high": _NUMBERS,
    "objective.kl_ref": _NUMBERS,
    "forward.kl_ref": _NUMBERS,
    "forward.norm_guard": _NUMBERS,
    "ask.every": _ASKED,
    "ask.clicks": _ASKED,
    "ask.pictures": _ASKED,
    "ask.kind": _ASKED,
    "ask.when_alarm": _ASKED,
    "preference.picks": "where the pictures are; those of a run are the ones that it recorded",
    "run.reward_retries": _NOTHING,
    "run.reward_wait": _NOTHING,
    "run.stop_on": _NOTHING,
    "run.log": "who else is told the numbers",
    "run.pictures": "both sides of the measurement are measured anew",
    "run.continue_from": "only the start; a checkpoint has taken its place",
    "run.folder": "the run stays where it is; for a new run from this file",
    "model.path": _FILE,
    "model.transformer": _FILE,
    "model.vae": _FILE,
    "model.clip": _FILE,
    "model.t5": _FILE,
    "model.clip_tokenizer": _FILE,
    "model.t5_tokenizer": _FILE,
    "model.text_cache": _FILE,
    "model.device": "another machine may have other devices",
    "model.activation_budget": _MEMORY,
    "model.gradient_checkpointing": _MEMORY,
    "reward.path": _OF_REWARD,
    "reward.folders": _OF_REWARD,
    "reward.tokenizers": _OF_REWARD,
    "reward.image": _OF_REWARD,
    "reward.head": _OF_REWARD,
    "reward.encoder": _OF_REWARD,
    "reward.picks": _OF_REWARD,
    "reward.kind": _OF_REWARD,
    "reward.clip": _OF_REWARD,
    "reward.device": _OF_REWARD,
    "reward.batch_size": _OF_REWARD,
    "reward.threads": _OF_REWARD,
    "reward.url": _OF_REWARD,
    "reward.token_env": _OF_REWARD,
    "reward.timeout": _OF_REWARD,
    "reward.retries": _OF_REWARD,
    "reward.backoff": _OF_REWARD,
    "reward.concurrency": _OF_REWARD,
    "reward.max_megabytes": _OF_REWARD,
}
"""Settings that may change when a run is resumed, by dotted key -> why. Every other one must stay
as it was. docs/command_line.md shows this table."""

_BACK = "set it back, or start a new run"


@dataclass(frozen=True)
class Change:
    """A setting that was changed when a run was resumed."""

    iteration: int
    """Iterations that were done with the old value."""
    key: str
    old: object
    new: object


def trained_with(
    config: TrainConfig,
    policy: Policy,
    reward: Reward,
    prompts: Sequence[Prompt],
    facts: Mapping[str, object],
) -> dict[str, object]:
    """Everything that a training depends on, as plain values.

    Args:
        config: Settings; they stand under their dotted keys.
        policy: Its name and the shape of its latents.
        reward: Its name and fingerprint.
        prompts: Those to train on; of them a digest.
        facts: Further ones, by names of their own.
    """
    return {
        **config.flat(),
        "model": policy.name,
        "latent_shape": list(policy.latent_shape),
        "reward": reward.name,
        "reward_fingerprint": dict(reward.fingerprint),
        "prompts": prompts_digest(prompts),
        **facts,
    }


def prompts_digest(prompts: Sequence[Prompt]) -> str:
    """Number and digest of prompts, as one readable text."""
    body = json.dumps([example.to_json() for example in examples_of(prompts)], sort_keys=True)
    return f"{len(prompts)}, SHA-256 {hashlib.sha256(body.encode()).hexdigest()[:16]}"


def may_change(key: str) -> bool:
    """Whether a key may change when a run is resumed; ``reward.2.url`` is the ``url`` of a reward,
    whichever it is."""
    return re.sub(r"^reward\.\d+\.", "reward.", key) in MAY_CHANGE


def differences(
    old: Mapping[str, object], new: Mapping[str, object]
) -> list[tuple[str, object, object]]:
    """Keys with an old and a new value, where these differ.

    A key that only one of the two has is left out; but a setting of a reward that one of them does
    not set is None there.
    """
    unset = {key: None for key in (*old, *new) if key.startswith("reward.")}
    olds = {**unset, **old} if "rewards" in old else old
    news = {**unset, **new} if "rewards" in new else new
    return [
        (key, olds[key], value)
        for key, value in news.items()
        if key in olds and _compared(key, olds[key]) != _compared(key, value)
    ]


def changes_since(
    before: TrainingState,
    now: Mapping[str, object],
    says: str = "this training has",
    way: str = _BACK,
) -> tuple[Change, ...]:
    """What has changed since a checkpoint was written, all of it allowed.

    Args:
        before: Of the checkpoint. A setting it does not know had its default; a fact that only one
            of the two knows is not compared.
        now: From :func:`trained_with`, or the part of it that is known already.
        says: Who has the new values, for the message.
        way: What to do, for the message.

    Raises:
        ValueError: Something differs that may not change, or fewer iterations are wanted than are
            done; the message names it.
    """
    done = before.iteration
    old = {**defaults(), **before.trained_with}
    changes = [Change(done, *difference) for difference in differences(old, now)]
    if refused := [change for change in changes if not may_change(change.key)]:
        new = " and ".join(f"{change.key} = {short(change.new)}" for change in refused)
        was = " and ".join(short(change.old) for change in refused)
        raise ValueError(f"{says} {new}, but iterations 1 to {done} were trained with {was}; {way}")
    wanted = now.get("iterations", done)
    if isinstance(wanted, int) and wanted < done:
        raise ValueError(f"{says} iterations = {wanted}, but {done} are done already")
    return tuple(changes)


def load_to_resume(
    checkpoints: Checkpoints | None, now: Mapping[str, object]
) -> tuple[Checkpoint | None, tuple[Change, ...]]:
    """Load the newest checkpoint, if there is one that may be resumed; see :func:`changes_since`.

    Returns:
        The checkpoint, or None, and what has changed since.
    """
    checkpoint = checkpoints.load() if checkpoints else None
    if checkpoint is None:
        return None, ()
    return checkpoint, changes_since(checkpoint.state, now)


def check_keys(keys: Sequence[str]) -> None:
    """Make sure that all keys may change when a run is resumed.

    Raises:
        ValueError: One may not; the message lists those that may.
    """
    for key in keys:
        if not may_change(key):
            allowed = ", ".join(MAY_CHANGE)
            raise ValueError(f"{key} may not change when a run goes on; these may: {allowed}")


def _compared(key: str, value: object) -> str:
    """A value as JSON; of a plan only what is trained."""
    if key == "plan" and isinstance(value, Mapping):
        value = {"sizes": value.get("sizes"), "weights": value.get("weights")}
    return json.dumps(value, sort_keys=True)


def short(value: object) -> str:
    """A value as JSON, at most 120 characters of it, for a message."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 120 else f"{text[:120]}..."
