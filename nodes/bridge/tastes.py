"""Picking in this ComfyUI: who waits for picks, and what pages ask.

    GET  /chunk_grpo/taste/{name}                      ``taste_view``, and "waits"
    GET  /chunk_grpo/taste/{name}/pictures/{hash}.png  a picture that was shown
    POST /chunk_grpo/taste/{name}/pick                 ``act`` of the body; answers as the first one
    POST /chunk_grpo/taste/{name}/go_on                the node that waits goes on

``waits`` is whether a node does. Pages hear ``chunk_grpo.taste`` {"taste": name} when something is
new.
"""

from __future__ import annotations

import asyncio
import re
import threading
from collections import Counter
from typing import Any

from aiohttp import web
from aiohttp.web import Request, Response

from ...chunk_grpo_core.disk.lock import InUse
from ...chunk_grpo_core.rewards.safe_json import parse_json
from ...chunk_grpo_core.rewards.taste.picking.view import act, taste_view
from ...chunk_grpo_core.rewards.taste.picks import Taste
from .answers import body_of, is_foreign, refusal
from .host import check_interrupt, page_server, send_event
from .taste_heads import named_taste

__all__ = ["add_taste_routes", "tell_pages", "wait_for_picks"]

_PICTURE = re.compile(r"[0-9a-f]{64}\.png")
_PAUSE = 0.1
"""Seconds between two looks at whether somebody pressed Cancel."""

_waiting: Counter[str] = Counter()
_go_on: dict[str, threading.Event] = {}
_lock = threading.Lock()


def tell_pages(name: str) -> None:
    """Let every open page ask anew."""
    send_event("chunk_grpo.taste", {"taste": name})


def wait_for_picks(name: str) -> None:
    """Stay until somebody presses Done in a page.

    Raises:
        InterruptProcessingException: The user pressed Cancel.
    """
    with _lock:
        event = _go_on.setdefault(name, threading.Event())
        event.clear()
        _waiting[name] += 1
    tell_pages(name)
    try:
        while not event.wait(_PAUSE):
            check_interrupt()
    finally:
        with _lock:
            _waiting[name] -= 1
        tell_pages(name)


def add_taste_routes() -> None:
    """Answer pages of this ComfyUI; where there is no server, nobody asks."""
    server = page_server()
    if server is not None:
        routes, start = server.routes, "/chunk_grpo/taste/{name}"
        routes.get(start)(_show)
        routes.get(f"{start}/pictures/{{file}}")(_show_picture)
        routes.post(f"{start}/pick")(_pick)
        routes.post(f"{start}/go_on")(_let_go_on)


async def _show(request: Request) -> Response:
    return await _answer(request, taste_view)


async def _pick(request: Request) -> Response:
    if is_foreign(request):
        return refusal(403, "pages of other sites may not pick")
    try:
        said = parse_json(await body_of(request))
    except ValueError as error:
        return refusal(400, f"the body is no pick: {error}")

    def do(taste: Taste) -> dict[str, Any]:
        if act(taste, said):
            tell_pages(taste.folder.name)
        return taste_view(taste)

    return await _answer(request, do, bad=400)


async def _let_go_on(request: Request) -> Response:
    if is_foreign(request):
        return refusal(403, "pages of other sites may not go on")
    name = request.match_info["name"].strip()
    with _lock:
        waits = _waiting[name] > 0
        if waits:
            _go_on[name].set()
    return web.json_response({}) if waits else refusal(409, "no node waits for these picks")


async def _show_picture(request: Request) -> web.StreamResponse:
    file = request.match_info["file"]
    if not _PICTURE.fullmatch(file):
        return refusal(404, f"{file[:100]!r} is no picture of a taste")
    try:
        path = named_taste(request.match_info["name"]).folder / "pictures" / file
    except ValueError as error:
        return refusal(404, str(error))
    if not path.is_file():
        return refusal(404, f"there is no picture {file!r}")
    forever = {"Cache-Control": "private, max-age=31536000, immutable"}  # its name is its hash
    return web.FileResponse(path, headers=forever)


async def _answer(request: Request, ask: Any, bad: int = 500) -> Response:
    """What ``ask`` makes of the taste, off the thread of the server."""
    name = request.match_info["name"].strip()
    try:
        taste = named_taste(name)
    except ValueError as error:
        return refusal(404, str(error))
    try:
        view = await asyncio.to_thread(ask, taste)
    except FileNotFoundError as error:
        return refusal(404, str(error))
    except InUse as error:
        return refusal(409, f"somebody else writes to this taste ({error}); try again")
    except ValueError as error:
        return refusal(bad, str(error))
    except OSError as error:
        return refusal(500, str(error))
    return web.json_response({**view, "waits": _waiting[name] > 0})
