"""Flags and arguments of every command."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

from PIL import Image

from ..material import BASE, Material, as_toml
from ..outcomes import Case, Expected

__all__ = ["flags"]

_LINES = (
    "nope",
    "--nope",
    "train",
    "train nope.toml",
    "train .",
    "train c.toml extra",
    "train c.toml --out",
    "train c.toml --out c.toml",
    "train c.toml --out c.toml/run",
    "train c.toml --out /proc/nope",
    "train c.toml --timeout nope",
    "train c.toml --shard",
    "resume",
    "resume nope",
    "resume .",
    "resume c.toml",
    "resume RUN --iterations 0",
    "resume RUN --iterations -5",
    "resume RUN --iterations 1e3",
    "resume RUN --iterations 2",
    "resume RUN --set lora.rank=8",
    "resume RUN --set seed=9",
    "resume RUN --set nope=9",
    "sample",
    "sample nope",
    "sample RUN --count 0",
    "sample RUN --count x",
    "sample RUN --steps 1",
    "sample RUN --steps nan",
    "sample RUN --seed 1e99",
    "sample RUN --seed 99999999999999999999999",
    "sample RUN --out c.toml",
    "sample RUN --prompt nope",
    "sample RUN --lora nope.safetensors",
    "sample RUN --lora c.toml",
    "analyze nope",
    "analyze c.toml --prompts 0",
    "analyze c.toml --out .",
    "evaluate nope",
    "evaluate c.toml",
    "evaluate RUN --pictures 0",
    "evaluate RUN --reward nope",
    "evaluate RUN --reward target_colour --setting nope=1",
    "evaluate RUN --lora nope.safetensors",
    "presets --write nope",
    "presets --write safe-lora --model nope",
    "convert",
    "convert nope.safetensors x.safetensors --to native",
    "convert c.toml x.safetensors --to native",
    "convert LORA x.txt --to native",
    "convert LORA c.toml --to native",
    "convert LORA x.safetensors --to nope",
    "convert LORA c.toml/x.safetensors --to native",
    "score p.png",
    "score --reward brightness",
    "score p.png --reward nope",
    "score p.png p.png --reward brightness --prompt a --prompt b --prompt c",
    "score p.png --reward brightness --prompt a --prompt-file c.toml",
    "fetch nope",
    "fetch brightness --to c.toml",
    "serve-reward nope",
    "serve-reward brightness --port 99999",
    "serve-reward brightness --port x",
    "serve-reward brightness --max-megabytes nan --port 0",
    "serve-reward brightness --max-megabytes -1 --port 0",
    "serve-reward brightness --timeout inf --port 0",
    "serve-reward brightness --queue 0 --port 0",
    "serve-reward brightness --host 0.0.0.0 --port 0",
    "serve-reward brightness --host no.such.host.invalid --port 0",
    "serve-reward brightness --token-env NOPE --port 0",
    "demo --iterations 0",
    "demo --pictures -1",
    "demo --seed x",
    "demo --algorithm nope",
    "demo --threads 0",
    "demo --out c.toml",
    "demo --resume",
    "demo --resume --out nope",
    "demo --resume --out RUN",
)
_CANNOT = ("train c.toml --out /proc/nope",)
"""Rightly asked, and the system says no: status 1."""
_EITHER = ("fetch brightness", "demo --resume --out RUN", "sample RUN --seed 9999")


def flags(rng: random.Random, folder: Path, material: Material) -> Case:
    """A command line that cannot be meant."""
    (folder / "c.toml").write_text(as_toml(BASE), encoding="utf-8")
    Image.new("RGB", (8, 8)).save(folder / "p.png")
    line = rng.choice(_LINES)
    if "RUN" in line:
        shutil.copytree(material.finished, folder / "run")
    words = line.replace("RUN", "run").replace("LORA", str(material.lora)).split()
    return Case(
        argv=tuple(words),
        about=line,
        names=_named(words),
        expected=Expected.either if line.startswith(_EITHER) else Expected.refused,
        codes=(1,) if line in _CANNOT else (2,),
        seconds=15,
    )


def _named(words: list[str]) -> tuple[str, ...]:
    """Options and arguments, as a message may name them; what is missing has no name."""
    given = [word.lstrip("-") for word in words[1:] if len(word) > 2 and word != "run"]
    given += [word.partition("=")[0] for word in given if "=" in word]
    given += [word.rpartition("-")[2] for word in given if "-" in word]
    about_run = ("start a new run",) if words[:2] == ["demo", "--resume"] else ()
    return (*given, *(w.replace("-", "_") for w in given), words[0], "Missing", *about_run)
