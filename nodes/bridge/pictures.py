"""Pictures for the page: files in ComfyUI's temporary folder, which it empties when it starts."""

from __future__ import annotations

from collections.abc import Sequence

from comfy_api.latest import ui
from torch import Tensor

__all__ = ["temporary_pictures"]


def temporary_pictures(pictures: Sequence[Tensor] | Tensor) -> list[dict[str, str]]:
    """Write pictures as PNG, without the workflow in them.

    Args:
        pictures: Each (H, W, 3) in 0..1; they may differ in size.

    Returns:
        For each what GET /view asks for: ``filename``, ``subfolder`` and ``type``.
    """
    if not len(pictures):
        return []
    return [dict(file) for file in ui.PreviewImage(pictures).as_dict()["images"]]
