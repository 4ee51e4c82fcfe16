"""GenEval as a reward.

Legend: B pictures, H W picture size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ...method.reward import Fingerprint, RewardBatch, checked_inputs
from ...prompts.example import Prompt
from ..pixels import to_levels
from .rules import Detection, Verdict, judge
from .task import Task, read_task

__all__ = ["ColourReader", "Detector", "GenevalReward"]


class Detector(Protocol):
    """Finds objects."""

    @property
    def network(self) -> nn.Module:
        """All weights."""
        ...

    @property
    def labels(self) -> Sequence[str]:
        """The classes it knows, as GenEval names them."""
        ...

    @property
    def fingerprint(self) -> Fingerprint:
        """Weights, preprocessing, dtype."""
        ...

    def __call__(self, levels: Tensor) -> Sequence[Detection]:
        """Picture (H, W, 3), uint8 -> what is in it, with the class names of GenEval."""
        ...


class ColourReader(Protocol):
    """Names the colours of objects."""

    @property
    def network(self) -> nn.Module:
        """All weights."""
        ...

    @property
    def fingerprint(self) -> Fingerprint:
        """Weights, preprocessing, dtype."""
        ...

    def __call__(self, levels: Tensor, objects: Sequence[Detection]) -> Sequence[str]:
        """Picture (H, W, 3), uint8, and objects of one class in it -> a colour name for each."""
        ...


class GenevalReward:
    """1 if a picture shows what GenEval's metadata asks for, else 0; or the share it shows.

    Implements ``NetworkReward``.

    The metadata of a prompt is its line of GenEval's ``evaluation_metadata.jsonl``.
    """

    name = "geneval"

    def __init__(
        self, detector: Detector, colours: ColourReader | None = None, *, partial: bool = False
    ) -> None:
        """Set up.

        Args:
            detector: Finds objects.
            colours: Names colours; needed for the tags ``colors`` and ``color_attr`` alone.
            partial: Give credit for what is right in a picture that is wrong, see
                :class:`~chunk_grpo_core.rewards.geneval.rules.Verdict`.
        """
        self.detector = detector
        self.colours = colours
        self.partial = partial
        self.network = nn.ModuleDict({"detector": detector.network})
        if colours is not None:
            self.network["colours"] = colours.network

    @property
    def fingerprint(self) -> Fingerprint:
        """Detector, colours and rule."""
        colours = self.colours.fingerprint if self.colours else {}
        return {
            **{f"detector/{key}": value for key, value in self.detector.fingerprint.items()},
            **{f"colours/{key}": value for key, value in colours.items()},
            "partial": self.partial,
        }

    def score(self, images: Tensor, examples: Sequence[Prompt]) -> RewardBatch:
        """Score B pictures.

        Returns:
            0 or 1, or the credit in 0..1. Extras: ``correct`` and ``credit``. A picture that is
            not finite has no score.

        Raises:
            ValueError: Shapes or lengths do not match; there is no metadata, or none of GenEval; it
                asks for colours and nothing reads them, or for objects that the detector does not
                know.
        """
        images, examples = checked_inputs(images, examples)
        tasks = [self._task(example.metadata) for example in examples]
        verdicts = [self._one(image, task) for image, task in zip(images, tasks, strict=True)]
        correct = torch.tensor([float(v.correct) if v else torch.nan for v in verdicts])
        credit = torch.tensor([v.credit if v else torch.nan for v in verdicts])
        values = credit if self.partial else correct
        return RewardBatch.of(values, correct=correct, credit=credit)

    def _task(self, metadata: Mapping[str, Any]) -> Task:
        task = read_task(metadata)
        if self.colours is None and any(wish.colour for wish in task.include):
            raise ValueError(f"the tag {task.tag!r} asks for colours; set colours to true")
        named = {entry.label for entry in (*task.include, *task.exclude)}
        if unknown := sorted(named - set(self.detector.labels)):
            raise ValueError(
                f"class {unknown[0]!r} of the GenEval metadata is none of the "
                f"{len(self.detector.labels)} that the detector knows, such as "
                f"{', '.join(self.detector.labels[:8])}"
            )
        return task

    def _one(self, image: Tensor, task: Task) -> Verdict | None:
        if not torch.isfinite(image).all():
            return None
        levels = to_levels(image)

        def colours_of(objects: Sequence[Detection]) -> Sequence[str]:
            assert self.colours is not None  # see _task
            return self.colours(levels, objects)

        return judge(task, self.detector(levels), colours_of)
