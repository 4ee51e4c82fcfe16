"""A fitted taste as a reward.

Picks say nothing about prompts: pictures that please and ignore the caption get high scores. Train
on it together with a reward that follows the prompt, and with a leash (``docs/taste.md``).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ...method.asking import Person, RefitRequest
from ...method.reward import Fingerprint, RewardBatch, checked_inputs
from ...prompts.example import Prompt
from ...settings.declared import shortened
from ..files import digest
from ..networks.network import LoadOptions
from .asking import answer, clicks_about
from .encoders import TINY, VisionEncoder, encoder_without_file, load_encoder, named_encoder
from .events import counting
from .features import Encoder, features
from .fit import fit_taste
from .head import Head, load_head, save_head
from .picking.batches import keep_batches
from .picks import PICKS_FILE, Taste

__all__ = ["EncodedTasteReward", "TasteReward", "check_encoder", "load_taste"]


class TasteReward:
    """What a head says of a picture, in deviations of the pictures that it was fitted on."""

    name = "taste"

    def __init__(
        self,
        head: Head,
        facts: Fingerprint,
        *,
        encoder: Encoder | None = None,
        pessimism: float = 0.0,
        distance: float = 0.0,
        batch_size: int = 16,
        picks: Taste | None = None,
    ) -> None:
        """Judge with a head.

        Args:
            head: From ``head.load_head`` or ``fit.fit_taste``.
            facts: For the fingerprint: the digest of the head.
            encoder: The one that the head was fitted on.
            pessimism: How many deviations of the ensemble are subtracted from its mean; 0 is the
                head itself. It lowers what the picks leave open.
            distance: What is subtracted for every 1 that the extra ``unfamiliar`` is above 1. It
                lowers pictures unlike those that were shown.
            batch_size: Pictures at once.
            picks: Those that it was fitted on, for :meth:`refit`.

        Raises:
            ValueError: The encoder is missing or another one, or pessimism or distance is negative.
        """
        for name, value in (("pessimism", pessimism), ("distance", distance)):
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} is {value}; it must be 0 or above")
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
        check_encoder(head, encoder)
        self.head, self.encoder = head, encoder
        self.pessimism, self.distance, self.batch_size = pessimism, distance, batch_size
        self._facts, self._picks = dict(facts), picks

    @property
    def fingerprint(self) -> Fingerprint:
        """See :class:`~chunk_grpo_core.method.reward.Reward`."""
        encoder = {"encoder": self.head.encoder_digest} if self.head.encoder_digest else {}
        caution = {"pessimism": self.pessimism, "distance": self.distance}
        return {**self._facts, **encoder, **caution}

    def score(self, images: Tensor, examples: Sequence[Prompt]) -> RewardBatch:
        """See :class:`~chunk_grpo_core.method.reward.Reward`.

        Extras: ``taste_std``, how far the members of the ensemble are apart, and ``unfamiliar``,
        about 1 for pictures like those that were shown and more for others.
        """
        images, examples = checked_inputs(images, examples)
        values = torch.full((len(images),), torch.nan)
        spread, unfamiliar = values.clone(), values.clone()
        usable = torch.isfinite(images).flatten(1).all(1).nonzero().flatten()
        for places in usable.split(self.batch_size) if len(usable) else ():
            raw = features(images[places], self.encoder)
            scores = self.head.score(raw, [examples[int(place)].text for place in places])
            spread[places] = scores.std(0, correction=0)
            unfamiliar[places] = self.head.scaling.unfamiliar(raw).float()
            values[places] = (
                scores.mean(0) - self.pessimism * spread[places] if self.pessimism else scores[0]
            )
            if self.distance:
                values[places] -= self.distance * (unfamiliar[places] - 1).clamp(min=0)
        return RewardBatch.of(values, taste_std=spread, unfamiliar=unfamiliar)

    def check_refits(self) -> None:
        """See :class:`~chunk_grpo_core.method.asking.Refits`."""
        if self._picks is None:
            raise ValueError(
                "ask.every and ask.when_alarm stop to fit the taste again, but the reward taste "
                "does not know its picks: name their folder, picks = ..., or keep the head in it"
            )
        self._picks.picks()  # a damaged file is told before the training, not half-way

    def refit(self, request: RefitRequest, person: Person) -> TasteReward | None:
        """See :class:`~chunk_grpo_core.method.asking.Refits`: all clicks that count are fitted,
        those from before the training among them."""
        self.check_refits()
        assert self._picks is not None
        taste, config = self._picks, request.config
        texts = [example.text for example in request.examples]
        batches = keep_batches(taste, request.images, texts, kind=config.kind)
        picks = answer(
            taste, batches, person, kind=config.kind, why=request.why, wanted=config.clicks
        )
        if not clicks_about(batches, picks):
            return None
        save_head(fit_taste(taste, self.encoder, counting(picks)).head, request.file)
        return self.of_file(request.file)

    def keep(self, file: Path) -> None:
        """See :class:`~chunk_grpo_core.method.asking.Refits`; equal heads give equal files."""
        save_head(self.head, file)

    def of_file(self, file: Path) -> TasteReward:
        """See :class:`~chunk_grpo_core.method.asking.Refits`."""
        made = copy.copy(self)
        made.head, made._facts = load_head(file), {"head": digest(file)}
        return made


class EncodedTasteReward(TasteReward):
    """The same with an encoder's network. Implements ``NetworkReward``."""

    encoder: VisionEncoder

    @property
    def network(self) -> nn.Module:
        """The image tower."""
        return self.encoder.network


def check_encoder(head: Head, encoder: Encoder | None) -> None:
    """Make sure that a head gets the encoder that it was fitted on.

    Raises:
        ValueError: It is missing, not needed, or another one.
    """
    wanted, given = head.encoder_digest, encoder.digest if encoder else ""
    if wanted == given:
        return
    if not given:
        raise ValueError(
            f"the head was fitted on the encoder {head.encoder} (digest {wanted[:12]}); name its "
            "folder: encoder = ... In ComfyUI connect it to clip_vision, or use Fit Taste"
        )
    if not wanted:
        raise ValueError(
            "the head was fitted without an encoder; leave encoder out, and clip_vision in ComfyUI"
        )
    raise ValueError(
        f"the head was fitted on the encoder {head.encoder} (digest {wanted[:12]}), and encoder "
        f"names {encoder.name if encoder else ''} (digest {given[:12]}); name the other one, or "
        "fit the taste again"
    )


def load_taste(
    head: str | Path,
    encoder: str | Path | Encoder | None = None,
    pessimism: float = 0.0,
    distance: float = 0.0,
    device: str = "cpu",
    dtype: str = "float32",
    batch_size: int = 16,
    picks: str | Path | Taste | None = None,
) -> TasteReward:
    """Load a taste.

    Args:
        head: The .safetensors file that ``chunk-grpo taste fit`` wrote.
        encoder: The one that it was fitted on, if it was: loaded, ``tiny`` (which is found
            without, too), or the folder of the vision model.
        pessimism: See :class:`TasteReward`.
        distance: See :class:`TasteReward`.
        device: Of the encoder.
        dtype: Of the encoder; a head belongs to one.
        batch_size: Pictures at once.
        picks: Folder of the picks that it was fitted on, if it is to be fitted again while it
            trains; that of the head, if it holds picks.

    Raises:
        FileNotFoundError: A file is not on this machine.
        ValueError: A file is something else, or they do not belong together.
    """
    options = LoadOptions(device=device, dtype=dtype, batch_size=batch_size)
    fitted = load_head(head)
    facts = {"head": digest(head)}
    taste = _picks_of(Path(head), picks)
    if encoder is None:
        encoder = encoder_without_file(fitted.encoder, fitted.encoder_digest)
    elif str(encoder) == TINY:
        encoder = named_encoder(TINY)
    if not isinstance(encoder, (str, Path)):
        return TasteReward(
            fitted,
            facts,
            encoder=encoder,
            pessimism=pessimism,
            distance=distance,
            batch_size=batch_size,
            picks=taste,
        )
    network = load_encoder(
        encoder, device=options.device, dtype=options.torch_dtype, batch_size=batch_size
    )
    return EncodedTasteReward(
        fitted,
        facts,
        encoder=network,
        pessimism=pessimism,
        distance=distance,
        batch_size=batch_size,
        picks=taste,
    )


def _picks_of(head: Path, picks: str | Path | Taste | None) -> Taste | None:
    if isinstance(picks, Taste):
        return picks
    if picks:
        taste = Taste(picks)
        if not taste.file.is_file():
            raise FileNotFoundError(
                f"picks is {shortened(str(picks))}, but there is no {PICKS_FILE}; name the folder "
                "of the taste that the head was fitted on"
            )
        return taste
    beside = Taste(head.parent)
    return beside if beside.file.is_file() else None
