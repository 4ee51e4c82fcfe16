"""GenEval's reward from the files of its two networks.

References:
    GenEval (Ghosh et al., 2023), arXiv 2310.11513, section 3: a detector for objects, and CLIP
    ViT-L/14 for their colours.
"""

from __future__ import annotations

from pathlib import Path

from ..files import digest, find_file, read_weights
from ..networks.clip import CLIP_L, clip_network
from ..networks.clipscore import WEIGHTS as CLIP_WEIGHTS
from ..networks.network import LoadOptions
from ..networks.tokens import clip_tokens
from .colours import ClipColours
from .mask2former import WEIGHTS, load_mask2former
from .reward import GenevalReward

__all__ = ["load_geneval"]


def load_geneval(
    options: LoadOptions,
    *,
    partial: bool = False,
    colours: bool = True,
    clip: str | Path | None = None,
) -> GenevalReward:
    """Load the detector and, for colours, CLIP-L.

    Args:
        options: Where the detector is (``path``: its ``model.safetensors``, or the folder of that
            and of its ``config.json``) and how both networks run. Pictures are looked at one by
            one, whatever ``batch_size`` is.
        partial: Credit for what is right in a picture that is wrong, instead of 0 or 1.
        colours: Whether to load CLIP; without it, prompts that ask for colours are refused.
        clip: File of CLIP-L; looked for in the folders when None.

    Raises:
        FileNotFoundError: A file is not on this machine.
        ValueError: A file is that of another model.
    """
    path = find_file(WEIGHTS, options.path, options.folders)
    reader = _clip_colours(options, clip) if colours else None
    detector = load_mask2former(path, options.device, options.torch_dtype)
    return GenevalReward(detector, reader, partial=partial)


def _clip_colours(options: LoadOptions, clip: str | Path | None) -> ClipColours:
    path = find_file(CLIP_WEIGHTS["clip-l"], clip, options.folders, "clip")
    tokens = clip_tokens((path.parent, *options.tokenizers), length=CLIP_L.tokens)
    network = clip_network(CLIP_L, read_weights(path), path)
    facts = {"weights": digest(path), "tokenizer": tokens.digest}
    return ClipColours(network.to(options.device, options.torch_dtype), tokens, facts)
