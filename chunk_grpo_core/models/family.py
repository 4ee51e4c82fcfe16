"""What the rest of the library asks of a family of models; ``registry.py`` lists them.

A family is a file or folder here that exports ``FAMILY``. Configuration files, commands, several
processes and the trainer know families by this description alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import torch

from ..lora.adapter import LoraConfig
from ..method.schedule import TimeGrid
from ..prompts.example import Prompt
from .diffusers_policy import DiffusersPolicy

__all__ = ["Captions", "Checkpoint", "Family", "Load", "ModelTable"]

Table = TypeVar("Table", bound="ModelTable")
TableIn = TypeVar("TableIn", bound="ModelTable", contravariant=True)


@dataclass(frozen=True, kw_only=True)
class ModelTable:
    """The table [model] of a configuration file, without ``type``.

    A family adds fields of the types that ``configfile/keys.py`` knows; the text under each of them
    is its explanation in a file.
    """

    paths: ClassVar[frozenset[str]] = frozenset()
    """Fields that name files or folders; relative ones start at the folder of the file."""

    def for_process(self: Table, device: torch.device) -> Table:
        """The table for one of several processes, which computes on ``device``.

        Raises:
            ValueError: The table asks for another device.
        """
        return self

    def check_shardable(self) -> None:
        """Make sure that the frozen weights can be spread over processes.

        Raises:
            ValueError: They cannot.
        """


@dataclass(frozen=True)
class Captions:
    """Prompts that come with a model."""

    train: Sequence[str]
    held_out: Sequence[str]


@dataclass(frozen=True)
class Checkpoint:
    """A published model of a family."""

    name: str
    """Its name on the Hugging Face hub, or in sentences."""
    parameters: str
    """Of the transformer, such as 12B."""
    licence: str
    """The licence of the weights in a few words."""
    guidance: float | None = None
    """Scale of guidance that its makers sample it with, where a family has checkpoints with and
    without; whoever loads one of them by name with the other kind is warned."""


class Load(Protocol[TableIn]):
    """How a family loads a model."""

    def __call__(
        self,
        table: TableIn,
        prompts: Sequence[Prompt],
        lora: LoraConfig,
        seed: int,
        /,
        *,
        keep_on_cpu: bool,
    ) -> DiffusersPolicy[Any]:
        """Load a model and put a fresh LoRA on it.

        Args:
            table: What the user named.
            prompts: All prompts that the policy will be asked for, to be encoded now.
            lora: Size and place of the adapter.
            seed: Seed of the adapter's initial weights.
            keep_on_cpu: Leave the transformer there, for :class:`~.sharding.ShardedPolicy` to
                spread.

        Raises:
            FileNotFoundError: A file is missing.
            ValueError: A file or a setting is wrong; the message names it.
            ImportError: A package is missing; the message says how to install it.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Family(Generic[Table]):
    """A kind of models that are configured, loaded and run alike."""

    name: str
    """Value of ``model.type``."""
    title: str
    """Name in sentences, such as FLUX.1."""
    table: type[Table]
    """What [model] may say."""
    load: Load[Table]
    """How a model gets off the disk."""
    grid: Callable[[Table, int], TimeGrid]
    """Table, steps -> the noise levels that the model itself is sampled with, which is what
    ``grid.shift = "model"`` stands for."""
    captions: Callable[[], Captions] | None = None
    """Prompts of a configuration that names none; None if it must name some."""
    reward: str = ""
    """Reward of a configuration that names none; empty if it must name one."""
    few_steps: int = 8
    """Steps of a rollout without noise whose pictures are good enough to be compared."""
    imports: tuple[str, ...] = ()
    """Classes of large packages to import in all processes at once, see
    :func:`~chunk_grpo_core.optional.import_early`."""
    example: Mapping[str, object] = field(default_factory=dict)
    """Values of [model] in a file that ``chunk-grpo presets --write`` prints."""
    checkpoints: tuple[Checkpoint, ...] = ()
    """Published models that it loads; the first is the one of :attr:`example`."""
    needs: str = "diffusers>=0.35"
    """What pip must have installed for it."""
    tested: str = "no tests are on record"
    """What was tested, in a sentence without its full stop."""
