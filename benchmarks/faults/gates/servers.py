"""A malicious reward server, and a client that is ``score`` or a training."""

from __future__ import annotations

import json
import random
from pathlib import Path

from PIL import Image

from ..hostile_server import ANSWERS, HostileServer
from ..material import BASE, Material, as_toml, put
from ..outcomes import Case, Expected
from ..warm import Ended

__all__ = ["servers"]


def servers(rng: random.Random, folder: Path, material: Material) -> Case:
    """One answer to every request."""
    name = rng.choice(sorted(ANSWERS))
    answer, is_good = ANSWERS[name]
    is_healthy = rng.random() < 0.8
    is_training = rng.random() < 0.3
    server = HostileServer(answer, is_healthy=is_healthy)
    expected = Expected.refused
    if is_good or name in _UNSCORED:
        expected = Expected.accepted if is_good and is_healthy else Expected.either
    reward = {
        "name": "remote_http",
        "url": server.url,
        "timeout": 2.0,
        "retries": 1,
        "backoff": 0.05,
    }
    about = f"{name}{'' if is_healthy else ', also to GET /health'}"
    if is_training:
        impatient = {"run.reward_retries": 1, "run.reward_wait": 0.1, "reward": reward}
        (folder / "c.toml").write_text(as_toml(put(BASE, impatient)), encoding="utf-8")
        return Case(
            argv=("train", "c.toml", "--out", "run", "--json"),
            about=f"train: {about}",
            names=(server.url, "reward remote_http"),
            codes=(1,),
            # Equal scores are no signal, which a training may refuse in its own words.
            expected=Expected.either if is_good else Expected.refused,
            seconds=60,
            close=server.close,
        )
    Image.new("RGB", (8, 8), (9, 9, 9)).save(folder / "p.png")
    pairs = [f"{key}={value}" for key, value in reward.items() if key != "name"]
    more = [word for pair in pairs for word in ("--setting", pair)]

    def check(place: Path, ended: Ended) -> str:
        rows = json.loads(ended.stdout)["scores"]
        if not is_good:
            scored = [row for row in rows if row["score"] is not None]
            return f"took the score {scored[0]['score']}" if scored or not rows else ""
        row = rows[0]
        is_right = row["score"] == 0.5 and row["image"] == "p.png" and row["prompt"] == "a cat"
        return "" if is_right else f"the row is {row}"

    return Case(
        argv=("score", "p.png", "--prompt", "a cat", "--reward", "remote_http", "--json", *more),
        about=f"score: {about}",
        names=(server.url,),
        codes=(1,),
        expected=expected,
        check=check,
        seconds=12,
        close=server.close,
    )


_UNSCORED = ("all null", "NaN", "Infinity", "1e999")
"""Bad answers that ``score`` may show as pictures without a score."""
