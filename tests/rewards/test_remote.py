"""The client of reward servers: what it sends, what it believes, and how long it waits."""

from __future__ import annotations

import asyncio
import logging
import math
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from fake_server import drip, fake_server, hang, pixels, red_score, reply
from fakes import PROMPTS, ToyPolicy, toy_config

from chunk_grpo_core.measure.evaluate import evaluate
from chunk_grpo_core.method.reward import RewardFailed
from chunk_grpo_core.method.schedule import shifted_grid
from chunk_grpo_core.prompts.example import Example
from chunk_grpo_core.rewards import load_reward
from chunk_grpo_core.rewards.remote.address import is_local, warn_if_remote
from chunk_grpo_core.train.events import IterationEnd
from chunk_grpo_core.train.trainer import Trainer

HEAD = b"HTTP/1.0 200 OK\r\nContent-Length: 9999\r\n\r\n"


@pytest.fixture(autouse=True)
def no_token(monkeypatch):
    for name in ("CHUNK_GRPO_TOKEN", "CHUNK_GRPO_TOKEN_HOST"):
        monkeypatch.delenv(name, raising=False)


def remote(url, **settings):
    return load_reward("remote_http", url=url, **{"backoff": 0.01, "timeout": 20.0, **settings})


def shades(count, height=2, width=3):
    """Pictures whose red is 0, 1, 2, ... of 255."""
    images = torch.full((count, height, width, 3), 0.5)
    images[..., 0] = torch.arange(count)[:, None, None] / 255.0
    return images


def names(count):
    return ["x" * i for i in range(count)]


@pytest.mark.parametrize(("batch_size", "concurrency"), [(1, 1), (1, 4), (3, 1), (3, 4), (64, 2)])
def test_every_picture_gets_its_own_score(batch_size, concurrency):
    with fake_server(red_score) as server:
        reward = remote(server.url, batch_size=batch_size, concurrency=concurrency)
        batch = reward.score(shades(8), names(8))
    assert batch.values.tolist() == list(range(8))
    assert batch.extras["length"].tolist() == list(range(8))
    assert batch.valid.all()
    assert len(server.seen) == math.ceil(8 / batch_size)


def test_the_server_sees_the_picture_a_user_would_save():
    images = torch.rand(2, 5, 7, 3, generator=torch.Generator().manual_seed(0)) * 1.4 - 0.2
    with fake_server(reply({"rewards": [1, 2]})) as server:
        examples = [Example("a", {"words": ["x"]}), Example("b", {"words": ["y"]})]
        remote(server.url + "/under/here/").score(images, examples)
    (seen,) = server.seen
    assert (seen.method, seen.path) == ("POST", "/under/here/compute")
    assert seen.headers["Content-Type"] == "application/json"
    assert seen.data["prompt"] == ["a", "b"]
    assert seen.data["metadata"] == [{"words": ["x"]}, {"words": ["y"]}]
    for text, picture in zip(seen.data["image"], images, strict=True):
        assert pixels(text).tolist() == (picture.clamp(0, 1) * 255).round().int().tolist()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_picture_that_is_not_finite_is_neither_sent_nor_scored(value):
    images = shades(3)
    images[1, 0, 0, 2] = value
    with fake_server(red_score) as server:
        batch = remote(server.url).score(images, names(3))
        nothing = remote(server.url).score(images[1:2], ["a"])
    assert batch.valid.tolist() == [True, False, True]
    assert batch.known[[0, 2]].tolist() == [0.0, 2.0]
    assert batch.details["length"][[0, 2]].tolist() == [0.0, 2.0]
    assert nothing.valid.tolist() == [False]
    assert len(server.seen) == 1


def test_scores_that_are_no_numbers_are_masked_and_never_0():
    text = '{"rewards": [null, NaN, Infinity, -Infinity, 1e999, 1e300, 1%s, 0.25], "error": null}'
    with fake_server(reply(text % ("0" * 400))) as server:
        batch = remote(server.url).score(shades(8), names(8))
    assert batch.valid.tolist() == [False] * 7 + [True]
    assert batch.known[:7].isnan().all()
    assert batch.values[7] == 0.25


@pytest.mark.parametrize(
    "answer",
    [
        [1.0, 2.0],
        "null",
        "no json",
        "",
        "[" * 100_000,
        {},
        {"rewards": None},
        {"rewards": 1.0},
        {"rewards": [1.0]},
        {"rewards": [1.0, 2.0, 3.0]},
        {"rewards": ["1.0", "2.0"]},
        {"rewards": [True, False]},
        {"rewards": [[1.0], [2.0]]},
        {"rewards": [1.0, 2.0], "error": "out of memory"},
        {"rewards": [1.0, 2.0], "extras": [1.0, 2.0]},
        {"rewards": [1.0, 2.0], "extras": {"a": [1.0]}},
        {"rewards": [1.0, 2.0], "extras": {"a": ["x", "y"]}},
    ],
)
def test_an_answer_that_makes_no_sense_is_no_score_and_is_not_asked_for_again(answer):
    with fake_server(reply(answer)) as server, pytest.raises(RewardFailed):
        remote(server.url).score(shades(2), names(2))
    assert len(server.seen) == 1


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_a_passing_failure_is_tried_again_so_often_and_not_more(status):
    with fake_server(reply({"error": "full \x1b[31m"}, status)) as server:
        with pytest.raises(RewardFailed, match=rf"{status}: 'full \\x1b") as failed:
            remote(server.url, retries=2).score(shades(1), ["a"])
    assert "\x1b" not in str(failed.value)
    assert len(server.seen) == 3


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 418, 501])
def test_a_refusal_is_final(status):
    with fake_server(reply("<html>", status)) as server:
        with pytest.raises(RewardFailed, match=f"answered {status}: '<html>'"):
            remote(server.url).score(shades(1), ["a"])
    assert len(server.seen) == 1


def test_back_off_doubles_and_a_good_answer_ends_it():
    busy = reply({"error": "full"}, 503)
    with fake_server(busy, busy, busy, red_score) as server:
        batch = remote(server.url, backoff=0.1).score(shades(1), ["a"])
    assert batch.values.tolist() == [0.0]
    times = [seen.time for seen in server.seen]
    pauses = [later - sooner for sooner, later in zip(times, times[1:], strict=False)]
    for pause, full in zip(pauses, (0.1, 0.2, 0.4), strict=True):
        assert pause >= 0.5 * full


def test_retry_after_is_honoured_if_there_is_time_for_it():
    with fake_server(reply({}, 503, Retry_After="1"), red_score) as server:
        remote(server.url).score(shades(1), ["a"])
        assert server.seen[1].time - server.seen[0].time >= 1.0
    with fake_server(reply({}, 503, Retry_After="3600")) as server:
        start = time.monotonic()
        with pytest.raises(RewardFailed, match="503"):
            remote(server.url).score(shades(1), ["a"])
        assert time.monotonic() - start < 10.0
        assert len(server.seen) == 1


@pytest.mark.parametrize(
    "behaviour",
    [
        hang,
        drip(b""),
        drip(b"HTTP/1.0 200 OK\r\nX-Long: "),
        drip(HEAD),
        drip(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1"),
    ],
    ids=["hangs", "drips a status", "drips headers", "drips a body", "drips a chunk"],
)
@pytest.mark.parametrize("concurrency", [1, 3])
def test_a_call_ends_in_time_whatever_the_server_does(behaviour, concurrency):
    with fake_server(behaviour) as server:
        reward = remote(server.url, timeout=0.2, batch_size=1, concurrency=concurrency)
        start = time.monotonic()
        with pytest.raises(RewardFailed):
            reward.score(shades(3), names(3))
        assert time.monotonic() - start < 5.0
        if behaviour is not hang:
            assert server.cut.wait(5.0), "the connection was left open"


@pytest.mark.parametrize("headers", [{}, {"Content_Length": "999999999"}])
def test_an_answer_that_is_too_large_is_not_taken(headers):
    answer = '{"rewards": [1.0], "x": "%s"}' % ("y" * 300_000)
    with fake_server(reply(answer, **headers)) as server:
        with pytest.raises(RewardFailed, match=r"more than 0\.1 MiB"):
            remote(server.url, max_megabytes=0.1).score(shades(1), ["a"])


def test_an_answer_that_breaks_off_is_asked_for_again():
    cut = reply('{"rewards": [', Content_Length="500")
    with fake_server(cut, red_score) as server:
        assert remote(server.url).score(shades(1), ["a"]).valid.all()
    assert len(server.seen) == 2


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_redirects_are_not_followed(status):
    with fake_server(red_score) as other:
        with fake_server(reply("", status, Location=other.url + "/compute")) as server:
            with pytest.raises(RewardFailed, match="redirects to"):
                remote(server.url).score(shades(1), ["a"])
        assert len(server.seen) == 1
        assert other.seen == []


def test_a_server_that_is_not_there_fails_the_batch():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    reward = remote(f"http://127.0.0.1:{port}", retries=1)
    with pytest.raises(RewardFailed, match="refused"):
        reward.score(shades(1), ["a"])
    with pytest.raises(RewardFailed, match="refused"):
        dict(reward.fingerprint)


def test_a_reward_scores_inside_a_running_event_loop_and_in_many_threads():
    async def inside(reward):
        return reward.score(shades(3), names(3)).values.tolist()

    with fake_server(red_score) as server:
        assert asyncio.run(inside(remote(server.url))) == [0.0, 1.0, 2.0]
        with ThreadPoolExecutor(4) as threads:
            jobs = [threads.submit(remote(server.url).score, shades(3), names(3)) for _ in range(8)]
            assert {tuple(job.result().values.tolist()) for job in jobs} == {(0.0, 1.0, 2.0)}


def test_only_the_pictures_of_a_failed_request_are_masked(caplog):
    with fake_server(red_score, reply({"error": "bad"}, 400), red_score) as server:
        batch = remote(server.url, batch_size=2).score(shades(6), names(6))
    assert batch.valid.tolist() == [True, True, False, False, True, True]
    assert batch.known[[0, 1, 4, 5]].tolist() == [0.0, 1.0, 4.0, 5.0]
    assert "1 of 3 requests failed" in caplog.text


def test_the_fingerprint_is_that_of_the_reward_behind_the_server():
    health = {"status": "ok", "name": "hpsv3", "fingerprint": {"sha256": "ab", "scale": 2}}
    with fake_server(reply(health), reply({"status": "ok"}), reply([])) as server:
        reward = remote(server.url)
        assert reward.fingerprint == {
            "server/reward": "hpsv3",
            "server/sha256": "ab",
            "server/scale": 2,
        }
        assert reward.fingerprint == {}
        assert reward.fingerprint == {}
    assert [(seen.method, seen.path) for seen in server.seen] == [("GET", "/health")] * 3


def test_the_token_comes_from_the_environment_alone(monkeypatch):
    with fake_server(red_score) as server:
        remote(server.url).score(shades(1), ["a"])
        monkeypatch.setenv("CHUNK_GRPO_TOKEN", "s3cret")
        remote(server.url).score(shades(1), ["a"])
        monkeypatch.setenv("CHUNK_GRPO_OTHER", "0ther")
        reward = remote(server.url, token_env="CHUNK_GRPO_OTHER")
        reward.score(shades(1), ["a"])
    sent = [seen.headers.get("Authorization") for seen in server.seen]
    assert sent == [None, "Bearer s3cret", "Bearer 0ther"]
    assert "0ther" not in repr(vars(reward))


def test_settings_of_others_cannot_ask_for_a_secret(monkeypatch):
    monkeypatch.setenv("SECRET_KEY", "k")
    with pytest.raises(ValueError, match="must begin with CHUNK_GRPO_"):
        remote("http://127.0.0.1:1", token_env="SECRET_KEY")
    monkeypatch.setenv("CHUNK_GRPO_TOKEN", "s3cret")
    with pytest.raises(ValueError, match="CHUNK_GRPO_TOKEN_HOST=collector.test") as error:
        remote("https://collector.test")
    assert "s3cret" not in str(error.value)
    monkeypatch.setenv("CHUNK_GRPO_TOKEN_HOST", "collector.test")
    remote("https://Collector.test/")
    monkeypatch.setenv("CHUNK_GRPO_TOKEN", "a\nb")
    with pytest.raises(ValueError, match="printable"):
        remote("http://127.0.0.1:1")


def test_sending_pictures_elsewhere_is_said_once(monkeypatch, caplog):
    here = socket.getaddrinfo
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda host, *rest, **more: here("127.0.0.1", *rest, **more)
    )
    warn_if_remote.cache_clear()
    with fake_server(red_score) as server, caplog.at_level(logging.WARNING):
        remote(server.url).score(shades(1), ["a"])
        assert caplog.text == ""
        far = server.url.replace("127.0.0.1", "gpu-box.test")
        for _ in range(2):
            remote(far).score(shades(1), ["a"])
    (record,) = caplog.records
    assert "gpu-box.test" in record.message
    assert "without encryption" in record.message


@pytest.mark.parametrize(
    ("host", "local"),
    [("localhost", True), ("LOCALHOST", True), ("127.0.0.1", True), ("127.8.9.1", True)]
    + [("::1", True), ("192.168.1.2", False), ("0.0.0.0", False), ("localhost.evil.test", False)]
    + [("127.0.0.1.evil.test", False), ("", False)],
)
def test_what_counts_as_this_machine(host, local):
    assert is_local(host) == local


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"url": ""},
        {"url": "127.0.0.1:8181"},
        {"url": "ftp://host"},
        {"url": "file:///etc/passwd"},
        {"url": "http://"},
        {"url": "http://host:port"},
        {"url": "http://host:0"},
        {"url": "http://[::1"},
        {"url": "http://host/a b"},
        {"url": "http://host/\r\nX: y"},
        {"url": "http://user:password@host"},
        {"url": "http://host/?token=x"},
        {"url": "http://host/#x"},
        {"url": "http://host", "timeout": 0},
        {"url": "http://host", "timeout": math.inf},
        {"url": "http://host", "timeout": "x"},
        {"url": "http://host", "retries": -1},
        {"url": "http://host", "retries": 2.5},
        {"url": "http://host", "concurrency": 0},
        {"url": "http://host", "batch_size": 0},
        {"url": "http://host", "token": "x"},
    ],
)
def test_settings_that_cannot_work_are_refused(settings):
    with pytest.raises(ValueError):
        load_reward("remote_http", **settings)


def test_training_goes_on_while_the_server_fails_now_and_then():
    down = reply({"error": "restarting"}, 400)
    with fake_server(down, red_score, red_score, down, down, red_score) as server:
        reward = remote(server.url)
        rows = []
        Trainer(
            ToyPolicy(),
            reward,
            PROMPTS[:2],
            toy_config(iterations=3, group_size=4, self_test=False),  # which scores again
            listener=lambda e: rows.append(e.metrics) if isinstance(e, IterationEnd) else None,
        ).train()
    assert [row["masked_scores"] for row in rows] == [4, 4, 4]
    assert all(math.isfinite(row["reward_mean"]) for row in rows)
    assert len(server.seen) == 6


def test_an_evaluation_goes_on_without_the_prompt_the_server_failed_for():
    with fake_server(red_score, reply({"error": "restarting"}, 400), red_score) as server:
        found = evaluate(ToyPolicy(), remote(server.url), PROMPTS[:3], shifted_grid(3), seeds=2)
    assert found.rewards.isfinite().tolist() == [[True] * 2, [False] * 2, [True] * 2]
    assert found.extras["length"].isfinite().tolist() == [[True] * 2, [False] * 2, [True] * 2]
    assert math.isfinite(found.mean)
