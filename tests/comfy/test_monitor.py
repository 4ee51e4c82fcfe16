"""Watching a training: what the server tells of it, and how it is ended early."""

from __future__ import annotations

import time

import pytest
from safetensors import safe_open

from . import graphs
from .client import ComfyClient

TRAIN, SETTINGS = "ChunkGRPO_TrainLoRA", "ChunkGRPO_GRPOSettings"
PANEL = ".chunk-grpo.monitor"
MANY = 1000  # iterations that nobody waits for


def run_path(server, name):
    return server.output / "chunk_grpo" / name


# Without a page


@pytest.fixture(scope="module")
def finished(comfy_server):
    """A training of three iterations, with the events that the server sent."""
    comfy = ComfyClient(comfy_server.url)
    run = comfy.record(graphs.watched_training(1, iterations=3, run_name="watched"))
    return run.events_named("chunk_grpo.status")


def test_the_server_tells_where_a_training_stands(finished):
    phases = [status["phase"] for status in finished]
    assert set(phases) == {"before", "rollout", "score", "update", "during", "after"}
    assert [s["state"] for s in finished[:-1]] == ["running"] * (len(finished) - 1)
    assert (finished[-1]["state"], finished[-1]["iteration"]) == ("finished", 3)
    iterations = [status["iteration"] for status in finished]
    assert iterations == sorted(iterations)
    assert finished[-1]["seconds_left"] is None
    known = [s["seconds_left"] for s in finished if s["seconds_left"] is not None]
    assert known and all(seconds >= 0 for seconds in known)
    unknown = [s["phase"] for s in finished[:-1] if s["seconds_left"] is None]
    assert unknown in ([], ["before"]), "the second news tell how long it will take"


def test_a_finished_run_is_told_from_its_folder(finished, comfy, comfy_server):
    view = comfy.get("/chunk_grpo/runs/watched")
    rows = graphs.read_lines(run_path(comfy_server, "watched") / "metrics.jsonl")
    assert [{key: row[key] for key in view["rows"][0]} for row in rows] == view["rows"]
    held_out = graphs.read_lines(run_path(comfy_server, "watched") / "held_out.jsonl")
    assert view["held_out"] == held_out and [r["iterations"] for r in held_out] == [0, 2, 3]
    assert view["live"]["state"] == "finished"
    assert [r["iteration"] for r in comfy.get("/chunk_grpo/runs/watched?since=2")["rows"]] == [2]
    assert "watched" in comfy.get("/chunk_grpo/runs")["runs"]


def test_pictures_of_the_newest_group_can_be_fetched(finished, comfy):
    group = comfy.get("/chunk_grpo/runs/watched")["group"]
    assert group["iteration"] == 2 and len(group["samples"]) == 4
    for sample in group["samples"]:
        status, body = comfy.request(f"/chunk_grpo/runs/watched/group/{sample['file']}")
        assert status == 200 and body.startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("path", "status", "message"),
    [
        ("/chunk_grpo/runs/nobody", 404, "there is no run called 'nobody'"),
        ("/chunk_grpo/runs/%2e%2e", 404, ""),
        ("/chunk_grpo/runs/..%2f..%2fuser", 404, ""),
        ("/chunk_grpo/runs/watched?since=x", 400, "since is 'x'; write a whole number"),
        ("/chunk_grpo/runs/watched/group/run.toml", 404, "no picture"),
        ("/chunk_grpo/runs/watched/group/..%2frun.toml", 404, ""),
        ("/chunk_grpo/runs/watched/group/99999_00.png", 404, "a newer group"),
    ],
)
def test_nothing_but_runs_can_be_read(path, status, message, finished, comfy):
    found, body = comfy.request(path)
    assert found == status and message in body.decode()


def test_only_a_running_training_can_be_stopped(finished, comfy):
    status, answer = comfy.post("/chunk_grpo/runs/watched/stop")
    assert (status, answer["error"]) == (409, "the run 'watched' is not running")


def test_stop_and_keep_works_without_a_page_and_the_run_goes_on_later(comfy, comfy_server):
    prompt = graphs.watched_training(2, iterations=MANY, run_name="cut")
    pressed = []

    def press(name, data):
        if name == "chunk_grpo.status" and data["iteration"] >= 2 and not pressed:
            pressed.append(time.monotonic())
            assert comfy.post("/chunk_grpo/runs/cut/stop")[1]["stopping"]

    run = comfy.record(prompt, on_event=press)
    last = run.events_named("chunk_grpo.status")[-1]
    done = last["iteration"]
    assert last["state"] == "stopped" and 2 <= done <= 4
    text = graphs.shown_text(run, graphs.find(prompt, TRAIN))
    assert text.startswith(f"Stopped after {done} of {MANY} iterations.")
    folder = run_path(comfy_server, "cut")
    assert len(graphs.read_lines(folder / "metrics.jsonl")) == done
    assert (folder / "plots" / "training.png").is_file()
    with safe_open(folder / "lora.safetensors", "pt") as file:
        assert file.metadata()["iterations"] == str(done)
        ups = [file.get_tensor(name) for name in file.keys() if "lora_B" in name]
    assert ups and all(float(up.abs().max()) > 0 for up in ups)
    more = graphs.change(prompt, TRAIN, iterations=done + 1, resume=True)
    assert comfy.run(more).ok
    rows = graphs.read_lines(folder / "metrics.jsonl")
    assert [row["iteration"] for row in rows] == list(range(done + 1))


def test_an_error_and_a_cancel_are_told(comfy):
    broken = graphs.watched_training(3, iterations=2, run_name="watched")  # the name is taken
    assert not comfy.record(broken, check=False).events_named("chunk_grpo.status")
    pressed = []

    def press_cancel(name, data):
        if name == "chunk_grpo.status" and data["iteration"] >= 1 and not pressed:
            pressed.append(True)
            comfy.interrupt()

    prompt = graphs.watched_training(3, iterations=MANY, run_name="cancelled")
    events = comfy.record(prompt, on_event=press_cancel, check=False).events
    assert [d["state"] for name, d in events if name == "chunk_grpo.status"][-1] == "cancelled"
    other = graphs.watched_training(
        3, iterations=2, run_name="cancelled", group_size=5, resume=True
    )
    last = comfy.record(other, check=False).events_named("chunk_grpo.status")[-1]
    assert last["state"] == "failed" and "group_size = 5, but" in last["message"]
