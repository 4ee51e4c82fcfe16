"""What pages may ask: about runs, and what the text of a chunk plan means.

    GET  /chunk_grpo/runs                        {"runs": [name, ...], "live": status or null}
    GET  /chunk_grpo/runs/{name}?since=12        ``run_view``, and "live": status or null
    GET  /chunk_grpo/runs/{name}/group/{file}    a picture of the newest group
    POST /chunk_grpo/runs/{name}/stop            end after the current update, keep the LoRA
    POST /chunk_grpo/chunk_plan                  ``plan_view`` of {chunk_sizes, weights, curve}

``live`` in the first answer is that of the node ``?node=7&workflow=...``. A status is what
``LiveRun.status`` gives; null means that ComfyUI has not run it since it started.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

from aiohttp import web
from aiohttp.web import Request, Response

from ...chunk_grpo_core.method.dynamics import DynamicsCurve
from ...chunk_grpo_core.rewards.safe_json import parse_json
from ...chunk_grpo_core.runs.view import run_names, run_view
from ...chunk_grpo_core.watch.plan_view import plan_view
from .answers import body_of, is_foreign, refusal
from .host import output_folder, page_server, run_folder
from .monitor import Asker, LiveRun, live_run, run_of_node

__all__ = ["add_routes"]

_PICTURE = re.compile(r"\d{5,}_\d{2,}\.(png|jpg)")


def add_routes() -> None:
    """Answer pages of this ComfyUI; where there is no server, nobody asks."""
    server = page_server()
    if server is not None:
        routes = server.routes
        routes.get("/chunk_grpo/runs")(_list_runs)
        routes.get("/chunk_grpo/runs/{name}")(_show_run)
        routes.get("/chunk_grpo/runs/{name}/group/{file}")(_show_picture)
        routes.post("/chunk_grpo/runs/{name}/stop")(_stop_run)
        routes.post("/chunk_grpo/chunk_plan")(_show_plan)


async def _list_runs(request: Request) -> Response:
    asker = Asker(request.query.get("node", ""), request.query.get("workflow", ""))
    names = await asyncio.to_thread(run_names, output_folder())
    return web.json_response({"runs": names, "live": _status(run_of_node(asker))})


async def _show_run(request: Request) -> Response:
    try:
        since = int(request.query.get("since", 0))
    except ValueError:
        return refusal(400, f"since is {request.query['since'][:40]!r}; write a whole number")
    name = request.match_info["name"]
    try:
        view = await asyncio.to_thread(run_view, _folder(name), since)
    except FileNotFoundError:
        if live_run(name) is None:
            return refusal(404, f"there is no run called {name!r}")
        view = {}  # it has only just begun
    except ValueError as error:
        return refusal(500, str(error))
    return web.json_response({**view, "live": _status(live_run(name))})


async def _show_picture(request: Request) -> web.StreamResponse:
    file = request.match_info["file"]
    if not _PICTURE.fullmatch(file):
        return refusal(404, f"{file!r} is no picture of a group")
    try:
        path = _folder(request.match_info["name"]) / "group" / file
    except FileNotFoundError as error:
        return refusal(404, str(error))
    if not path.is_file():
        return refusal(404, f"there is no picture {file!r}; a newer group has taken its place")
    return web.FileResponse(path, headers={"Cache-Control": "private, max-age=3600"})


async def _stop_run(request: Request) -> Response:
    if is_foreign(request):
        return refusal(403, "pages of other sites may not stop a run")
    name = request.match_info["name"]
    run = live_run(name)
    if run is None or not run.is_running:
        return refusal(409, f"the run {name!r} is not running")
    run.stop()
    return web.json_response(run.status())


async def _show_plan(request: Request) -> Response:
    try:
        question = _plan_question(parse_json(await body_of(request)))
    except (KeyError, TypeError, ValueError) as error:
        message = "write {chunk_sizes: text, weights: text or null, curve: a curve or null}"
        return refusal(400, f"{message} ({type(error).__name__}: {str(error)[:500]})")
    return web.json_response(asdict(await asyncio.to_thread(plan_view, *question)))


def _plan_question(body: Any) -> tuple[str, str | None, DynamicsCurve | None]:
    """Chunk sizes, weights and curve of a request."""
    sizes, weights, curve = body["chunk_sizes"], body["weights"], body["curve"]
    if not isinstance(sizes, str) or not isinstance(weights, str | None):
        raise TypeError(f"chunk_sizes is {sizes!r} and weights is {weights!r}")
    if curve is not None:
        curve = DynamicsCurve.from_json(curve)
        for number in (*curve.mean, *curve.std, *curve.sigmas):
            if not isinstance(number, int | float) or not abs(number) < 1e100:
                raise TypeError("the curve holds something that is no number")
    return sizes, weights, curve


def _folder(name: str) -> Path:
    """The folder of a run; a name that can be none is one that does not exist."""
    try:
        return run_folder(name)
    except ValueError as error:
        raise FileNotFoundError(str(error)) from error


def _status(run: LiveRun | None) -> dict[str, Any] | None:
    return run.status() if run else None
