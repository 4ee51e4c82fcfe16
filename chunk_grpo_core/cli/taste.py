"""``chunk-grpo taste``: picks, imports, heads and reports."""

# No ``from __future__ import annotations`` here: typer reads the annotations at run time.
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

from ..disk.atomic import write_whole
from ..disk.lock import InUse
from ..rewards import load_reward
from ..rewards.picture_files import load_picture
from ..rewards.taste.asking import answer_in_words, asked_batches, clicks_about
from ..rewards.taste.encoders import named_encoder
from ..rewards.taste.events import Shown, new_pick
from ..rewards.taste.features import Encoder
from ..rewards.taste.fit import fit_taste
from ..rewards.taste.head import save_head
from ..rewards.taste.importing.into import FORMS, import_into, listed
from ..rewards.taste.picks import Taste
from ..rewards.taste.report import Report
from .outcome import AsJson, Command, CommandGroup
from .outputs import file_to_write, folder_to_write
from .progress import clear_errors
from .rewards import score_and_show

__all__ = ["taste"]

taste = typer.Typer(
    name="taste",
    cls=CommandGroup,
    help="Your own taste as a reward: picks, imports, heads and reports (docs/taste.md).",
    no_args_is_help=True,
)
Folder = Annotated[Path, typer.Argument(metavar="TASTE", help="Folder of the taste.")]
EncoderFolder = Annotated[
    Path | None,
    typer.Option(
        help="Folder of a vision model of transformers, such as SigLIP; tiny: that of the tiny "
        "world, which needs no file. Default: no model; shapes and colours are measured."
    ),
]

Device = Annotated[str | None, typer.Option(help="Where the encoder runs. Default: cpu.")]


class Form(str, Enum):
    """What is imported; see ``FORMS``."""

    likes = "likes"
    stars = "stars"
    ratings = "ratings"
    majoor = "majoor"
    pairs = "pairs"


class Kind(str, Enum):
    """Of a pick; see ``KINDS``."""

    duel = "duel"
    same = "same"
    best = "best"
    hearts = "hearts"
    like = "like"
    stars = "stars"
    skip = "skip"
    done = "done"
    undo = "undo"


@contextmanager
def _told(hint: str) -> Iterator[None]:
    """As everywhere, and say who else writes."""
    with clear_errors(hint):
        try:
            yield
        except InUse as error:
            raise ValueError(f"somebody else writes to this taste ({error}); try again") from error


@taste.command(cls=Command)
def add(
    taste: Folder,
    images: Annotated[list[Path] | None, typer.Argument(help="The pictures shown.")] = None,
    kind: Annotated[
        Kind, typer.Option(help="What was picked; like and stars take any number of pictures.")
    ] = Kind.best,
    answer: Annotated[
        str,
        typer.Option(
            help="duel, best: number of the better picture, from 1. hearts: numbers of the liked "
            "ones, 1,4; rejected ones with a minus. like: yes or no. stars: 1 to 5, or -1. undo: "
            "id of the pick, or empty for the last one."
        ),
    ] = "",
    prompt: Annotated[str, typer.Option(help="That all pictures were made of.")] = "",
    as_json: AsJson = False,
) -> dict[str, object] | None:
    """Add a pick.

    The pictures are copied into the folder of the taste.
    """
    with _told("the pick was not added"):
        into = Taste(folder_to_write(taste, "TASTE"))
        files = images or []
        said = _answer(kind.value, answer, len(files), into)
        pictures = [load_picture(file) for file in files]
        if kind is Kind.duel and len(pictures) == 2 and torch.equal(*pictures):
            raise ValueError(f"{files[0]} and {files[1]} are the same picture; a duel needs two")
        probe = [Shown(picture="0" * 64)] * len(files)
        each = [[i] for i in range(len(files))] if kind.value in ("like", "stars") else [
            list(range(len(files)))]  # fmt: skip
        for places in each:  # refused before any picture is stored
            new_pick(kind.value, [probe[i] for i in places], said)
        if not each:
            raise ValueError(f"{kind.value} needs pictures; name them behind the taste")
        shown = [into.keep(picture, prompt=prompt, index=i) for i, picture in enumerate(pictures)]
        picks = [new_pick(kind.value, [shown[i] for i in places], said) for places in each]
        into.extend(picks)
        total = len(into.counting())
    ids = [pick.id for pick in picks]
    if as_json:
        return {"taste": str(taste), "ids": ids, "picks": total}
    return typer.echo(f"{taste}: {total} picks  ({', '.join(ids)})")


@taste.command(cls=Command)
def answer(
    taste: Folder,
    said: Annotated[
        str,
        typer.Argument(
            help="Lines or parts between semicolons: liked: 1, 4; disliked: 2; best: 3; "
            "better: 2 > 1; stars: 5, 3, , 1; skip. Empty: go on with what was said before."
        ),
    ] = "",
    more: Annotated[
        bool, typer.Option("--more", help="Something will be added; the training waits on.")
    ] = False,
    as_json: AsJson = False,
) -> dict[str, object] | None:
    """Answer the training that asks about pictures of this taste.

    Pictures have the numbers that the training shows. A taste that is fitted again goes on when it
    has as many clicks as it asks for; everything else when it was answered without --more.
    """
    with _told("nothing was added"):
        into = Taste(taste)
        batches = asked_batches(into)
        added = answer_in_words(into, batches, said, closes=not more)
        given = clicks_about(batches, into.picks())
    if as_json:
        return {"taste": str(taste), "added": len(added), "clicks": given}
    return typer.echo(f"{taste}: {given} clicks about {len(batches)} groups of pictures")


@taste.command("import", cls=Command)
def import_ratings(
    taste: Folder,
    source: Annotated[Path, typer.Argument(help="Folder, index or table to import.")],
    form: Annotated[
        Form | None,
        typer.Option("--as", help="What it is; by default what it looks like. "
                     + "; ".join(f"{name}: {text}" for name, text in FORMS.items())),
    ] = None,
    as_json: AsJson = False,
) -> dict[str, object] | None:  # fmt: skip
    """Import ratings that were made elsewhere: all of them, or none if anything is wrong.

    Damaged notes (XMP, EXIF) are named; their pictures are left out.
    """
    with _told("nothing was imported"):
        into = Taste(folder_to_write(taste, "TASTE"))
        done = import_into(into, source, form.value if form else None)
        total = len(into.counting())
    if as_json:
        return {"taste": str(taste), **asdict(done), "total": total}
    kinds = ", ".join(f"{count} {kind}" for kind, count in done.kinds.items()) or "nothing new"
    left_out = (
        (done.present, "were there already"),
        (done.changed, "took the place of an older rating"),
        (done.same_pixels, "came twice"),
        (done.same_look, "look like another one"),
        (done.missing, "have no file any more"),
        (len(done.unreadable), "have notes that are damaged"),
    )
    notes = "".join(f"; {count} {text}" for count, text in left_out if count)
    typer.echo(f"{taste}: {kinds} ({FORMS[done.form]}){notes}. {total} picks in all.")
    return typer.echo(f"Damaged: {listed(done.unreadable)}") if done.unreadable else None


@taste.command(cls=Command)
def fit(
    taste: Folder,
    out: Annotated[
        Path | None, typer.Option(help="File of the head. Default: TASTE/head.safetensors.")
    ] = None,
    encoder: EncoderFolder = None,
    device: Device = None,
    as_json: AsJson = False,
) -> dict[str, object] | None:
    """Fit a head, and say how well it knows you."""
    with _told("no head was written"):
        file = file_to_write(out or taste / "head.safetensors")
        fitted = fit_taste(*_seen(taste, encoder, device))
        save_head(fitted.head, file)
    if as_json:
        return {"head": str(file), **fitted.report.to_json()}
    typer.echo(fitted.report.words())
    return typer.echo(file)


@taste.command(cls=Command)
def report(
    taste: Folder,
    encoder: EncoderFolder = None,
    device: Device = None,
    plot: Annotated[Path | None, typer.Option(help="PNG to draw the report into.")] = None,
    as_json: AsJson = False,
) -> dict[str, object] | None:
    """Say how well a head would know you, without writing one."""
    with _told("no report was written"):
        if plot:
            file_to_write(plot, "--plot")
        into, sight = _seen(taste, encoder, device)
        made = fit_taste(into, sight).report
        if plot:
            _draw(into, made, plot)
    if as_json:
        return made.to_json()
    typer.echo(made.words())
    _print_report(made)
    return typer.echo(plot) if plot else None


@taste.command(cls=Command)
def score(
    head: Annotated[Path, typer.Argument(help="File of the head.")],
    images: Annotated[list[Path], typer.Argument(help="Picture files.")],
    prompt: Annotated[
        list[str] | None, typer.Option(help="One for all pictures, or one for each, in order.")
    ] = None,
    encoder: EncoderFolder = None,
    pessimism: Annotated[
        float, typer.Option(min=0.0, help="Deviations of the ensemble that are subtracted.")
    ] = 0.0,
    device: Device = None,
    as_json: AsJson = False,
) -> dict[str, object] | None:
    """Score pictures with a head."""
    with clear_errors("nothing was written"):
        settings = {"head": str(head), "pessimism": pessimism, "device": device or "cpu"}
        if encoder:
            settings["encoder"] = str(encoder)
        judge = load_reward("taste", **settings)
        return score_and_show(judge, images, prompt or [""], as_json)


def _existing(folder: Path) -> Taste:
    taste = Taste(folder)
    if not taste.file.is_file():
        raise FileNotFoundError(
            f"TASTE: there are no picks in {folder} ({taste.file.name}); add or import some first"
        )
    return taste


def _seen(taste: Path, folder: Path | None, device: str | None) -> tuple[Taste, Encoder | None]:
    """The taste, which must have picks, and the encoder to see them with."""
    if device is not None and folder is None:
        raise ValueError(
            f"--device is {device}, and there is no encoder to run there; give --encoder, too, or "
            "leave it out"
        )
    return _existing(taste), named_encoder(folder, device=device or "cpu") if folder else None


def _draw(taste: Taste, made: Report, file: Path) -> None:
    from ..rewards.png import png_bytes
    from ..watch.taste_plot import draw_taste

    write_whole(file, png_bytes(draw_taste(taste, made)))


def _answer(kind: str, text: str, count: int, taste: Taste) -> object:
    """What --answer says, as ``events.py`` has it."""
    text = text.strip().lower() if kind != "undo" else text.strip()
    if kind in ("same", "skip", "done"):
        if text:
            raise ValueError(f"--answer is {text!r:.40}; {kind} has none")
        return None
    if kind == "undo":
        if text and text not in {pick.id for pick in taste.counting()}:
            raise ValueError(f"--answer is {text!r:.40}; no pick that counts has this id")
        return text or _last(taste)
    if kind == "like":
        if text not in ("yes", "no"):
            raise ValueError(f"--answer is {text!r:.40}; for like it must be yes or no")
        return text == "yes"
    numbers = _numbers(text, kind)
    if kind == "hearts":
        return _marks(numbers, count)
    if len(numbers) != 1:
        raise ValueError(f"--answer is {text!r:.40}; for {kind} it must be one number")
    return numbers[0] if kind == "stars" else _place(numbers[0], count)


def _numbers(text: str, kind: str) -> list[int]:
    try:
        return [int(word) for word in text.replace(",", " ").split()]
    except ValueError:
        raise ValueError(f"--answer is {text!r:.40}; for {kind} write numbers, such as 2") from None


def _place(number: int, count: int) -> int:
    if not 1 <= number <= count:
        raise ValueError(f"--answer names picture {number}; there are {count}, counted from 1")
    return number - 1


def _marks(numbers: Sequence[int], count: int) -> list[int]:
    marks = [0] * count
    for number in numbers:
        place = _place(abs(number), count)
        if marks[place]:
            raise ValueError(f"--answer names picture {abs(number)} twice; name it once")
        marks[place] = 1 if number > 0 else -1
    return marks


def _last(taste: Taste) -> str:
    picks = taste.counting()
    if not picks:
        raise ValueError(f"{taste.folder} has no pick to undo")
    return picks[-1].id


def _print_report(made: Report) -> None:
    table = Table("clicks", "agreement", title="With the first clicks alone")
    for clicks, share in made.curve:
        table.add_row(str(clicks), f"{100 * share:.0f} %")
    Console(file=sys.stdout).print(table)
