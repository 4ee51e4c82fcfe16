"""What all rewards with a network share: how they are loaded, run and remembered.

Legend: B pictures, b pictures at once, H W picture size, D features.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from ...method.reward import Reward, RewardBatch, checked_inputs
from ...prompts.example import Prompt
from ...settings.declared import shortened
from ..files import DEFAULT_FOLDER
from ..pixels import to_levels

__all__ = [
    "LoadOptions",
    "NetworkReward",
    "PromptCache",
    "device_of",
    "judging",
    "score_pictures",
]

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_REMEMBERED_PROMPTS = 4096


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """Where the files of a reward are and how its network runs."""

    path: str | Path | None = None
    """Weight file, or its folder; looked for in ``folders`` when None."""
    folders: Sequence[str | Path] = (DEFAULT_FOLDER,)
    """Folders of models, see :func:`~chunk_grpo_core.rewards.files.find_file`."""
    tokenizers: Sequence[str | Path] = ()
    """Folders that may hold the tokenizer; the folder of the weights is tried first."""
    device: str = "cpu"
    """Where the network is put; it can be moved later, scores are computed where it is."""
    dtype: str = "float32"
    """``"float32"``, ``"float16"`` or ``"bfloat16"``. Halves need half the memory; scores then
    differ in the third digit or so."""
    batch_size: int = 16
    """Pictures in one call of the network. Changes no score."""

    def __post_init__(self) -> None:
        try:
            torch.device(self.device)
        except RuntimeError:
            raise ValueError(
                f"device is {shortened(self.device)}; it must be cpu, cuda, cuda:1, mps, ..."
            ) from None
        if self.dtype not in _DTYPES:
            raise ValueError(
                f"dtype is {shortened(self.dtype)}; it must be one of {', '.join(_DTYPES)}"
            )
        for name, folders in (("folders", self.folders), ("tokenizers", self.tokenizers)):
            if isinstance(folders, (str, Path)):
                raise ValueError(f"{name} is {shortened(folders)}; it must be a list of folders")
        if self.batch_size < 1:
            raise ValueError(f"batch_size is {self.batch_size}; it must be at least 1")

    @property
    def torch_dtype(self) -> torch.dtype:
        """``dtype`` as torch names it."""
        return _DTYPES[self.dtype]


@runtime_checkable
class NetworkReward(Reward, Protocol):
    """A reward whose network can be moved between devices from outside, between two scores."""

    @property
    def network(self) -> nn.Module:
        """All weights; scores are computed on the device its parameters are on."""
        ...


def device_of(network: nn.Module) -> torch.device:
    """Device of the first parameter."""
    return next(network.parameters()).device


@contextmanager
def judging(network: nn.Module) -> Iterator[torch.device]:
    """Run a network that only judges, in its own dtype whatever autocast says around it.

    Yields:
        The device its inputs must be on.
    """
    device = device_of(network)
    with torch.inference_mode(), torch.autocast(device.type, enabled=False):
        yield device


def score_pictures(
    images: Tensor,
    examples: Sequence[Prompt],
    judge: Callable[[Tensor, list[str]], Tensor],
    batch_size: int,
) -> RewardBatch:
    """Check the inputs, round to 8 bits and judge a few pictures at a time.

    Pictures with NaN or infinity are not judged and get no valid score.

    Args:
        images: (B, H, W, 3) in 0..1.
        examples: B prompts.
        judge: Levels (b, H, W, 3) uint8 and the texts of b prompts -> b scores, on any device.
        batch_size: b at most.

    Raises:
        ValueError: Shapes or lengths do not match.
    """
    images, examples = checked_inputs(images, examples)
    values = torch.full((len(images),), torch.nan)
    usable = torch.isfinite(images).flatten(1).all(1).nonzero().flatten()
    for rows in usable.split(batch_size) if len(usable) else ():
        scores = judge(to_levels(images[rows]), [examples[int(row)].text for row in rows])
        values[rows] = scores.detach().to("cpu", torch.float32)
    return RewardBatch.of(values)


class PromptCache:
    """Features of the prompts seen last: the pictures of a group share one prompt."""

    def __init__(self, encode: Callable[[list[str]], Tensor]) -> None:
        """Remember what ``encode`` makes of n prompts, (n, D) float32 on the CPU."""
        self._encode = encode
        self._known: OrderedDict[str, Tensor] = OrderedDict()

    def __call__(self, prompts: Sequence[str]) -> Tensor:
        """Features of B prompts, (B, D); each new prompt is encoded once."""
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._known]
        if new:
            self._known |= dict(zip(new, self._encode(new).unbind(), strict=True))
        for prompt in prompts:
            self._known.move_to_end(prompt)
        features = torch.stack([self._known[prompt] for prompt in prompts])
        while len(self._known) > _REMEMBERED_PROMPTS:
            self._known.popitem(last=False)
        return features
