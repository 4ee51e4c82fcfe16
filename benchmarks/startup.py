"""Processor time until a command answers, and what the pack adds to the start of ComfyUI.

python -m benchmarks.startup --json benchmarks/results/startup.json

Each case runs five times in a process of its own, in turns; the median counts, and its ratio to
``import torch``, which depends less on the machine. The pack is loaded where ComfyUI's own modules
are loaded already, with all nodes and their schemas; only what it adds is counted. (ComfyUI is
found like in the tests: ``COMFYUI_PATH``.)
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from tools.comfyui.server import ROOT, comfyui_path
from tools.comfyui.stubs import write_stubs

from .chunk_vs_step.measure import write_json
from .machine import facts

__all__ = ["measure"]

RUNS = 5
_TORCH = "import torch"
_COMMAND = "import sys; sys.argv[1:] = {!r}; from chunk_grpo_core.__main__ import main; main()"
_CASES = {
    _TORCH: _TORCH,
    "import chunk_grpo_core": "import chunk_grpo_core",
    "import chunk_grpo_core, all names": "from chunk_grpo_core import *",
    "chunk-grpo --help": _COMMAND.format(["--help"]),
    "chunk-grpo train --help": _COMMAND.format(["train", "--help"]),
}
_SPENT = """
import atexit, time
atexit.register(lambda: print("seconds", time.process_time()))
"""
_PACK = """
import asyncio, sys, time
import diffusers, transformers  # before the stand-in for torchvision, which they look for
from tools.comfyui.inside import enter_comfyui
lab = enter_comfyui(sys.argv[1], sys.argv[2])
import aiohttp.web, nodes, comfy_api.latest, comfy.samplers, comfy_extras.nodes_custom_sampler
before = time.process_time()
extension = lab.module("nodes.extension").ChunkGRPOExtension()
for node in asyncio.run(extension.get_node_list()):
    node.GET_SCHEMA()
print("seconds", time.process_time() - before)
"""


def measure(runs: int = RUNS) -> list[dict[str, Any]]:
    """Give a row for each case: median seconds, all seconds, ratio to ``import torch``."""
    spent: dict[str, list[float]] = {name: [] for name in _CASES}
    for _ in range(runs):
        for name, code in _CASES.items():
            spent[name].append(_seconds([sys.executable, "-c", _SPENT + code]))
    with tempfile.TemporaryDirectory() as stubs:
        write_stubs(Path(stubs))
        command = [sys.executable, "-c", _PACK, str(comfyui_path()), stubs]
        spent["the pack, in ComfyUI"] = [_seconds(command) for _ in range(runs)]
    torch = median(spent[_TORCH])
    return [
        {
            "case": name,
            "seconds": round(median(times), 3),
            "of_import_torch": round(median(times) / torch, 3),
            "runs": [round(seconds, 3) for seconds in times],
        }
        for name, times in spent.items()
    ]


def _seconds(command: list[str]) -> float:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    return float(done.stdout.rpartition("seconds ")[2])


def main() -> None:
    """Measure, print a table, and write the file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows = measure()
    for row in rows:
        print(f"{row['case']:34} {row['seconds']:6.3f} s, {row['of_import_torch']:.3f} of torch")
    if args.json:
        write_json(args.json, {"machine": facts(), "rows": rows})


if __name__ == "__main__":
    main()
