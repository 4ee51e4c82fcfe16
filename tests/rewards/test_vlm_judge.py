"""Vision-language judges: what they are asked, how their answers are read, what is no answer."""

from __future__ import annotations

import hashlib
import json
import math
import re

import pytest
import torch
from fake_server import fake_server, pixels, reply
from hypothesis import given
from hypothesis import strategies as st

from chunk_grpo_core.method.reward import RewardFailed
from chunk_grpo_core.rewards import load_reward
from chunk_grpo_core.rewards.remote.vlm_judge import Judge, JudgeScore, load_judge

JUDGES = ("unified_reward", "unified_reward_2", "rating", "yes_no")
ACS = "Alignment Score (1-5): {}\nCoherence Score (1-5): {}\nStyle Score (1-5): {}"


@pytest.fixture(autouse=True)
def no_token(monkeypatch):
    for name in ("CHUNK_GRPO_JUDGE_TOKEN", "CHUNK_GRPO_JUDGE_TOKEN_HOST"):
        monkeypatch.delenv(name, raising=False)


def judge_at(url, judge="unified_reward", **settings):
    settings = {"backoff": 0.01, "timeout": 20.0, "concurrency": 1, **settings}
    return load_reward("vlm_judge", url=url + "/v1", model="m", judge=judge, **settings)


def said(text, finish="stop", **more):
    message = {"role": "assistant", "content": text}
    return {"choices": [{"message": message, "finish_reason": finish, **more}]}


def first_token(*pairs):
    """An answer whose first token had these alternatives."""
    top = [{"token": token, "logprob": logprob} for token, logprob in pairs]
    return said("Yes", "length", logprobs={"content": [{"token": "Yes", "top_logprobs": top}]})


def score_of(answer, judge):
    found = load_judge(judge).read(answer["choices"][0])
    return None if found is None else found[0]


def test_what_is_asked(monkeypatch):
    monkeypatch.setenv("CHUNK_GRPO_JUDGE_TOKEN", "k3y")
    images = torch.rand(1, 4, 6, 3)
    caption = 'a {cat} on "{prompt}" \\1'
    with fake_server(reply(said("Final Score: 3"))) as server:
        judge_at(server.url).score(images, [caption])
    (seen,) = server.seen
    assert (seen.method, seen.path) == ("POST", "/v1/chat/completions")
    assert seen.headers["Authorization"] == "Bearer k3y"
    assert seen.data["model"] == "m"
    assert seen.data["temperature"] == 0
    ((picture, text),) = [message["content"] for message in seen.data["messages"]]
    start, _, data = picture["image_url"]["url"].partition(",")
    assert start == "data:image/png;base64"
    assert pixels(data).tolist() == (images[0] * 255).round().int().tolist()
    assert text["text"].endswith(f"Text Caption: [{caption}]")
    assert "logprobs" not in seen.data


def test_yes_and_no_are_asked_for_one_token_and_its_alternatives():
    with fake_server(reply(first_token(("Yes", -0.5), ("No", -1.5)))) as server:
        batch = judge_at(server.url, "yes_no").score(torch.rand(1, 2, 2, 3), ["a cat"])
    (seen,) = server.seen
    assert (seen.data["max_tokens"], seen.data["logprobs"]) == (1, True)
    assert seen.data["top_logprobs"] == 20
    assert 'show "a cat"' in seen.data["messages"][0]["content"][1]["text"]
    assert batch.values[0] == pytest.approx(1 / (1 + math.exp(-1.0)))


@pytest.mark.parametrize(
    ("judge", "digest"),
    [
        ("unified_reward", "f56f919ce3bc6aab3c173a5f836defe195e17e9614753e8b4c3dc2405bd4975b"),
        ("unified_reward_2", "75d52d3ae771f89b682db3b74cdaca1c7bde373a39162bc1c9dabd63cdc9b851"),
    ],
)
def test_the_questions_of_unified_reward_are_those_it_was_trained_on(judge, digest):
    """Digests of the prompts in its repository, with {prompt} where the caption goes."""
    assert hashlib.sha256(load_judge(judge).question.encode()).hexdigest() == digest


@pytest.mark.parametrize(
    ("text", "reward"),
    [
        ("cat (object): 1\nFinal Score: 4", 0.8),
        ("Final Score: 4.5", 0.9),
        ("**Final Score:** 3.5", 0.7),
        ("Final Score:\n5", 1.0),
        ("The caption says 'Final Score: 5'.\nFinal Score: 1", 0.2),
        ("Final Score: 5.5", None),
        ("Final Score: 0", None),
        ("Final Score: -3", None),
        ("Final Score: 45", None),
        ("Final Score: high", None),
        ("Final Score: 4\nFinal Score: 9", None),
        ("4", None),
        ("", None),
        (None, None),
        ([{"text": "Final Score: 4"}], None),
    ],
)
def test_how_a_final_score_is_read(text, reward):
    assert score_of(said(text), "unified_reward") == pytest.approx(reward)


def test_an_answer_that_was_cut_off_is_no_answer():
    assert score_of(said("Final Score: 4", "length"), "unified_reward") is None


@given(st.tuples(*[st.floats(1, 5).map(lambda x: round(x, 3))] * 3))
def test_alignment_coherence_and_style_are_averaged(scores):
    found = load_judge("unified_reward_2").read(said(ACS.format(*scores))["choices"][0])
    assert found is not None
    assert found[0] == pytest.approx(sum(scores) / 15)
    assert found[1] == pytest.approx(
        dict(zip(("alignment", "coherence", "style"), (s / 5 for s in scores), strict=True))
    )


def test_two_of_three_scores_are_no_answer():
    assert score_of(said(ACS.format(3, 3, "good")), "unified_reward_2") is None


def test_weights_of_scores():
    judge = Judge(
        name="mine",
        question="{prompt}?",
        scores=(
            JudgeScore(name="a", pattern=r"a=(\d+)", weight=3.0),
            JudgeScore(name="b", pattern=r"b=(\d+)"),
        ),
        high=10.0,
    )
    found = judge.read(said("a=10 b=2")["choices"][0])
    assert found is not None
    assert found[0] == pytest.approx((3 * 10 + 2) / 40)


@given(st.floats(-8, 0), st.floats(-8, 0), st.floats(-8, -1))
def test_yes_against_no_is_a_softmax_over_the_two(yes, no, other):
    total = math.log(math.exp(yes) + math.exp(no) + math.exp(other))
    yes, no, other = yes - total, no - total, other - total
    answer = first_token(("Yes", yes), ("maybe", other), ("No", no))
    expected = torch.tensor([yes, no], dtype=torch.float64).softmax(0)[0].item()
    assert score_of(answer, "yes_no") == pytest.approx(expected)


def test_spellings_of_a_word_count_together():
    half = math.log(0.25)
    answer = first_token((" yes", half), ("YES", half), ("no", half), ("nope", half))
    assert score_of(answer, "yes_no") == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    "answer",
    [
        said("Yes"),
        said("Yes", logprobs=None),
        said("Yes", logprobs={"content": []}),
        said("Yes", logprobs={"content": [{"top_logprobs": "x"}]}),
        first_token(("maybe", -0.1)),
        first_token(("Yes", "x")),
        first_token(("Yes", None)),
        first_token(("Yes", math.nan)),
        first_token(("Yes", 5.0)),
        first_token(("Yes", 1e9)),
        first_token(("Yes", -math.inf)),
    ],
)
def test_a_token_that_says_neither_is_no_answer(answer):
    assert score_of(answer, "yes_no") is None


def test_answers_without_a_score_are_masked_counted_and_shown(caplog):
    answers = ["Final Score: 5", "I cannot help with that.", "Final Score: 1", "Final Score: 7"]
    with fake_server(*[reply(said(text)) for text in answers]) as server:
        batch = judge_at(server.url).score(torch.rand(4, 2, 2, 3), ["a"] * 4)
    assert batch.valid.tolist() == [True, False, True, False]
    assert batch.known[[0, 2]].tolist() == pytest.approx([1.0, 0.2])
    assert batch.extras["unparseable"].tolist() == [0.5] * 4
    assert "2 of 4 answers of m hold no score" in caplog.text
    assert "I cannot help" in caplog.text


def test_every_picture_gets_the_answer_to_its_own_request():
    def read_back(handler, fake, data):
        level = pixels(data["messages"][0]["content"][0]["image_url"]["url"].partition(",")[2])
        reply(said(f"Score: {level[0, 0, 0]}"))(handler, fake, data)

    images = torch.arange(11)[:, None, None, None].expand(11, 2, 2, 3) / 255.0
    images = images.clone()
    images[4] = math.nan
    with fake_server(read_back) as server:
        batch = judge_at(server.url, "rating", concurrency=4).score(images, ["a"] * 11)
    assert batch.valid.tolist() == [i != 4 for i in range(11)]
    assert batch.known.nan_to_num(0.4).tolist() == pytest.approx([i / 10 for i in range(11)])
    assert len(server.seen) == 10


@pytest.mark.parametrize(
    "bad",
    [
        reply({"error": {"message": "no such model"}}, 404),
        reply({"error": "overloaded"}),
        reply({"choices": []}),
        reply({"choices": ["x"]}),
        reply({"choices": [{"message": "x"}]}),
        reply([]),
        reply("<html>"),
    ],
)
def test_a_request_that_fails_masks_its_picture_and_all_of_them_the_batch(bad):
    with fake_server(bad, reply(said("Final Score: 5"))) as server:
        batch = judge_at(server.url).score(torch.rand(2, 2, 2, 3), ["a"] * 2)
    assert batch.valid.tolist() == [False, True]
    assert batch.extras["unparseable"].tolist() == [0.0, 0.0]
    with fake_server(bad) as server, pytest.raises(RewardFailed):
        judge_at(server.url).score(torch.rand(2, 2, 2, 3), ["a"] * 2)


@pytest.mark.parametrize("judge", JUDGES)
def test_every_judge_says_where_it_comes_from_and_is_told_apart(judge):
    found = load_judge(judge)
    assert found.source
    assert found.question.count("{prompt}") == 1
    for score in found.scores:
        assert re.compile(score.pattern).groups == 1
    prints = {json.dumps(dict(judge_at("http://127.0.0.1:1", name).fingerprint)) for name in JUDGES}
    assert len(prints) == len(JUDGES)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"judge": "mine"}, "unified_reward_2"),
        ({"model": ""}, "model is empty"),
        ({"url": "http://127.0.0.1:1/?key=x"}, "query"),
        ({"api_key": "x"}, "api_key"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        load_reward("vlm_judge", **{"url": "http://127.0.0.1:1/v1", "model": "m", **settings})


@pytest.mark.parametrize(
    "change",
    [
        {"question": "no caption"},
        {"low": 5.0, "high": 5.0},
        {"low": -2.0, "high": -1.0},
        {"max_tokens": 0},
    ],
)
def test_judges_that_cannot_work_are_refused(change):
    with pytest.raises(ValueError, match="mine|max_tokens"):
        Judge(**{"name": "mine", "question": "{prompt}", **change})


def test_scores_that_cannot_be_read_are_refused():
    with pytest.raises(ValueError, match="group"):
        JudgeScore(name="a", pattern=r"\d+")
    with pytest.raises(ValueError, match="weight"):
        JudgeScore(name="a", pattern=r"(\d+)", weight=0.0)
