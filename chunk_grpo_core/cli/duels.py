"""``chunk-grpo duels``: was it worth it? Blind duels between a run's LoRA and its base model."""

# No ``from __future__ import annotations`` here: typer reads the annotations at run time.
import json
import secrets
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor

from ..disk.atomic import write_whole
from ..measure.duels import Duel, answered, drawn_duels, duels_from_json, duels_to_json
from ..measure.sampling import draw
from ..prompts.example import examples_of
from ..runs.folder import numbered_folder
from ..runs.held_out import check_held_out
from ..runs.load import load_adapter, load_policy, load_prompts
from ..runs.outcome import EVALUATION_SEED
from ..train.batch_limit import BatchLimit
from ..watch.pictures import enlargement, image_grid, save_png
from .measure import Opened, open_source
from .outcome import AsJson
from .progress import ProgressBar, clear_errors

__all__ = ["duels"]

_FILE = "duels.json"
_NOISE = EVALUATION_SEED + 1_000_000
"""Not the noise that the run was measured on."""


def duels(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a finished run.")],
    count: Annotated[int, typer.Option(min=1, max=200, help="Duels to draw.")] = 20,
    answers: Annotated[
        str | None,
        typer.Option(
            help="Answers to the newest duels, a digit for each: 1 the left picture is better, 2 "
            "the right one, 0 the same. Example: 1201121."
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Fixes prompts and sides. Default: drawn.")
    ] = None,
    as_json: AsJson = False,
) -> dict[str, object] | None:
    """Was it worth it? Judge pairs of pictures, base against LoRA, without knowing which is which.

    The first call draws pairs on held-out prompts, both of a pair from the same noise, into
    RUN/duels. The second, with --answers, says how often you preferred the LoRA, with an interval,
    and keeps it.
    """
    with clear_errors("nothing was written"), ProgressBar() as bar:
        if answers is not None:
            return _said(_newest(run), answers, as_json)
        opened = open_source(run, None)
        if opened.lora is None:
            raise ValueError(
                f"{run} has no lora.safetensors, which a run has at its end; finish it"
            )
        held_out = load_prompts(opened.config).held_out
        check_held_out(held_out)
        order = secrets.randbits(32) if seed is None else seed
        chosen = drawn_duels(
            [example.text for example in examples_of(held_out)], count, _NOISE, order
        )
        pairs = _pairs(opened, chosen, bar)
        with numbered_folder(run / "duels", "") as folder:
            for duel, pair in zip(chosen, pairs, strict=True):
                save_png(_side_by_side(pair, duel.prompt), folder / duel.picture)
            write_whole(folder / _FILE, json.dumps(duels_to_json(chosen), indent=1) + "\n")
    if as_json:
        return {"folder": str(folder), "duels": count}
    typer.echo(
        f"{count} pairs are in {folder}. Look at them in order and answer each with 1 (left), 2 "
        f"(right) or 0 (the same):\n  chunk-grpo duels {run} --answers 1201..."
    )
    return None


def _pairs(opened: Opened, chosen: list[Duel], bar: ProgressBar) -> list[Tensor]:
    """The two pictures of each duel, left and right, (2, H, W, 3)."""
    config, sides = opened.config, {}
    settings, prompts = config.settings, examples_of([duel.prompt for duel in chosen])
    policy = load_policy(config, prompts)
    opened.check_model(policy)
    assert opened.lora is not None
    load_adapter(policy, opened.lora)
    for which in ("base model", "with LoRA"):
        with policy.adapter.disabled() if which == "base model" else nullcontext():
            sides[which] = list(
                draw(
                    policy,
                    prompts,
                    settings.grid,
                    count=1,
                    seed=chosen[0].seed,
                    solver=settings.ode_solver,
                    limit=BatchLimit(size=settings.batch_size),
                    progress=lambda fraction, which=which: bar.update(which, fraction),
                )
            )
    return [
        torch.cat([lora, base] if duel.lora_is_left else [base, lora])
        for duel, base, lora in zip(chosen, sides["base model"], sides["with LoRA"], strict=True)
    ]


def _side_by_side(pair: Tensor, prompt: str) -> Tensor:
    captions = (f"1 (left): {prompt}", f"2 (right): {prompt}")
    return image_grid(pair, columns=2, scale=enlargement(pair, 256), captions=captions)


def _newest(run: Path) -> Path:
    """The file of the duels that were drawn last."""
    files = sorted((run / "duels").glob(f"*/{_FILE}"))
    if not files:
        raise FileNotFoundError(
            f"{run} has no duels to answer; draw them with: chunk-grpo duels {run}"
        )
    return files[-1]


def _said(file: Path, answers: str, as_json: bool) -> dict[str, object] | None:
    chosen = duels_from_json(json.loads(file.read_text(encoding="utf-8")), str(file))
    done, result = answered(chosen, answers)
    write_whole(file, json.dumps(duels_to_json(done), indent=1) + "\n")
    share, low, high = result.share
    if as_json:
        counts = {"lora": result.lora, "base": result.base, "same": result.same}
        return {**counts, "share": share, "share_ci95": [low, high], "text": result.sentence()}
    return typer.echo(result.sentence())
