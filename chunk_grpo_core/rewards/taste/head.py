"""A head: weights that make a score of what it sees of a picture, and the file it is kept in.

The first of its members is fitted on all picks, the others on picks drawn anew by prompt (a
bootstrap); how far they are apart says how sure the head is. A score is in deviations of the
pictures that were shown: 0 is the mean of them. It depends on the picture and its caption alone.

Legend: M members, B pictures, D numbers of a picture, C = 0 or 128 numbers of a caption.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...disk.atomic import write_whole
from ...disk.tensors import tensor_bytes
from ...optional import require
from ...settings.declared import shortened
from ..files import read_weights
from . import captions, statistics
from .features import Scaling

__all__ = ["FORMAT", "Head", "load_head", "primal", "save_head"]

FORMAT = "chunk-grpo taste 1"
_NAMES = ("weights", "offsets", "mean", "factor", "mean_caption")
_LARGEST = 2**28


@dataclass(frozen=True)
class Head:
    """What is in the file of a head."""

    weights: Tensor
    """(M, D, 1 + C), float32: for the picture alone, then for it with each number of a caption."""
    offsets: Tensor
    """(M,), float32: subtracted."""
    scaling: Scaling
    mean_caption: Tensor
    """(128,), float32; see ``captions.py``."""
    encoder: str = ""
    """Name of the encoder; empty without one."""
    encoder_digest: str = ""
    report: Mapping[str, Any] | None = None
    """How well it knows its owner, see ``report.py``, as JSON."""

    @property
    def reads_captions(self) -> bool:
        """Whether scores depend on the caption."""
        return self.weights.shape[2] > 1

    def score(self, raw: Tensor, texts: Sequence[str]) -> Tensor:
        """What every member says, (M, B), float32.

        Args:
            raw: (B, D), see ``features.features``.
            texts: B captions.
        """
        seen = self.scaling(raw)
        factors = torch.ones(len(seen), 1, dtype=torch.float64)
        if self.reads_captions:
            factors = torch.cat([factors, captions.caption_vectors(texts, self.mean_caption)], 1)
        # Picture by picture: a product of matrices may be rounded otherwise in another batch.
        scores = [
            (self.weights.double() @ factor) @ one
            for one, factor in zip(seen, factors, strict=True)
        ]
        stacked = torch.stack(scores, 1) if scores else torch.zeros(len(self.offsets), 0).double()
        return (stacked - self.offsets.double()[:, None]).float()


def primal(seen: Tensor, duals: Tensor, vectors: Tensor | None) -> Tensor:
    """Weights (D, 1 + C), float64, of a head in dual form.

    Args:
        seen: (n, D), what it saw of the pictures.
        duals: (n,), factor of each picture.
        vectors: (n, C), of the captions, if the kernel was that of pictures times (0.5 + that of
            captions).
    """
    if vectors is None:
        return (seen.T @ duals)[:, None]
    factors = torch.cat([torch.full((len(seen), 1), 0.5, dtype=seen.dtype), vectors], 1)
    return seen.T @ (duals[:, None] * factors)


def save_head(head: Head, path: str | Path) -> Path:
    """Write a head in one piece, tensors and text alone; equal heads give equal bytes.

    Raises:
        CannotWrite: The disk is full, or something else is in the way.
        ValueError: The path has another ending than .safetensors.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"{path} is to hold a head; its name must end in .safetensors")
    tensors = {
        "weights": head.weights.contiguous(),
        "offsets": head.offsets.contiguous(),
        "mean": head.scaling.mean.contiguous(),
        "factor": head.scaling.factor.contiguous(),
        "mean_caption": head.mean_caption.contiguous(),
    }
    facts = {
        "format": FORMAT,
        "statistics": statistics.VERSION,
        "captions": captions.VERSION if head.reads_captions else "",
        "encoder": head.encoder,
        "encoder_digest": head.encoder_digest,
        "report": json.dumps(head.report, sort_keys=True),
    }
    write_whole(path, tensor_bytes(tensors, facts))
    return path


def load_head(path: str | Path) -> Head:
    """Read a head; nothing in the file can run.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no head, one of another version, or damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no head {path}; fit one with: chunk-grpo taste fit TASTE --out {path.name}"
        )
    if path.stat().st_size > _LARGEST or path.suffix != ".safetensors":
        raise ValueError(f"{path} is no head of a taste; it must be a small .safetensors file")
    tensors = read_weights(path)
    facts = _metadata(path)
    if facts.get("format") != FORMAT:
        raise ValueError(
            f"{path} is no head of a taste that can be read: its format is "
            f"{shortened(facts.get('format'))}, and it must be {FORMAT!r}; fit it again"
        )
    for key, version in (("statistics", statistics.VERSION), ("captions", captions.VERSION)):
        if facts.get(key) not in (version, "" if key == "captions" else version):
            raise ValueError(
                f"{path} was fitted on {key} {shortened(facts.get(key))}, and this version makes "
                f"{version!r}; fit it again"
            )
    _check_tensors(tensors, bool(facts.get("captions")), bool(facts.get("encoder_digest")), path)
    dims = len(tensors["mean"])
    blocks = (statistics.COUNT, dims - statistics.COUNT)
    return Head(
        tensors["weights"],
        tensors["offsets"],
        Scaling(tensors["mean"], tensors["factor"], blocks),
        tensors["mean_caption"],
        encoder=facts.get("encoder", ""),
        encoder_digest=facts.get("encoder_digest", ""),
        report=_report(facts.get("report", "null"), path),
    )


def _metadata(path: Path) -> dict[str, str]:
    open_file = require("safetensors", "To read a head").safe_open
    with open_file(path, framework="pt") as file:
        return file.metadata() or {}


def _check_tensors(
    tensors: Mapping[str, Tensor], reads_captions: bool, has_encoder: bool, path: Path
) -> None:
    columns = 1 + captions.SIZE * reads_captions
    fits = set(tensors) == set(_NAMES) and all(
        tensor.dtype == torch.float32 and bool(tensor.isfinite().all())
        for tensor in tensors.values()
    )
    if fits:
        members, dims = len(tensors["offsets"]), len(tensors["mean"])
        fits = (
            members >= 1
            and tensors["weights"].shape == (members, dims, columns)
            and tensors["offsets"].shape == (members,)
            and tensors["mean_caption"].shape == (captions.SIZE,)
            and tensors["mean"].shape == tensors["factor"].shape == (dims,)
            and (dims > statistics.COUNT if has_encoder else dims == statistics.COUNT)
        )
    if not fits:
        raise ValueError(
            f"{path} is damaged: it must hold finite float32 tensors {', '.join(_NAMES)} that fit "
            "to each other; fit it again"
        )


def _report(text: str, path: Path) -> Mapping[str, Any] | None:
    try:
        report = json.loads(text)
    except (ValueError, RecursionError):
        report = ()
    if report is not None and not isinstance(report, dict):
        raise ValueError(f"{path} is damaged: its report is no JSON object; fit it again")
    return report
