"""The newest group of pictures of a run, as files that a page can show while the run goes on.

    <folder>/group.json            iteration, prompt, and file, reward and advantage of each sample
    <folder>/00012_03.jpg          sample 3 of iteration 12 (0-based)

Only the first group of an iteration is kept. ``group.json`` is replaced in one piece, and the files
of the group before it stay for one iteration more, so that a slow reader still finds them.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ..disk.atomic import write_whole
from ..disk.regular import read_regular
from ..rewards.pixels import to_pil
from ..train.events import AdvantagesEnd, Event, RolloutEnd
from .derived import put_aside

__all__ = ["GROUP_FILE", "LatestGroup", "read_group"]

GROUP_FILE = "group.json"
_SMALL = 256 * 256
"""Pixels up to which a picture is kept without loss."""


def read_group(folder: str | Path) -> dict[str, Any] | None:
    """What ``group.json`` says; None where there is none.

    Raises:
        ValueError: It is damaged; the message names it.
    """
    file = Path(folder) / GROUP_FILE
    try:
        group = json.loads(read_regular(file).decode("utf-8"))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ValueError(f"{file}: it cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: not JSON ({error})") from error
    samples = group.get("samples") if isinstance(group, dict) else None
    if not isinstance(samples, list) or not all(map(_is_sample, samples)):
        raise ValueError(f"{file}: it has no list of samples with their files")
    return group


def _encoded(picture: Any, small: bool) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG") if small else picture.save(file, "JPEG", quality=90)
    return file.getvalue()


def _is_sample(value: object) -> bool:
    return isinstance(value, dict) and isinstance(value.get("file"), str)


class LatestGroup:
    """Keep the first group of every iteration until the next one comes."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._held: tuple[RolloutEnd, list[Any]] | None = None

    def __call__(self, event: Event) -> None:
        """Listen to one event."""
        if isinstance(event, RolloutEnd):
            if self._held is None or self._held[0].iteration != event.iteration:
                self._held = event, to_pil(event.images)
        elif isinstance(event, AdvantagesEnd) and self._held:
            (group, pictures), self._held = self._held, None
            self._write(group, pictures, event.advantages[0])

    def _write(self, group: RolloutEnd, pictures: Sequence[Any], advantages: Tensor) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        before = self._group_before()
        names = []
        for index, picture in enumerate(pictures):
            small = picture.width * picture.height <= _SMALL
            name = f"{group.iteration:05d}_{index:02d}.{'png' if small else 'jpg'}"
            write_whole(self.folder / name, _encoded(picture, small))
            names.append(name)
        samples = [
            {"file": name, "reward": reward if math.isfinite(reward) else None, "advantage": value}
            for name, reward, value in zip(
                names, group.rewards.tolist(), advantages.tolist(), strict=True
            )
        ]
        content = {"iteration": group.iteration, "prompt": group.example.text, "samples": samples}
        write_whole(self.folder / GROUP_FILE, json.dumps(content))
        self._forget([*names, *before])

    def _group_before(self) -> list[str]:
        """Files of the group that lies in the folder."""
        try:
            group = read_group(self.folder)
        except ValueError as error:
            put_aside(self.folder / GROUP_FILE, str(error))
            return []
        return [sample["file"] for sample in group["samples"]] if group else []

    def _forget(self, kept: Sequence[str]) -> None:
        for file in self.folder.glob("*_*.*"):
            if file.name not in kept:
                file.unlink(missing_ok=True)
