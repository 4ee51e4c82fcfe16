"""Trainings that ask their person, in a real server: the person answers through the API alone."""

from __future__ import annotations

import json
import time

import pytest
from voters import brightness

from chunk_grpo_core.rewards.picture_files import load_picture
from chunk_grpo_core.rewards.taste.picks import Taste

from . import graphs
from .graphs import change, find, node

TRAIN = "ChunkGRPO_TrainLoRA"


def voting(run_name, **training):
    """A small training whose reward is what somebody votes."""
    sizes = {"iterations": 1, "prompts_per_iteration": 2, "group_size": 3, "run_name": run_name}
    prompt = graphs.watched_training(4, **{**sizes, **training})
    votes = node("ChunkGRPO_LoadReward", name="votes", colour="#2060c0", file=run_name,
                 settings="kind=best")  # fmt: skip
    settings = find(prompt, "ChunkGRPO_GRPOSettings")
    prompt[settings]["inputs"]["evaluate_every"] = -1
    return {**change(prompt, TRAIN, reward=["votes", 0]), "votes": votes}


def asked(comfy, name, seconds=240):
    """Wait until a run asks, and return what and about which batches."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        status, answer = comfy.request(f"/chunk_grpo/runs/{name}/ask")
        if status == 200 and (view := json.loads(answer))["asks"]:
            return view  # asked a second time, it may have gone on already
        queue = comfy.get("/queue")
        assert queue["queue_running"] or queue["queue_pending"], "the run has ended"
        time.sleep(0.1)
    raise AssertionError("the run does not ask")


def best_of(server, name, batch):
    taste = Taste(server.output / "chunk_grpo" / "taste" / name)
    shown = [taste.folder / "pictures" / f"{picture}.png" for picture in batch["pictures"]]
    worth = [brightness(load_picture(file), "") for file in shown]
    return worth.index(max(worth))


@pytest.mark.slow
def test_votes_through_the_api_train_a_lora_and_wrong_ones_lose_nothing(comfy, comfy_server):
    name = "voted"
    first = comfy.submit(voting(name))
    view = asked(comfy, name)
    (batch,) = view["batches"]
    assert view["asks"]["taste"] == name and view["asks"]["batches"] == [batch["id"]]
    assert len(batch["pictures"]) == 3 and batch["best"] is None
    live = comfy.get(f"/chunk_grpo/runs/{name}")["live"]
    assert live["phase"] == "ask" and live["asks"] == view["asks"] and live["state"] == "running"
    answer = f"/chunk_grpo/runs/{name}/ask/answer"
    for body, message in (
        ({"said": "best: 9"}, "there is no picture 9; there are 3"),
        ({"said": "nicest: 1"}, "nicest"),
        ({"said": ""}, "write {"),
        ([], "write {"),
    ):
        status, refused = comfy.post(answer, body)
        assert status == 400 and message in refused["error"], refused
    assert asked(comfy, name)["batches"] == [batch]
    # Cancelled while it waits, and resumed: the same question, then the next ones.
    comfy.interrupt()
    assert comfy.wait(first, 60).interrupted
    again = comfy.submit(voting(name, resume=True))
    assert asked(comfy, name)["batches"] == [batch]
    place = best_of(comfy_server, name, batch)
    assert comfy.post(answer, {"said": f"best: {place + 1}", "done": True})[0] == 200
    deadline = time.monotonic() + 240
    while (view := asked(comfy, name))["batches"][0]["id"] == batch["id"]:
        assert time.monotonic() < deadline
    (second,) = view["batches"]
    click = {"do": "best", "batch": second["id"], "place": 0}
    assert comfy.post(f"/chunk_grpo/taste/{name}/pick", click)[0] == 200
    assert comfy.post(answer, {"done": True})[0] in (200, 409)  # the click may have been all
    status, refused = comfy.post(answer, {"said": "best: 2"})
    assert status == 409 and ("given already" in str(refused) or "not ask" in str(refused))
    run = comfy.wait(again, 240)
    assert run.ok, run.error
    assert comfy.post(answer, {"said": "best: 1"})[0] == 409
    view = comfy.get(f"/chunk_grpo/runs/{name}")
    assert view["done"] == 1 and view["is_measured"] and view["held_out"] == []
    kinds = [
        pick.kind for pick in Taste(comfy_server.output / "chunk_grpo" / "taste" / name).picks()
    ]
    assert kinds == ["best", "done", "best", "done"]
