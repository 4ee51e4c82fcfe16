"""LAION's aesthetic predictor, version 2: how much people like a picture, whatever the prompt.

One linear map of CLIP-L's image features. Without a prompt it pulls every picture towards the same
pretty look: give it a small weight beside a reward that reads the prompt.

References:
    LAION-5B: An open large-scale dataset for training next generation image-text models (Schuhmann
    et al., 2022), arXiv 2210.08402; code and head:
    https://github.com/christophschuhmann/improved-aesthetic-predictor
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from ...method.reward import Fingerprint, RewardBatch
from ...prompts.example import Prompt
from ..files import WeightFile, digest, find_file, read_weights
from ..pixels import cropped
from .clip import CLIP_L, image_features, vision_network
from .clipscore import WEIGHTS as CLIP_WEIGHTS
from .linear_head import linear_head
from .network import LoadOptions, judging, score_pictures

__all__ = ["HEAD", "AestheticReward", "load_aesthetic"]

HEAD = WeightFile(
    folder="aesthetic",
    name="sac+logos+ava1-l14-linearMSE.pth",
    repo="christophschuhmann/improved-aesthetic-predictor",
    bytes=3_714_759,
    licence="Apache-2.0",
    revision="6934dd81792f086e613a121dbce43082cb8be85e",
    sha256="21dd590f3ccdc646f0d53120778b296013b096a035a2718c9cb0d511bff0f1e0",
    host="github.com",
)


class AestheticReward:
    """A linear map of CLIP's image features. Implements ``NetworkReward``."""

    name = "aesthetic"

    def __init__(
        self, tower: nn.Module, head: nn.Linear, facts: Fingerprint, batch_size: int = 16
    ) -> None:
        """Judge with an image tower (``vision_network``) and a head on its features."""
        self.network = nn.ModuleDict({"tower": tower, "head": head})
        self.batch_size = batch_size
        self._facts = dict(facts)

    @property
    def fingerprint(self) -> Fingerprint:
        """See :class:`~chunk_grpo_core.method.reward.Reward`."""
        return {**self._facts, "dtype": str(next(self.network.parameters()).dtype)}

    def score(self, images: Tensor, examples: Sequence[Prompt]) -> RewardBatch:
        """See :class:`~chunk_grpo_core.method.reward.Reward`; prompts are not looked at."""
        return score_pictures(images, examples, self._judge, self.batch_size)

    def _judge(self, levels: Tensor, prompts: list[str]) -> Tensor:
        with judging(self.network):
            features = image_features(self.network["tower"], levels, cropped("round"))
            return self.network["head"](features)[:, 0]


def load_aesthetic(options: LoadOptions, *, head: str | Path | None = None) -> AestheticReward:
    """Load the predictor: about 1 to 10, most pictures 4 to 7.

    Args:
        options: Where CLIP-L is (a file with the image tower alone will do, such as those of
            ComfyUI's ``clip_vision``) and how it runs.
        head: File of the head; looked for in the folders when None.

    Raises:
        FileNotFoundError: A file is not on this machine.
        ValueError: A file is that of another model.
    """
    if options.path is not None:  # what was named is looked at first
        find_file(CLIP_WEIGHTS["clip-l"], options.path)
    head_path = find_file(HEAD, head, options.folders, "head")
    path = find_file(CLIP_WEIGHTS["clip-l"], options.path, options.folders)
    tower = vision_network(CLIP_L, read_weights(path), path)
    tower = tower.to(options.device, options.torch_dtype)
    layers = linear_head(read_weights(head_path), head_path).to(options.device)
    if layers.in_features != CLIP_L.features:
        raise ValueError(
            f"{head_path} does not fit: its head reads {layers.in_features} features, and CLIP-L "
            f"gives {CLIP_L.features}"
        )
    facts = {"weights": digest(path), "head": digest(head_path), "pixels": "crop-round-1"}
    return AestheticReward(tower, layers, facts, options.batch_size)
