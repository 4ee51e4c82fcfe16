"""The stops of a run at which its person is asked, and its taste fitted again.

    refits/iteration_000000.json             the heads that the run began with
    refits/iteration_000010.json             what was asked after 10 iterations, and which heads
    refits/iteration_000010_1.safetensors    the head of the first taste, as it was fitted then

A head is written before the record that names it. The pictures of a stop are drawn with the LoRA as
it is and with noise of their own, so that a run that was killed and comes to the stop again draws
the same ones, finds what was said, and fits the same head.

Legend: B pictures, H W picture size.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..disk.atomic import write_whole
from ..disk.regular import read_regular
from ..measure.sampling import draw
from ..method.asking import Person, RefitRequest, Refits
from ..method.cancel import CheckCancel
from ..method.noise import derive_seed
from ..method.policy import Policy
from ..method.policy_reward import Fit, bound, needs_policy, units_of_reward
from ..method.reward import (
    Fingerprint,
    Reward,
    RewardBatch,
    is_groupwise,
    is_remote,
    is_scale_free,
)
from ..method.sampler import Sampler
from ..processes.collective import Processes
from ..prompts.example import Example, Prompt
from ..rewards.files import digest
from ..rewards.parts import changed, simple_parts
from ..rewards.taste.picks import pixel_hash
from ..train.alarms import standing_alarms
from ..train.batch_limit import BatchLimit
from ..train.config import TrainConfig
from ..train.requests import prompts_of_iteration

__all__ = ["RewardInForce", "Stops", "first_heads"]

log = logging.getLogger(__name__)

_OF_PROMPT = 4
"""Pictures of each prompt at a stop."""


class RewardInForce:
    """The reward that a run trains on now. Its name and fingerprint stay those of the one that the
    run began with: what it became since follows from that one and from the clicks."""

    def __init__(self, reward: Reward) -> None:
        self._first = self.now = reward
        self._judge: tuple[Reward, Reward] | None = None
        self._bind: Callable[[Reward], Reward] = lambda reward: reward

    @property
    def name(self) -> str:
        """That of the first one."""
        return self._first.name

    @property
    def fingerprint(self) -> Fingerprint:
        """That of the first one."""
        return self._first.fingerprint

    @property
    def groupwise(self) -> bool:
        """See :func:`~chunk_grpo_core.method.reward.is_groupwise`."""
        return is_groupwise(self.now)

    @property
    def is_remote(self) -> bool:
        """See :func:`~chunk_grpo_core.method.reward.is_remote`."""
        return is_remote(self.now)

    @property
    def scale_free(self) -> bool:
        """See :func:`~chunk_grpo_core.method.reward.is_scale_free`."""
        return is_scale_free(self.now)

    @property
    def needs_policy(self) -> bool:
        """See :class:`~chunk_grpo_core.method.policy_reward.PolicyReward`."""
        return needs_policy(self.now)

    @property
    def units_per_picture(self) -> int:
        """See there."""
        return units_of_reward(self.now)

    def bind(self, policy: Policy, fit: Fit) -> RewardInForce:
        """See there; what comes into force later is bound, too."""
        self._bind, self._judge = lambda reward: bound(reward, policy, fit), None
        return self

    def score(self, images: Tensor, examples: Sequence[Prompt]) -> RewardBatch:
        """See :class:`~chunk_grpo_core.method.reward.Reward`."""
        if self._judge is None or self._judge[0] is not self.now:
            self._judge = self.now, self._bind(self.now)
        return self._judge[1].score(images, examples)


def first_heads(reward: Reward, folder: Path, *, resume: bool, keeps: bool) -> Reward:
    """The reward that a run began with: its tastes have the heads that it has kept since then, or
    keeps now. Whoever fits a taste in the same graph fits it to the clicks of the run, too, so that
    it is another one when the run goes on.

    Args:
        reward: As it was loaded.
        folder: Of the run, in which nobody else writes.
        resume: Whether the run goes on; a new one forgets what another one has left there.
        keeps: Whether it may stop, and so has to keep them.

    Raises:
        ValueError: A file of it is damaged.
        CannotWrite: The disk is full, or something else is in the way.
    """
    kept = _Heads(folder)
    for iterations in kept.iterations() if not resume else ():
        kept.forget(iterations)
    if keeps and 0 not in kept.iterations():
        heads: list[dict[str, str] | None] = []
        for number, part in enumerate(_taught(reward), start=1):
            file = kept.head_file(0, number)
            part.keep(file)
            heads.append({"file": file.name, "sha256": digest(file)})
        kept.write(0, {"why": "the start", "heads": heads})
    return kept.of(0, reward) if 0 in kept.iterations() else reward


@dataclass(frozen=True)
class _Heads:
    """The records of a run folder."""

    folder: Path

    def head_file(self, iterations: int, number: int) -> Path:
        return self._file(iterations).with_name(f"{_name(iterations)}_{number}.safetensors")

    def write(self, iterations: int, facts: Mapping[str, Any]) -> None:
        record = {"v": 1, "iteration": iterations, **facts}
        write_whole(self._file(iterations), json.dumps(record, indent=1) + "\n")

    def forget(self, iterations: int) -> None:
        self._file(iterations).unlink()

    def of(self, iterations: int, reward: Reward) -> Reward:
        """The reward with recorded heads, in the order of its tastes."""
        left = list(self.read(iterations))

        def change(part: Reward) -> Reward:
            head = left.pop(0) if isinstance(part, Refits) and left else None
            if head is None or not isinstance(part, Refits):
                return part
            file = self._file(iterations).with_name(head["file"])
            if not file.is_file() or digest(file) != head["sha256"]:
                raise ValueError(
                    f"{file} is gone or is not the head that this run was trained with; put it "
                    "back from a copy"
                )
            return part.of_file(file)

        return changed(reward, change)

    def _file(self, iterations: int) -> Path:
        return self.folder / "refits" / f"{_name(iterations)}.json"

    def iterations(self) -> list[int]:
        files = self._file(0).parent.glob("iteration_*.json")
        matches = (re.fullmatch(r"iteration_(\d{6,18})\.json", file.name) for file in files)
        return sorted(int(match[1]) for match in matches if match)

    def read(self, iterations: int) -> list[Mapping[str, str] | None]:
        file = self._file(iterations)
        try:
            record = json.loads(read_regular(file))
            heads = record["heads"]
            is_whole = record["v"] == 1 and all(
                h is None or {"file", "sha256"} <= set(h) for h in heads
            )
        except (ValueError, RecursionError, KeyError, TypeError):
            is_whole = False
        if not is_whole:
            raise ValueError(
                f"{file} is damaged; delete it and resume: the person is then asked for what they "
                "have not said yet"
            )
        return list(heads)


@dataclass
class Stops:
    """The stops of a run at which its taste is fitted again."""

    folder: Path
    """Of the run."""
    config: TrainConfig
    policy: Policy
    reward: RewardInForce
    prompts: Sequence[Example]
    person: Person
    sampler: Sampler | None
    limit: BatchLimit
    check_cancel: CheckCancel

    def take_up(self, iterations: int, processes: Processes) -> int:
        """Put the reward into force that a run had before its stop after so many iterations; what
        it recorded of later ones is done again, from the clicks that are there.

        Returns:
            The iterations after which it was fitted; 0 if it is the first one.

        Raises:
            ValueError: A file of it is damaged, or there are several processes.
        """
        fitted = processes.from_writer(lambda: self._take_up(iterations))
        if fitted and processes.count > 1:
            raise ValueError(
                f"the reward of this run was fitted again after {fitted} iterations, and only a "
                "training of one process goes on with it; start it without a launcher"
            )
        return fitted

    def _take_up(self, iterations: int) -> int:
        heads, fitted = _Heads(self.folder), 0
        for record in heads.iterations():
            if record >= max(iterations, 1):
                heads.forget(record)
            elif record and any(heads.read(record)):
                self.reward.now = heads.of(record, self.reward.now)
                fitted = record
        return fitted

    def reason(self, iterations: int, rows: Sequence[Mapping[str, Any]]) -> str:
        """Why the run stops after so many iterations; empty if it does not.

        Args:
            iterations: Done.
            rows: Of metrics.jsonl.
        """
        ask = self.config.ask
        if not iterations:
            return ""
        if ask.every and iterations % ask.every == 0:
            return f"every {ask.every} iterations"
        if not ask.when_alarm:
            return ""
        rows = [row for row in rows if row.get("iteration", iterations) < iterations]
        before = {alarm.name for alarm in standing_alarms(rows[:-1], self.config)}
        now = [alarm.name for alarm in standing_alarms(rows, self.config)]
        new = [name for name in now if name not in before]
        return f"alarm {new[0]}" if new else ""

    def ask(self, iterations: int, why: str) -> bool:
        """Draw, ask, fit, and put the new heads into force; whether there are any.

        Raises:
            StopWished: Somebody wants the run to end and keep what it has learnt.
            ValueError: The picks, or a file of the run, are damaged.
            CannotWrite: The disk is full, or something else is in the way.
        """
        images, examples = self._drawn(iterations)
        heads = self._fitted(iterations, why, images, examples)
        shown = [pixel_hash(image) for image in images]
        kept = _Heads(self.folder)
        kept.write(iterations, {"why": why, "pictures": shown, "heads": heads})
        self.reward.now = kept.of(iterations, self.reward.now)
        return any(heads)

    def _drawn(self, iterations: int) -> tuple[Tensor, list[Example]]:
        """Pictures (B, H, W, 3) of the prompts that come next, and their examples."""
        config, wanted = self.config, self.config.ask.pictures
        groups = -(-wanted // _OF_PROMPT)
        chosen = prompts_of_iteration(self.prompts, iterations, groups, config.seed)
        drawn = draw(
            self.policy,
            chosen,
            config.grid,
            count=_OF_PROMPT,
            seed=derive_seed(config.seed, "ask", iterations),
            solver=config.ode_solver,
            sampler=self.sampler,
            limit=self.limit,
            check_cancel=self.check_cancel,
        )
        images = torch.cat(list(drawn)).float().cpu()[:wanted]
        return images, [example for example in chosen for _ in range(_OF_PROMPT)][:wanted]

    def _fitted(
        self, iterations: int, why: str, images: Tensor, examples: Sequence[Example]
    ) -> list[dict[str, str] | None]:
        """Ask for each taste in turn: file and digest of its new head, None where it stays."""
        heads: list[dict[str, str] | None] = []
        for number, part in enumerate(_taught(self.reward.now), start=1):
            file = _Heads(self.folder).head_file(iterations, number)
            request = RefitRequest(
                images=images, examples=examples, config=self.config.ask, why=why, file=file
            )
            made = part.refit(request, self.person)
            heads.append({"file": file.name, "sha256": digest(file)} if made else None)
            log.info("%s: %s", why, "fitted again" if made else "nothing new was said")
        return heads


def _taught(reward: Reward) -> list[Refits]:
    return [part for part in simple_parts(reward) if isinstance(part, Refits)]


def _name(iterations: int) -> str:
    return f"iteration_{iterations:06d}"
