"""Our routes answer hostile names, origins and bodies with one JSON error, and do nothing."""

from __future__ import annotations

import http.client
import json
from urllib.parse import quote, urlsplit

import pytest

RUNS, PLAN = "/chunk_grpo/runs", "/chunk_grpo/chunk_plan"
NAMES = [
    "..", "../../models", "/etc", "C:\\x", "..\\..\\x", "nul", "\0", "a\nb", "x" * 3000,
    ".conditioning", "~", "%2e%2e", "<script>", "\u202e", "-", "a:b",
]  # fmt: skip
CURVE = {"mean": [0.5, 0.4, 0.3], "std": [0.0] * 3, "prompts": 1, "samples": 2}
CURVE |= {"sigmas": [1.0, 0.6, 0.3, 0.0], "rule": "flow", "eta": 0.7, "model": "x"}


def ask(server, method, path, body=None, **headers):
    """Send a request as it is -> status, answer."""
    address = urlsplit(server.url)
    connection = http.client.HTTPConnection(address.hostname, address.port, timeout=60)
    try:
        more = {key.replace("_", "-"): value for key, value in headers.items()}
        connection.request(method, path, body, more)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_is_no_run_is_not_found(name, comfy_server):
    where = f"{RUNS}/{quote(name, safe='')}"
    paths = [where, f"{where}/group/00001_01.png", f"{RUNS}/x/group/{quote(name, safe='')}"]
    for path in paths:
        status, answer = ask(comfy_server, "GET", path)
        assert status == 404, (path, status, answer[:200])
    status, answer = ask(comfy_server, "POST", f"{where}/stop")
    assert status in (404, 409)


@pytest.mark.parametrize("since", ["x", "", "1e3", "9" * 5000, "\u0661", "-1", "1&since=2"])
def test_a_first_iteration_that_is_no_number_breaks_nothing(since, comfy_server):
    status, answer = ask(comfy_server, "GET", f"{RUNS}/gone?since={quote(since, safe='&=')}")
    assert status in (400, 404) and len(answer) < 300


@pytest.mark.parametrize("origin", ["http://evil.test", "null", "https://localhost:1", ""])
def test_pages_of_other_sites_stop_no_run(origin, comfy_server):
    status, answer = ask(comfy_server, "POST", f"{RUNS}/x/stop", Origin=origin, Host="gpu.lan:8188")
    assert status == 403, answer
    same = {"Origin": "http://gpu.lan:8188", "Host": "gpu.lan:8188"}
    assert ask(comfy_server, "POST", f"{RUNS}/x/stop", **same)[0] == 409


def question(**changes):
    known = {"chunk_sizes": "2", "weights": None, "curve": None}
    return json.dumps({**known, **changes}).encode()


BODIES = {
    "nothing": b"",
    "noise": bytes(range(256)),
    "deep": b"[" * 100_000,
    "deep inside": question()[:-1] + b', "x": ' + b"[" * 50_000 + b"]" * 50_000 + b"}",
    "a million objects": b'{"a": [' + b"{}," * 300_000 + b"{}]}",
    "two MiB": question(chunk_sizes="1" * 2 * 2**20),
    "list": b"[]",
    "number": b"1",
    "huge number": question(curve={**CURVE, "mean": [10**400] * 3}),
    "nan": question(curve={**CURVE, "mean": [float("nan")] * 3}),
    "texts": question(curve={**CURVE, "sigmas": ["a"] * 4}),
    "curve that is a list": question(curve=[1, 2]),
    "curve that is a text": question(curve="x" * 1000),
    "curve with more": question(curve={**CURVE, "__class__": "x"}),
    "sizes that are a list": question(chunk_sizes=[1, 2]),
    "weights that are an object": question(weights={}),
}


@pytest.mark.parametrize("name", BODIES)
def test_a_body_that_is_no_question_is_refused(name, comfy_server):
    status, answer = ask(comfy_server, "POST", PLAN, BODIES[name])
    assert status == 400, answer[:300]
    assert set(json.loads(answer)) == {"error"} and len(answer) < 1000


@pytest.mark.parametrize(
    "sizes", ["9" * 5000, "1, " * 5000, "cut 99999999", "size 0", "\0", "nan", "x" * 100_000]
)
def test_a_plan_that_is_none_is_said_in_words(sizes, comfy_server):
    status, answer = ask(comfy_server, "POST", PLAN, question(chunk_sizes=sizes, curve=CURVE))
    view = json.loads(answer)
    assert status == 200 and (view["problem"] or view["note"])
