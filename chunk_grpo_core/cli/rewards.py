"""``chunk-grpo score`` and ``chunk-grpo fetch``."""

# No ``from __future__ import annotations`` here: typer reads the annotations at run time.
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from ..method.reward import Reward
from ..prompts.example import Example, Prompt, examples_of
from ..prompts.files import read_prompt_file
from ..rewards import load_reward
from ..rewards.catalog import files_of
from ..rewards.fetch import fetch_file
from ..rewards.files import DEFAULT_FOLDER
from ..rewards.picture_files import load_picture
from ..rewards.settings import reward_settings
from .flags import give_one
from .outcome import AsJson, Failed
from .progress import clear_errors

__all__ = ["fetch", "score", "score_and_show"]


@clear_errors("nothing was written")
def score(
    images: Annotated[list[Path], typer.Argument(help="Picture files.")],
    reward: Annotated[str, typer.Option(help="Name of the reward, for example pickscore.")],
    prompt: Annotated[
        list[str] | None, typer.Option(help="One for all pictures, or one for each, in order.")
    ] = None,
    prompt_file: Annotated[
        Path | None,
        typer.Option(
            help="Instead of --prompt: a .txt, .jsonl, .json, .csv or .tsv file of them; their "
            "metadata goes to the reward."
        ),
    ] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option(help="KEY=VALUE for the reward, for example device=cuda; repeatable."),
    ] = None,
    as_json: AsJson = False,
) -> dict[str, object] | None:
    """Score pictures with a reward.

    Nothing is downloaded: see fetch.
    """
    give_one(prompt=prompt, prompt_file=prompt_file)
    prompts = examples_of(prompt or [""])
    if prompt_file:
        lines = read_prompt_file(prompt_file)
        prompts = tuple(Example(line.text, line.metadata) for line in lines)
    _check_number(prompts, images, str(prompt_file or "--prompt"))
    judge = load_reward(reward, **reward_settings(setting or []))
    return score_and_show(judge, images, prompts, as_json)


def score_and_show(
    judge: Reward, images: list[Path], prompts: Sequence[Prompt], as_json: bool
) -> dict[str, object] | None:
    """Score files with one prompt for all of them, or one for each; the object, or a table.

    Raises:
        ValueError: There is another number of prompts, or a file is no picture.
    """
    _check_number(prompts, images, "--prompt")
    examples = examples_of(prompts)
    rows = _score_files(judge, images, examples * (len(images) if len(examples) == 1 else 1))
    if as_json:
        return {"reward": judge.name, "fingerprint": dict(judge.fingerprint), "scores": rows}
    return _print_scores(judge.name, rows)


def _check_number(prompts: Sequence[object], images: Sequence[Path], source: str) -> None:
    if len(prompts) not in (1, len(images)):
        raise ValueError(
            f"{source}: {len(prompts)} prompts for {len(images)} pictures; give one, or one for "
            "each"
        )


@clear_errors("run it again")
def fetch(
    name: Annotated[str, typer.Argument(help="Name of the reward, for example pickscore.")],
    yes: Annotated[
        bool, typer.Option("--yes", help="Download; without it, only say what.")
    ] = False,
    to: Annotated[Path, typer.Option(help="Folder of reward models.")] = DEFAULT_FOLDER,
    base_url: Annotated[
        str | None, typer.Option(help="Mirror that stands in for the original host.")
    ] = None,
    as_json: AsJson = False,
) -> dict[str, object] | None:
    """Download the files of a reward.

    Weights have licences of their own: they are shown first.
    """
    files = files_of(name)
    table = Table("file", "size", "licence", "from")
    for file in files:
        table.add_row(file.name, file.size, file.licence, file.page)
    Console(file=sys.stdout).print(table)
    if not yes:
        raise Failed(
            f"nothing was downloaded; add --yes to download to {to}",
            exit_code=1,
            kind="NotConfirmed",
            is_error=False,
        )
    fetched: list[dict[str, str]] = []
    for file in files:
        with Progress(console=Console(stderr=True)) as bar:
            task = bar.add_task(file.name, total=1.0)
            path, digest = fetch_file(
                file,
                to,
                base_url=base_url,
                progress=lambda done, bar=bar, task=task: bar.update(task, completed=done),
            )
        typer.echo(f"{path}  sha256 {digest}")
        fetched.append({"file": str(path), "sha256": digest})
    return {"files": fetched} if as_json else None


def _score_files(
    reward: Reward, paths: list[Path], prompts: Sequence[Example]
) -> list[dict[str, Any]]:
    """Score files of any sizes, those of one size together; one row for each, in order."""
    pictures = [load_picture(path) for path in paths]
    rows: list[dict[str, Any]] = [{} for _ in paths]
    for size in dict.fromkeys(picture.shape for picture in pictures):
        members = [i for i, picture in enumerate(pictures) if picture.shape == size]
        batch = reward.score(
            torch.stack([pictures[i] for i in members]), [prompts[i] for i in members]
        )
        for place, i in enumerate(members):
            rows[i] = {
                "image": str(paths[i]),
                "prompt": prompts[i].text,
                "score": _finite(batch.known[place]),
                # Apart: a reward from anywhere gives them their names.
                "extras": {name: _finite(row[place]) for name, row in batch.details.items()},
            }
    return rows


def _finite(value: torch.Tensor) -> float | None:
    return float(value) if math.isfinite(value) else None


def _print_scores(name: str, rows: list[dict[str, Any]]) -> None:
    table = Table("image", name, "prompt")
    for row in rows:
        value = row["score"]
        table.add_row(row["image"], "no score" if value is None else f"{value:.4f}", row["prompt"])
    Console(file=sys.stdout).print(table)
