"""Blind duels of this ComfyUI: where they lie, and what pages ask.

    GET  /chunk_grpo/runs/{name}/duels/{number}         ``duels_view``
    GET  /chunk_grpo/runs/{name}/duels/{number}/{file}  a picture, such as 01_left.png
    POST /chunk_grpo/runs/{name}/duels/{number}         {"duel": 1, "answer": 2}, {"answers": "120"}
                                                        or {"undo": true}; answers as the first one

``name`` is that of a run, or ``evaluation`` where no run was connected; ``number`` is the folder,
such as 001. Pages hear ``chunk_grpo.duels`` {"run": name, "number": number} when one was answered.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from aiohttp import web
from aiohttp.web import Request, Response
from torch import Tensor

from ...chunk_grpo_core.disk.lock import InUse
from ...chunk_grpo_core.measure.duels import (
    Duel,
    answered,
    sides_drawn_again,
    with_answer,
    without_last_answer,
)
from ...chunk_grpo_core.rewards.safe_json import parse_json
from ...chunk_grpo_core.runs.duels import (
    change_duels,
    digest_of_pictures,
    duels_view,
    keep_duels,
    read_duels,
)
from ...chunk_grpo_core.settings.declared import shortened
from .answers import body_of, is_foreign, refusal
from .host import page_server, run_folder, send_event

__all__ = ["add_duel_routes", "kept_duels"]

_WITHOUT_RUN = "evaluation"
_NUMBER = re.compile(r"[0-9]{3,6}")
_PICTURE = re.compile(r"[0-9]{2,3}_(left|right)\.png")
_FOLDER = "duels"


def kept_duels(
    drawn: Sequence[Duel], base: Sequence[Tensor], lora: Sequence[Tensor], run: str | None
) -> dict[str, list[Any]]:
    """Store duels with a run, and say to the page where: ``run``, ``number`` and ``id``.

    Args:
        drawn: One or more; the pictures draw their sides.
        base: A picture (H, W, 3) of each, without the LoRA.
        lora: The same with the LoRA.
        run: Folder of the run; None where there is none.

    Raises:
        CannotWrite: The disk is full, or something else is in the way.
    """
    duels = sides_drawn_again(drawn, digest_of_pictures(base, lora))
    folder = run_folder(_WITHOUT_RUN) if run is None else Path(run)
    kept = keep_duels(folder / _FOLDER, duels, base, lora)
    where = {"run": folder.name, "number": kept.name, "id": duels_view(duels)["id"]}
    return {"chunk_grpo_duels": [where]}


def add_duel_routes() -> None:
    """Answer pages of this ComfyUI; where there is no server, nobody asks."""
    server = page_server()
    if server is not None:
        routes, start = server.routes, "/chunk_grpo/runs/{name}/duels/{number}"
        routes.get(start)(_show)
        routes.post(start)(_answer)
        routes.get(f"{start}/{{file}}")(_show_picture)


async def _show(request: Request) -> Response:
    return await _view(request, read_duels)


async def _answer(request: Request) -> Response:
    if is_foreign(request):
        return refusal(403, "pages of other sites may not answer")
    try:
        change = _change(parse_json(await body_of(request)))
    except ValueError as error:
        return refusal(400, f"the body is no answer: {error}")

    def do(folder: Path) -> list[Duel]:
        after = change_duels(folder, change)
        where = {"run": request.match_info["name"], "number": request.match_info["number"]}
        send_event("chunk_grpo.duels", where)
        return after

    return await _view(request, do, bad=400)


def _change(said: Any) -> Callable[[list[Duel]], list[Duel]]:
    """What a body asks for."""
    keys = set(said) if isinstance(said, dict) else None
    if keys == {"undo"} and said["undo"] is True:
        return without_last_answer
    if keys == {"answers"} and isinstance(said["answers"], str):
        return lambda duels: answered(duels, said["answers"])[0]
    if keys == {"duel", "answer"}:
        return lambda duels: with_answer(duels, said["duel"], said["answer"])
    raise ValueError(
        f'{shortened(said)}; write {{"duel": 1, "answer": 2}} (1 left, 2 right, 0 the same), '
        '{"answers": "1201..."} or {"undo": true}'
    )


async def _show_picture(request: Request) -> web.StreamResponse:
    file = request.match_info["file"]
    try:
        folder = _folder(request)
    except FileNotFoundError as error:
        return refusal(404, str(error))
    if not _PICTURE.fullmatch(file) or not (folder / file).is_file():
        return refusal(404, f"there is no picture {file[:100]!r}")
    return web.FileResponse(folder / file, headers={"Cache-Control": "private, no-cache"})


async def _view(request: Request, ask: Callable[[Path], list[Duel]], bad: int = 500) -> Response:
    """What a page sees of the duels that ``ask`` gives, off the thread of the server."""
    try:
        duels = await asyncio.to_thread(ask, _folder(request))
    except FileNotFoundError as error:
        return refusal(404, str(error))
    except InUse as error:
        return refusal(409, f"somebody else answers these duels ({error}); try again")
    except ValueError as error:
        return refusal(bad, str(error))
    except OSError as error:
        return refusal(500, str(error))
    return web.json_response(duels_view(duels))


def _folder(request: Request) -> Path:
    """Of the duels; a name that can be none is one that does not exist."""
    name, number = request.match_info["name"], request.match_info["number"]
    try:
        run = run_folder(name)
    except ValueError as error:
        raise FileNotFoundError(str(error)) from error
    if not _NUMBER.fullmatch(number):
        raise FileNotFoundError(f"{number[:40]!r} is no number of duels, such as 001")
    return run / _FOLDER / number
