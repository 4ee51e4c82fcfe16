"""HPSv3: a vision-language model taught with 1.17 million choices between two pictures.

The reward Chunk-GRPO trains with. Scores have no bounds: about 10 for FLUX.1-dev, and more under
training. They can be gamed, so look at the pictures too.

Legend: B pictures, b pictures at once, H W picture size.

References:
    HPSv3: Towards Wide-Spectrum Human Preference Score (Ma et al., 2025), arXiv 2508.03789.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...method.reward import Fingerprint, RewardBatch
from ...prompts.example import Prompt
from ..files import WeightFile, digest, find_file
from .hpsv3_input import SpecialTokens, Text, load_text, patches, prepared
from .hpsv3_model import QWEN2_VL_7B, HPSv3Network, load_network
from .network import LoadOptions, judging, score_pictures

__all__ = ["WEIGHTS", "HPSv3Reward", "load_hpsv3"]

WEIGHTS = WeightFile(
    folder="hpsv3",
    name="HPSv3.safetensors",
    repo="MizzenAI/HPSv3",
    bytes=16_590_000_000,
    licence="see the page (code: MIT, base model: Apache-2.0)",
)


class HPSv3Reward:
    """The mean of the score that HPSv3 gives. Implements ``NetworkReward``."""

    name = "hpsv3"

    def __init__(
        self, network: HPSv3Network, text: Text, facts: Fingerprint, *, batch_size: int = 4
    ) -> None:
        """Judge.

        Args:
            network: From :func:`~chunk_grpo_core.rewards.networks.hpsv3_model.load_network`.
            text: Its tokenizer.
            facts: What belongs into the fingerprint besides preprocessing, tokenizer and dtype.
            batch_size: Pictures in one call of the network.
        """
        self.network, self.batch_size = network, batch_size
        self._text = text
        self._facts = {**facts, "pixels": "qwen2-vl-448-1", "text": text.digest}

    @property
    def fingerprint(self) -> Fingerprint:
        """See :class:`~chunk_grpo_core.method.reward.Reward`."""
        return {**self._facts, "dtype": str(self.network.backbone.dtype)}

    def score(self, images: Tensor, examples: Sequence[Prompt]) -> RewardBatch:
        """See :class:`~chunk_grpo_core.method.reward.Reward`.

        Raises:
            ValueError: Shapes or lengths do not match, or the pictures are more than 200 times as
                long as wide.
        """
        return score_pictures(images, examples, self._judge, self.batch_size)

    def _judge(self, levels: Tensor, prompts: list[str]) -> Tensor:
        seen, grids = zip(*(patches(prepared(picture)) for picture in levels), strict=True)
        inputs = (*self._text(prompts, [len(s) for s in seen]), torch.cat(seen), torch.stack(grids))
        with judging(self.network) as device:
            return self.network(*(tensor.to(device) for tensor in inputs))[:, 0]


def load_hpsv3(options: LoadOptions) -> HPSv3Reward:
    """Load HPSv3.

    ``bfloat16`` is what the authors run it in.

    Raises:
        FileNotFoundError: Weights or tokenizer (``vocab.json`` and ``merges.txt`` of Qwen2) are not
            on this machine.
        ValueError: A file is that of another model.
        MemoryError: It does not fit.
    """
    path = find_file(WEIGHTS, options.path, options.folders)
    special = SpecialTokens()
    text = load_text((path.parent, *options.tokenizers), special)
    network = load_network(
        path, QWEN2_VL_7B, special, device=options.device, dtype=options.torch_dtype
    )
    return HPSv3Reward(network, text, {"weights": digest(path)}, batch_size=options.batch_size)
