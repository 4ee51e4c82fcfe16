"""Which part of a FLUX.1 is in a model file?

People's folders hold dozens of files that look alike. A file that is not what it was given for is
refused here, by what it is, before anything large is read. ComfyUI's whole checkpoints hold all
parts in one file, each under a prefix.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..weight_file import ModelFile, below
from .identify import PARTS, identify

__all__ = ["Part", "find_part"]


@dataclass(frozen=True)
class Part:
    """One model inside a file."""

    file: ModelFile
    prefix: str
    """What stands before its names, often nothing."""
    layout: str
    """``native`` (Black Forest Labs, ComfyUI) or ``diffusers``; text encoders are ``native``."""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name without the prefix -> shape."""
        return below(self.file.shapes, self.prefix)


def find_part(file: ModelFile, kind: str) -> Part:
    """Find one of :data:`~.identify.PARTS` in a file.

    Raises:
        ValueError: The file is something else; the message says what.
    """
    wanted = PARTS[kind]
    for prefix in wanted.prefixes:
        for layout, names in wanted.layouts.items():
            if all(prefix + name in file.shapes for name in names):
                return Part(file, prefix, layout)
    raise ValueError(f"{file.path} is {identify(file.shapes)}, not {wanted.title}")
