"""A ComfyUI that is killed in mid-training, or whose disk is full, and a run that goes on."""

from __future__ import annotations

import shutil
import sys
import time

import pytest

from tools.comfyui.graphs import change
from tools.comfyui.server import ComfyServer

from . import graphs
from .client import ComfyClient

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="limits another process"),
]
LIMIT = 200_000
"""Bytes; less than an adapter has, more than the other files of a run."""


def training(**inputs):
    prompt = graphs.training(seed=5, iterations=4, **inputs)
    return change(prompt, "ChunkGRPO_GRPOSettings", checkpoint_every=1)


def numbers(folder):
    rows = graphs.read_lines(folder / "metrics.jsonl")
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


@pytest.fixture(scope="module")
def whole(comfy_server):
    ComfyClient(comfy_server.url).run(training(run_name="whole"))
    return comfy_server.output / "chunk_grpo" / "whole"


@pytest.fixture(scope="module")
def ended(comfy_server, whole, tmp_path_factory):
    """What a full disk and a kill left of two runs, in the output folder of another server."""
    import resource

    server = ComfyServer(tmp_path_factory.mktemp("killed")).start()
    comfy, runs = ComfyClient(server.url), server.output / "chunk_grpo"
    try:
        limits = resource.prlimit(server.process_id, resource.RLIMIT_FSIZE)
        resource.prlimit(server.process_id, resource.RLIMIT_FSIZE, (LIMIT, limits[1]))
        full = comfy.run(training(run_name="full"), check=False)
        resource.prlimit(server.process_id, resource.RLIMIT_FSIZE, limits)
        comfy.submit(training(run_name="killed"))
        deadline = time.monotonic() + 120
        while not list(runs.glob("killed/checkpoints/step_000002")):
            assert time.monotonic() < deadline, server.log(40)
            time.sleep(0.01)
        server.kill()
    finally:
        server.stop()
    for name in ("full", "killed"):
        shutil.copytree(runs / name, comfy_server.output / "chunk_grpo" / name)
    return full.error


def goes_on(comfy, comfy_server, name, whole):
    folder = comfy_server.output / "chunk_grpo" / name
    assert len(numbers(folder)) < 4
    comfy.run(training(run_name=name, resume=True))
    assert numbers(folder) == numbers(whole)
    one, other = ((path / "lora.safetensors").read_bytes() for path in (folder, whole))
    assert one == other
    assert not list(folder.rglob("*.partial")) and not (folder / "lock").exists()


def test_a_run_of_a_killed_server_goes_on_to_the_same_lora(ended, comfy, comfy_server, whole):
    goes_on(comfy, comfy_server, "killed", whole)


def test_a_full_disk_is_named_and_the_run_goes_on_to_the_same_lora(
    ended, comfy, comfy_server, whole
):
    assert "cannot write " in ended and "/full/checkpoints/step_000001.partial/" in ended
    assert "then write full into run_name, turn resume on and run again" in ended
    goes_on(comfy, comfy_server, "full", whole)
