"""How much script time does the monitor in Train LoRA cost the page for each message of the server?

    python -m benchmarks.page --json benchmarks/results/page.json

A real ComfyUI page in Chromium shows a run folder that grows from 0 to 1,000 iterations under its
eyes, one message each, with 48 thumbnails that are all new every time. The browser's own counters
(``Performance.getMetrics``) are read before and after each message.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
from datetime import date
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).resolve().parents[1]))

from chunk_grpo_core.configfile.record import PYTHON, Record, write_run
from chunk_grpo_core.method.chunks import ChunkPlan
from chunk_grpo_core.method.schedule import shifted_grid
from chunk_grpo_core.prompts.example import Example
from chunk_grpo_core.runs.folder import RunFolder
from chunk_grpo_core.train.config import TrainConfig
from chunk_grpo_core.train.events import AdvantagesEnd, RolloutEnd
from chunk_grpo_core.watch.newest_group import LatestGroup
from tools.comfyui.browser import ComfyBrowser
from tools.comfyui.server import ComfyServer

RUN, TYPE, LIMIT = "long", "ChunkGRPO_TrainLoRA", 16.0
COUNTERS = ("ScriptDuration", "LayoutDuration", "RecalcStyleDuration", "TaskDuration")
TELL = """async (status) => {
  const { api } = window.comfyAPI.api;
  api.dispatchCustomEvent("chunk_grpo.status", status);
  const shown = `${status.iteration} / ${status.iterations}`;
  const count = document.querySelector(".monitor .head .grow");
  while (!count.textContent.startsWith(shown)) await new Promise(requestAnimationFrame);
  await new Promise(requestAnimationFrame);
}"""


def row(iteration: int) -> dict:
    """A row of metrics.jsonl with plausible numbers."""
    wave = (iteration * 7919 % 101) / 101
    return {
        "iteration": iteration,
        "reward_mean": 0.5 + iteration / 4000 + 0.1 * wave,
        "reward_std": 0.1 + 0.05 * wave,
        "clip_fraction": [0.1 * wave, 0.2, 0.3 - 0.1 * wave, None],
        "approx_kl": 1e-6 * (1 + wave),
        "grad_norm": wave,
        "masked_scores": 0,
        "ratio_error_first_update": 0.0,
        "seconds": {"rollout": 1.2, "score": 0.1, "update": 1.4, "total": 2.7},
        "peak_memory_gib": None,
    }


class GrowingRun:
    """A run folder that gets one iteration at a time."""

    def __init__(self, path: Path, iterations: int, thumbnails: int) -> None:
        config = TrainConfig(
            grid=shifted_grid(17), plan=ChunkPlan((2, 3, 4, 7)), iterations=iterations
        )
        self.folder, self.thumbnails = RunFolder(path), thumbnails
        names = {"model": "tiny", "reward": "tiny_world", "reward_fingerprint": {}}
        write_run(path, config, PYTHON, Record(**names, train=[], held_out=[]))
        self.group = LatestGroup(path / "group")

    def grow(self, iteration: int) -> None:
        """Add one iteration: a row, a new group."""
        with self.folder.metrics_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row(iteration)) + "\n")
        images = torch.rand(self.thumbnails, 16, 16, 3)
        scores = torch.rand(self.thumbnails)
        self.group(RolloutEnd(iteration, Example("a caption"), images, scores))
        self.group(AdvantagesEnd(iteration, (scores - scores.mean(),)))


def status(done: int, iterations: int) -> dict:
    """What the server would send."""
    return {
        "run": RUN, "node": "1", "workflow": "", "state": "running", "message": "",
        "phase": "rollout", "iteration": done, "iterations": iterations, "fraction": 0.0,
        "seconds_left": 60.0, "stopping": False, "news": done,
    }  # fmt: skip


def measure(iterations: int, thumbnails: int) -> dict[str, list[float]]:
    """Milliseconds of every message, by counter."""
    milliseconds: dict[str, list[float]] = {name: [] for name in COUNTERS}
    with ComfyServer() as server, ComfyBrowser(server.url) as browser:
        run = GrowingRun(server.output / "chunk_grpo" / RUN, iterations, thumbnails)
        page = browser.open()
        page.load_api({"1": {"class_type": TYPE, "inputs": {}}})
        page.show_all()
        tool = page.page.context.new_cdp_session(page.page)
        tool.send("Performance.enable")

        def counters() -> dict[str, float]:
            metrics = tool.send("Performance.getMetrics")["metrics"]
            return {metric["name"]: metric["value"] for metric in metrics}

        for done in range(1, iterations + 1):
            run.grow(done - 1)
            before = counters()
            page.page.evaluate(TELL, status(done, iterations))
            after = counters()
            for name in COUNTERS:
                milliseconds[name].append(1000 * (after[name] - before[name]))
        assert page.page.locator(".monitor .group img").count() == thumbnails
    return milliseconds


def summary(values: list[float]) -> dict[str, float]:
    """Figures of one counter, milliseconds."""
    last = values[-max(1, len(values) // 10) :]
    return {
        "mean": round(statistics.fmean(values), 2),
        "mean_of_last_tenth": round(statistics.fmean(last), 2),
        "99th_percentile": round(sorted(values)[int(0.99 * (len(values) - 1))], 2),
        "largest": round(max(values), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--iterations", type=int, default=1000)
    parser.add_argument("--thumbnails", type=int, default=48)
    parser.add_argument("--json", type=Path, help="file to write")
    options = parser.parse_args()
    milliseconds = measure(options.iterations, options.thumbnails)
    result = {
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, {platform.system()}, headless Chromium, no GPU",
        "messages": options.iterations,
        "thumbnails": options.thumbnails,
        "milliseconds_per_message": {
            name: summary(values) for name, values in milliseconds.items()
        },
    }
    text = json.dumps(result, indent=1)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")
    worst = result["milliseconds_per_message"]["ScriptDuration"]["mean_of_last_tenth"]
    if worst >= LIMIT:
        sys.exit(f"the last tenth of the messages took {worst} ms of script, over {LIMIT} ms")


if __name__ == "__main__":
    main()
