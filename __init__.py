"""ComfyUI custom node pack: reinforcement learning of flow-matching models by Chunk-GRPO."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .nodes.extension import ChunkGRPOExtension

WEB_DIRECTORY = "./web"


async def comfy_entrypoint() -> ChunkGRPOExtension:
    """Build the extension only when ComfyUI asks, so that this file imports without ComfyUI."""
    try:
        from .nodes.extension import ChunkGRPOExtension
    except Exception:  # ComfyUI's loader prints one line without the traceback
        logging.getLogger(__name__).exception("Chunk-GRPO could not be loaded")
        raise
    return ChunkGRPOExtension()
