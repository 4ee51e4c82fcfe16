"""What pages may ask: about runs, and what the text of a chunk plan means.

    GET  /chunk_grpo/runs                        {"runs": [name, ...], "live": status or null}
    GET  /chunk_grpo/runs/{name}?since=12        ``run_view``, and "live": status or null
    GET  /chunk_grpo/runs/{name}/group/{file}    a picture of the newest group
    POST /chunk_grpo/runs/{name}/stop            end after the current update, keep the LoRA
    GET  /chunk_grpo/runs/{name}/ask             ``asks`` of the status, and "batches" (below)
    POST /chunk_grpo/runs/{name}/ask/answer      {"said": text, "done": bool}; answers as GET
    POST /chunk_grpo/runs/{name}/ask/go_on       go on with what was said so far
    POST /chunk_grpo/chunk_plan                  ``plan_view`` of {chunk_sizes, weights, curve}

``live`` in the first answer is that of the node ``?node=7&workflow=...``. A status is what
``LiveRun.status`` gives; null means that ComfyUI has not run it since it started.

While a run waits for its person, ``asks`` of its status is, and otherwise null:

    {"taste": "mine",          where pictures and clicks go (``tastes.py``: GET .../pictures/, POST
                               .../pick; {"do": "done", "batch": id} says that this was all)
     "batches": [id, ...],     what is asked about, in order
     "kind": "best",           how it is shown first: hearts, best, duels or stars
     "given": 3, "wanted": 16, clicks about them, and after how many the run goes on by itself;
                               wanted 0: when each batch is answered or done
     "why": "votes"}           or "every 10 iterations", "alarm collapse"

``batches`` of /ask are those of ``taste_view`` that are asked about. ``said`` is a text as Pick
Pictures takes it (``picking/said.py``), with the ``numbers`` of the batches; ``done`` says that
this was all about them. A text that is none is refused whole. Stop and Cancel end the waiting, too.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

from aiohttp import web
from aiohttp.web import Request, Response

from ...chunk_grpo_core.disk.lock import InUse
from ...chunk_grpo_core.method.asking import Question
from ...chunk_grpo_core.method.dynamics import DynamicsCurve
from ...chunk_grpo_core.rewards.safe_json import parse_json
from ...chunk_grpo_core.rewards.taste.asking import AnswerClosed, answer_in_words
from ...chunk_grpo_core.rewards.taste.picking.batches import read_batch
from ...chunk_grpo_core.rewards.taste.picking.view import batch_views
from ...chunk_grpo_core.runs.view import run_names, run_view
from ...chunk_grpo_core.watch.plan_view import plan_view
from .answers import body_of, is_foreign, refusal
from .host import output_folder, page_server, run_folder
from .monitor import Asker, LiveRun, live_run, run_of_node
from .taste_heads import named_taste
from .tastes import tell_pages

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
        routes.get("/chunk_grpo/runs/{name}/ask")(_show_question)
        routes.post("/chunk_grpo/runs/{name}/ask/answer")(_answer)
        routes.post("/chunk_grpo/runs/{name}/ask/go_on")(_go_on)
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


async def _show_question(request: Request) -> Response:
    run = live_run(request.match_info["name"])
    if run is None:
        return refusal(404, f"the run {request.match_info['name']!r} is not running")
    if run.question is None:
        return web.json_response({"asks": None, "batches": []})
    try:
        return web.json_response(await asyncio.to_thread(_question_view, run.question))
    except ValueError as error:
        return refusal(500, str(error))


async def _answer(request: Request) -> Response:
    if is_foreign(request):
        return refusal(403, "pages of other sites may not answer")
    run, question = _who_asks(request)
    if run is None or question is None:
        return refusal(409, f"the run {request.match_info['name']!r} does not ask anything now")
    try:
        said, closes = _said(parse_json(await body_of(request)))
        await asyncio.to_thread(_answer_question, question, said, closes)
        view = await asyncio.to_thread(_question_view, question)
    except AnswerClosed as error:
        return refusal(409, str(error))
    except ValueError as error:
        return refusal(400, str(error))
    except InUse as error:
        return refusal(409, f"somebody else writes to this taste ({error}); try again")
    except OSError as error:
        return refusal(500, str(error))
    tell_pages(question.folder.name)
    return web.json_response(view)


async def _go_on(request: Request) -> Response:
    if is_foreign(request):
        return refusal(403, "pages of other sites may not go on")
    run, question = _who_asks(request)
    if run is None or question is None:
        return refusal(409, f"the run {request.match_info['name']!r} does not ask anything now")
    run.go_on()
    return web.json_response(run.status())


def _who_asks(request: Request) -> tuple[LiveRun | None, Question | None]:
    run = live_run(request.match_info["name"])
    return run, run.question if run is not None and run.is_running else None


def _question_view(question: Question) -> dict[str, Any]:
    taste = named_taste(question.folder.name)
    return {"asks": question.to_json(), "batches": batch_views(taste, question.batches)}


def _answer_question(question: Question, said: str, closes: bool) -> None:
    taste = named_taste(question.folder.name)
    batches = [read_batch(taste, name) for name in question.batches]
    answer_in_words(taste, batches, said, closes=closes)


def _said(body: Any) -> tuple[str, bool]:
    said = body.get("said", "") if isinstance(body, dict) else None
    closes = body.get("done", False) if isinstance(body, dict) else None
    if not isinstance(said, str) or not isinstance(closes, bool) or not (said.strip() or closes):
        raise ValueError('write {"said": "liked: 1, 4", "done": true}')
    return said, closes


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
