"""A reward server that dies during Train LoRA: the node waits, says what is wrong, and goes on."""

from __future__ import annotations

from fake_server import fake_server, red_score, reply

from . import graphs
from .graphs import change


class Mortal:
    """A server that answers so many questions, then none."""

    def __init__(self):
        self.left = 10**6

    def __call__(self, handler, fake, data):
        if handler.command == "GET":
            return reply({"status": "ok", "name": "red"})(handler, fake, data)
        self.left -= 1
        if self.left < 0:
            return reply({"error": "gone"}, status=500)(handler, fake, data)
        return red_score(handler, fake, data)


def training(url, name, **inputs):
    prompt = graphs.training(run_name=name, iterations=3, **inputs)
    reward = {"name": "remote_http", "url": url, "settings": "retries=0"}
    prompt = change(prompt, "ChunkGRPO_LoadReward", **reward)
    return change(prompt, "ChunkGRPO_GRPOSettings", reward_retries=2, reward_wait=1)


def numbers(folder):
    rows = graphs.read_lines(folder / "metrics.jsonl")
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def test_a_reward_that_dies_is_waited_for_then_named_and_the_run_goes_on(comfy, comfy_server):
    runs, server = comfy_server.output / "chunk_grpo", Mortal()
    with fake_server(server) as fake:
        comfy.run(training(fake.url, "never died"))
        asked = sum(seen.path == "/compute" for seen in fake.seen)
        # Two held-out prompts, two groups of the first iteration, pictures of its self-test; then
        # two groups of either other iteration, and the held-out prompts again.
        until_second = asked - 6
        assert until_second > 4
        server.left = until_second
        run = comfy.run(training(fake.url, "died"), check=False)
        message = (run.error or "").partition("\n")[0]
        words = ["all-masked: no picture of iteration 2 has a score", "died into run_name"]
        assert [word for word in words if word not in message] == [], message
        dead = [seen for seen in fake.seen if seen.path == "/compute"][asked + until_second :]
        third = len(dead) // 3  # scored once, and twice again after 1 and 2 seconds
        questions = [[seen.data for seen in dead[i * third : (i + 1) * third]] for i in range(3)]
        assert third and questions[0] == questions[1] == questions[2]
        assert dead[-third].time - dead[0].time >= 3
        server.left = 10**6
        comfy.run(training(fake.url, "died", resume=True))
    assert numbers(runs / "died") == numbers(runs / "never died")
    assert len(numbers(runs / "died")) == 3
