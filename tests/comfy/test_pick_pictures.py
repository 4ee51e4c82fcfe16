"""Pick Pictures in a real server: nothing that was clicked is lost, by whatever means."""

from __future__ import annotations

import http.client
import itertools
import json
import threading
import time
from urllib.parse import quote, urlsplit

import pytest

from . import graphs
from .client import ComfyClient
from .graphs import node, shown_text
from .picking import act, colours_of, picking, taste_of, view

CAPTION = "two large green triangles on a black background"
NAMES = itertools.count(1)


@pytest.fixture
def name():
    """Give the name of a taste that nobody has used."""
    return f"taste {next(NAMES)}"


COLOURS = [0xAA0000, 0x00BB00, 0x0000CC, 0xDDDD00]


def test_a_graph_without_a_page_picks_by_text_and_passes_on_what_was_chosen(
    name, comfy, comfy_server
):
    text = "liked: 1, 4\ndisliked: 2\nbetter: 4 > 3 > 2\nstars: , , , 5"
    prompt = picking(name, COLOURS, picks=text, prompt="flat colours", seed=5, wait=True)
    for _ in range(2):  # the same pictures and text count once
        run = comfy.run(prompt)
        assert colours_of(comfy, run, "chosen") == ["aa0000", "dddd00"]
        assert colours_of(comfy, run, "rejected") == ["00bb00"]
        assert shown_text(run, "name") == name and shown_text(run, "clicks") == "6"
        prompt["chosen"]["inputs"]["images"] = ["picker", 0]
        prompt["again"] = node("PreviewAny", source=["picker", 3])
    picks = taste_of(comfy_server, name).picks()
    assert [pick.kind for pick in picks] == ["hearts", "duel", "duel", "stars"]
    assert {(s.prompt, s.seed) for pick in picks for s in pick.shown} == {("flat colours", 5)}
    loaded = [taste_of(comfy_server, name).picture(shown)[3, 3] for shown in picks[0].shown]
    assert [[round(255 * float(x)) for x in pixel] for pixel in loaded[:2]] == [
        [0xAA, 0, 0], [0, 0xBB, 0],
    ]  # fmt: skip


def test_prompt_and_seed_are_read_from_the_graph_and_none_chosen_runs_nothing(
    name, comfy, comfy_server
):
    prompt = graphs.change(graphs.twin(graphs.PICK), "EmptySD3LatentImage", batch_size=2)
    prompt = graphs.change(prompt, "RandomNoise", noise_seed=77)
    images = prompt[graphs.find(prompt, "ChunkGRPO_ScoreImages")]["inputs"]["images"]
    picker = picking(name, [0, 0], picks="same")
    picker["picker"]["inputs"]["images"] = images
    run = comfy.run({**graphs.upstream(prompt, images[0]), **picker})
    assert "chosen" not in run.outputs and "rejected" not in run.outputs
    (pick,) = taste_of(comfy_server, name).picks()
    assert pick.kind == "same"
    assert {(s.prompt, s.seed) for s in pick.shown} == {(CAPTION, 77)}
    made = {"model": "tiny FLUX", "sampler": "euler", "noise": "torch-cpu"}
    assert [(s.index, s.made) for s in pick.shown] == [(0, made), (1, made)]


def test_a_node_that_waits_goes_on_when_told_and_ends_when_cancelled(name, comfy, comfy_server):
    prompt = picking(name, COLOURS, wait=True, prompt="x")
    first = comfy.submit(prompt)
    waits(comfy, name)
    (batch,) = view(comfy, name)["batches"]
    assert act(comfy, name, do="best", batch=batch["id"], place=2)[0] == 200
    go_on = f"/chunk_grpo/taste/{quote(name)}/go_on"
    assert comfy.post(go_on)[0] == 200
    assert colours_of(comfy, comfy.wait(first, 20), "chosen") == ["0000cc"]
    assert comfy.post(go_on)[0] == 409
    second = comfy.submit(prompt)  # something was picked since: it runs again
    waits(comfy, name)
    comfy.interrupt()
    assert comfy.wait(second, 20).interrupted
    assert not view(comfy, name)["waits"]
    assert len(taste_of(comfy_server, name).picks()) == 1


def waits(client, name):
    deadline = time.monotonic() + 20
    while not view(client, name)["waits"]:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_clicks_of_two_pages_at_once_are_all_there(name, comfy, comfy_server):
    comfy.run(picking(name, [0x111111 * n for n in range(12)], prompt="x"))
    (batch,) = view(comfy, name)["batches"]
    refused = []

    def click(places):
        for place in places:
            said = {"do": "hearts", "batch": batch["id"], "marks": [[place, 1 - place % 2 * 2]]}
            status, answer = act(ComfyClient(comfy_server.url), name, **said)
            if status != 200:
                refused.append(answer)

    pages = [threading.Thread(target=click, args=(range(n, 12, 2),)) for n in (0, 1)]
    for page in pages:
        page.start()
    for page in pages:
        page.join()
    assert refused == []
    assert view(comfy, name)["batches"][0]["hearts"] == [1, -1] * 6
    lines = taste_of(comfy_server, name).file.read_text().splitlines()
    assert [json.loads(line)["kind"] for line in lines].count("hearts") == 12


def ask(server, method, path, body=None, **headers):
    address = urlsplit(server.url)
    connection = http.client.HTTPConnection(address.hostname, address.port, timeout=60)
    try:
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


STRANGE = [
    "..", "../../models", "/etc", "C:\\x", "nul", "\0", "a\nb", "x" * 3000, "~", "%2e%2e", "a:b",
]  # fmt: skip


def test_names_files_bodies_and_pages_of_strangers_are_refused_in_words(name, comfy, comfy_server):
    comfy.run(picking(name, COLOURS, prompt="x"))
    (batch,) = view(comfy, name)["batches"]
    good = json.dumps({"do": "best", "batch": batch["id"], "place": 0})
    here = f"/chunk_grpo/taste/{quote(name)}"
    for strange in STRANGE:
        part = quote(strange, safe="")
        for method, path in (
            ("GET", f"/chunk_grpo/taste/{part}"),
            ("GET", f"/chunk_grpo/taste/{part}/pictures/{'0' * 64}.png"),
            ("GET", f"{here}/pictures/{part}"),
            ("POST", f"/chunk_grpo/taste/{part}/pick"),
            ("POST", f"/chunk_grpo/taste/{part}/go_on"),
        ):
            status, answer = ask(comfy_server, method, path, good if method == "POST" else None)
            assert status in (404, 409), (method, path[:80], status, answer[:200])
            assert len(answer) < 600
    bodies = [b"", b"[" * 100_000, b"\xff", b"1", b'{"a": [' + b"{}," * 300_000 + b"{}]}",
              b"x" * 3 * 2**20, b'{"do": "best"}', b'{"do": "best", "batch": 1}',
              good.replace(": 0", ": 9").encode(), good.replace("best", "worst").encode(),
              ]  # fmt: skip
    for body in bodies:
        status, answer = ask(comfy_server, "POST", f"{here}/pick", body)
        assert status == 400 and set(json.loads(answer)) == {"error"}, (body[:40], answer[:200])
    gone = good.replace(batch["id"], "0" * 24)
    assert ask(comfy_server, "POST", f"{here}/pick", gone)[0] == 404
    for path in ("pick", "go_on"):
        headers = {"Origin": "http://evil.test", "Host": "gpu.lan:8188"}
        assert ask(comfy_server, "POST", f"{here}/{path}", good, **headers)[0] == 403
    assert taste_of(comfy_server, name).picks() == []
    assert view(comfy, "never seen")["batches"] == []
    assert not (comfy_server.output / "chunk_grpo" / "taste" / "never seen").exists()
    taste_of(comfy_server, name).file.write_text('{"v": 1}\n')
    status, answer = ask(comfy_server, "GET", here)
    assert status == 500 and b"line 1: the key" in answer or b"kind is None" in answer
