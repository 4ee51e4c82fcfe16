"""What our routes have in common: whom they answer, what they read, how they refuse."""

from __future__ import annotations

from aiohttp import web
from aiohttp.web import Request, Response

__all__ = ["body_of", "is_foreign", "refusal"]

_LARGEST_BODY = 2**20


def is_foreign(request: Request) -> bool:
    """Whether a page of another site asks; ComfyUI itself refuses that on loopback names alone."""
    origin = request.headers.get("Origin")
    return origin is not None and origin.partition("://")[2].lower() != request.host.lower()


async def body_of(request: Request) -> bytes:
    """The body.

    Raises:
        ValueError: It is too large.
    """
    body = bytearray()
    async for block in request.content.iter_any():
        body += block
        if len(body) > _LARGEST_BODY:
            raise ValueError(f"the body has more than {_LARGEST_BODY} bytes")
    return bytes(body)


def refusal(status: int, message: str) -> Response:
    """One JSON object that says why."""
    return web.json_response({"error": message}, status=status)
