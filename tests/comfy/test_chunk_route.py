"""The server says what the text of a chunk plan means, as the library reads it."""

import json
from dataclasses import asdict

import pytest
from fakes import curve_of

from chunk_grpo_core.watch.plan_view import plan_view

CURVE = curve_of(0.9, 0.7, 0.6, 0.2, 0.1)


def ask(comfy, body):
    status, answer = comfy.request("/chunk_grpo/chunk_plan", json.dumps(body).encode())
    return status, json.loads(answer)


@pytest.mark.parametrize("curve", [None, CURVE], ids=["no curve", "curve"])
@pytest.mark.parametrize(
    ("sizes", "weights"), [("2, 3", "1, 3"), ("cut 2", "curve"), ("two", "uniform"), ("5", None)]
)
def test_the_server_answers_what_the_library_reads(sizes, weights, curve, comfy):
    question = {"chunk_sizes": sizes, "weights": weights, "curve": curve and curve.to_json()}
    assert ask(comfy, question) == (200, asdict(plan_view(sizes, weights, curve)))


@pytest.mark.parametrize(
    "body",
    [
        None,
        [],
        {},
        {"chunk_sizes": 2, "weights": None, "curve": None},
        {"chunk_sizes": "2", "weights": 1, "curve": None},
        {"chunk_sizes": "2", "weights": None, "curve": "curve"},
        {"chunk_sizes": "2", "weights": None, "curve": {"mean": [1]}},
        {"chunk_sizes": "2", "weights": None, "curve": {**CURVE.to_json(), "mean": ["a", "b"]}},
    ],
)
def test_a_question_that_makes_no_sense_is_refused_with_its_form(body, comfy):
    status, answer = ask(comfy, body)
    assert status == 400 and "write {chunk_sizes: text" in answer["error"]
