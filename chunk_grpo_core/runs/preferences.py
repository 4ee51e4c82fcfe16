"""Training on picks without rollouts: prompts that carry judged pictures, and their latents."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ..algorithms.preference import JudgedLatents
from ..method.cancel import CheckCancel, never_cancel
from ..method.policy import PictureEncoder, Policy
from ..prompts.example import Example
from ..prompts.files import PromptLine
from ..prompts.judged import Judged
from ..prompts.split import PromptConfig, PromptSet, make_prompt_set
from ..rewards.taste.events import Shown
from ..rewards.taste.judged import judged_examples
from ..rewards.taste.picks import PICKS_FILE, Taste
from ..settings.declared import shortened

__all__ = ["judged_latents", "judged_prompts"]

log = logging.getLogger(__name__)


def judged_prompts(
    taste: Taste, objective: str, held_out: Sequence[PromptLine], split: PromptConfig
) -> PromptSet:
    """One prompt for each click to train on, and prompts to measure on.

    Args:
        taste: Whose picks.
        objective: What they are for, dpo or kto.
        held_out: Prompts to measure on; without any, some of those of the picks, whose clicks are
            then left out of training.
        split: How many, and which.

    Raises:
        FileNotFoundError: There are no picks.
        ValueError: No pick can be trained on, or a line of the file is wrong.
    """
    if not taste.file.is_file():
        raise FileNotFoundError(
            f"preference.picks is {shortened(str(taste.folder))}, but there is no {PICKS_FILE}; "
            "name the folder of a taste, or pick pictures first (chunk-grpo taste add)"
        )
    picks = taste.counting()
    examples = judged_examples(picks, objective)
    if not examples:
        wanted = (
            "comparisons (duel, best, hearts) of pictures of one prompt, or likes and dislikes"
            if objective == "dpo"
            else "clicks on pictures whose prompt is known"
        )
        raise ValueError(
            f"{taste.file} has {len(picks)} picks, but none that can be trained on: "
            f'objective "{objective}" needs {wanted}'
        )
    texts = dict.fromkeys(example.text for example in examples)
    lines = [PromptLine(text=text, where=f"the picks in {taste.file}") for text in texts]
    prompts = make_prompt_set(lines, held_out, replace(split, variants=0))
    kept = {example.text for example in prompts.train}
    return replace(prompts, train=tuple(one for one in examples if one.text in kept))


def judged_latents(
    taste: Taste,
    policy: Policy,
    examples: Sequence[Example],
    check_cancel: CheckCancel = never_cancel,
) -> JudgedLatents:
    """Encode the pictures that prompts carry, each once.

    Args:
        taste: Where the pictures are.
        policy: Its picture encoder is used; the size of its pictures is that of all.
        examples: From :func:`judged_prompts`, or from the record of a run.
        check_cancel: Called after every picture.

    Raises:
        FileNotFoundError: A picture is gone.
        ValueError: A picture is not what it was, or the model cannot encode pictures.
    """
    if not isinstance(policy, PictureEncoder):
        raise _no_encoder(policy)
    shown_as: dict[str, Shown] = {
        shown.picture: shown for pick in taste.picks() for shown in pick.shown
    }
    height, width = policy.decode(torch.zeros(1, *policy.latent_shape)).shape[1:3]
    names = dict.fromkeys(name for example in examples for name in Judged.of(example).pictures)
    latents, scaled = {}, set()
    for name in names:
        picture = taste.picture(shown_as.get(name) or Shown(picture=name))
        if picture.shape[:2] != (height, width):
            scaled.add(name)
        latent = policy.encode(_fitted(picture, height, width)[None])
        if latent is None:
            raise _no_encoder(policy)
        latents[name] = latent[0].cpu().float()
        check_cancel()
    if scaled:
        log.warning(
            "%d of %d judged pictures have another size than %d x %d, which is trained; they were "
            "scaled and cropped, and the noise that they began with is not used",
            len(scaled), len(names), width, height,
        )  # fmt: skip
    return JudgedLatents(latents, frozenset(scaled))


def _no_encoder(policy: Policy) -> ValueError:
    return ValueError(
        f"the model {policy.name} cannot turn pictures into latents, which the algorithm "
        "preference needs; train it on a taste as reward instead (docs/taste.md)"
    )


def _fitted(picture: Tensor, height: int, width: int) -> Tensor:
    """Scale a picture (h, w, 3) so that it covers a size, and cut out its middle."""
    if picture.shape[:2] == (height, width):
        return picture
    scale = max(height / picture.shape[0], width / picture.shape[1])
    size = [
        max(round(picture.shape[0] * scale), height),
        max(round(picture.shape[1] * scale), width),
    ]
    planes = picture.permute(2, 0, 1)[None]
    scaled = interpolate(planes, size, mode="bicubic", antialias=True).clamp(0.0, 1.0)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    return scaled[0, :, top : top + height, left : left + width].permute(1, 2, 0)
