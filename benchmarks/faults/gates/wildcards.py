"""Prompts with alternatives and wildcard folders, in captions that the tiny model knows."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Set
from pathlib import Path

from ..compare import record_of
from ..material import BASE, Material, as_toml, put
from ..mutate import damaged_bytes
from ..outcomes import Case, Check, Expected
from ..warm import Ended
from .configurations import train

__all__ = ["wildcards"]

_WORDS = {
    "size": ("small", "large"),
    "colour": ("red", "blue", "green", "yellow"),
    "shape": ("circle", "square", "triangle", "cross"),
}
_CAPTION = "a {size} {colour} {shape} on a white background"


def wildcards(rng: random.Random, folder: Path, material: Material) -> Case:
    """A prompt of ``[prompts] text`` and a folder of lists, and a training with them."""
    kind = rng.choice(["good", "good", "foreign", "foreign", "hostile", "damaged"])
    if kind == "good":
        return _good(rng, folder)
    if kind == "damaged":
        (folder / "lists").mkdir()
        body, what = damaged_bytes(b"red\nblue\n{green|yellow}\n", rng)
        (folder / "lists" / "colour.txt").write_bytes(body)
        prompt = "a small __colour__ {circle|square|cross} on a white background"
        return _case(folder, prompt, f"a list {what}", ("colour.txt", "prompts.text", "the prompt"))
    if kind == "foreign":
        name = rng.choice(sorted(_FOREIGN))
        _lists(folder, {"colour": ("red", "blue"), "hair color": ("red", "blue")})
        colour, piece = _FOREIGN[name]
        return _case(folder, _with(colour), name, (piece, *_SEVERAL), never=_AS_TEXT)
    name = rng.choice(sorted(_HOSTILE))
    prompt, names, expected = _HOSTILE[name](folder)
    return _case(folder, prompt, name, names, expected)


def _case(
    folder: Path,
    prompt: str,
    about: str,
    names: tuple[str, ...],
    expected: Expected = Expected.either,
    *,
    check: Check | None = None,
    variants: int = 8,
    never: tuple[str, ...] = (),
) -> Case:
    changes = {"prompts.text": [prompt], "prompts.wildcards": "lists", "prompts.variants": variants}
    case = train(folder, as_toml(put(BASE, changes)), about, names, expected=expected)
    return Case(
        argv=case.argv,
        about=about,
        names=names,
        expected=expected,
        check=check or _plain,
        never=never,
        seconds=20,
    )


def _lists(folder: Path, lists: dict[str, tuple[str, ...]]) -> None:
    (folder / "lists").mkdir(exist_ok=True)
    for name, lines in lists.items():
        (folder / "lists" / f"{name}.txt").write_text("\n".join(lines), encoding="utf-8")


def _prompts_of(folder: Path) -> Set[str]:
    record = record_of(folder / "run")["record"]
    return {item if isinstance(item, str) else item["text"] for item in record["train"]} | {
        item if isinstance(item, str) else item["text"] for item in record["held_out"]
    }


def _plain(folder: Path, ended: Ended) -> str:
    """No sign of the syntax may be left in a prompt."""
    left = [text for text in _prompts_of(folder) if any(sign in text for sign in "{}|_$:")]
    return f"taken as text: {left[0]!r}" if left else ""


def _good(rng: random.Random, folder: Path) -> Case:
    """Alternatives and lists, nested in any way; their combinations are known."""
    lists: dict[str, tuple[str, ...]] = {}
    places: dict[str, str] = {}
    used: dict[str, tuple[str, ...]] = {}
    for name, words in _WORDS.items():
        some = rng.sample(words, rng.randrange(2, len(words) + 1))
        how = rng.randrange(4)
        if how == 0:
            places[name] = "{" + "|".join(some) + "}"
        elif how == 1:
            lists[name] = tuple(some)
            places[name] = f"__{name}__"
        elif how == 2:
            lists[f"{name}s/inner"] = tuple(some[1:])
            places[name] = f"{{{some[0]}|__{name}s/inner__}}"
        else:
            lists[name] = ("{" + "|".join(some) + "}",)
            places[name] = f"{{__{name}__|{some[0]}}}"
        used[name] = tuple(some)
    (folder / "lists").mkdir()
    for name in lists:
        (folder / "lists" / name).parent.mkdir(exist_ok=True)
    _lists(folder, lists)
    wanted = {
        _CAPTION.format(size=s, colour=c, shape=h)
        for s, c, h in itertools.product(used["size"], used["colour"], used["shape"])
    }
    variants = rng.choice([6, 40])

    def check(place: Path, ended: Ended) -> str:
        got = _prompts_of(place)
        if strange := got - wanted:
            return f"{min(strange)!r} is no expansion"
        count = min(variants, len(wanted))
        return "" if len(got) == count else f"{len(got)} prompts instead of {count}"

    prompt = _CAPTION.format(**places)
    return _case(folder, prompt, prompt, (), Expected.accepted, check=check, variants=variants)


_END = "{circle|square|cross|triangle} on a white background"


def _with(colour: str) -> str:
    """A prompt whose colour is written in this way."""
    return f"a small {colour} {_END}"


_SEVERAL = ("red, blue", "blue, red", "red and blue", "blue and red")
"""What several at once come to, which is no caption of the tiny model."""
_AS_TEXT = tuple(f"the prompt 'a small {sign}" for sign in "{_$^0123456789")
"""How a message begins that shows that the syntax was taken for words of the prompt."""
_FOREIGN = {
    "a name with a space": ("__hair color__", "hair color"),
    "a weight": ("{0.5::red|2::blue}", "0.5::"),
    "a whole weight": ("{3::red|blue}", "3::"),
    "two of several": ("{2$$red|blue}", "2$$"),
    "a range of several": ("{1-2$$red|blue}", "1-2$$"),
    "a separator": ("{2$$ and $$red|blue}", "2$$"),
    "a variable": ("${c=!{red|blue}} ${c}", "${"),
    "a number of draws": ("2#__colour__", "2#"),
    "a combinatorial choice": ("{^red|blue}", "^"),
    "a pattern": ("__col*__", "col*"),
    "a cyclical sampler": ("__@colour__", "@"),
    "a seeded wildcard": ("__~colour__", "~"),
    "a parameter": ("__colour(x=1)__", "colour("),
}


def _doubling(folder: Path) -> tuple[str, tuple[str, ...], Expected]:
    lists = {f"a{n}": (f"__a{n + 1}__ __a{n + 1}__",) for n in range(60)}
    _lists(folder, {**lists, "a60": ("red",)})
    return _with("__a0__"), ("a0", "a1", "wildcard"), Expected.refused


def _wide(folder: Path) -> tuple[str, tuple[str, ...], Expected]:
    lists = {f"a{n}": ("{" + "|".join([f"__a{n + 1}__"] * 10) + "}",) for n in range(40)}
    _lists(folder, {**lists, "a40": ("red", "blue")})
    return _with("__a0__"), ("a0", "wildcard"), Expected.either


def _chain(folder: Path) -> tuple[str, tuple[str, ...], Expected]:
    _lists(folder, {f"a{n}": (f"__a{n + 1}__",) for n in range(2000)} | {"a2000": ("red",)})
    return _with("__a0__"), ("a0", "a1", "wildcard", "deep"), Expected.either


def _circle(folder: Path) -> tuple[str, tuple[str, ...], Expected]:
    _lists(folder, {"a": ("__b__",), "b": ("__a__", "red")})
    return _with("__a__"), ("circle:", "a -> b"), Expected.refused


def _link(folder: Path) -> tuple[str, tuple[str, ...], Expected]:
    _lists(folder, {"x": ("blue",)})
    (folder / "secret.txt").write_text("red\ngreen\n")
    (folder / "lists" / "colour.txt").symlink_to(folder / "secret.txt")
    return _with("__colour__"), ("colour",), Expected.refused


def _link_folder(folder: Path) -> tuple[str, tuple[str, ...], Expected]:
    _lists(folder, {"x": ("blue",)})
    (folder / "lists" / "up").symlink_to(folder)
    (folder / "secret.txt").write_text("red\ngreen\n")
    return _with("__up/secret__"), ("up/secret",), Expected.refused


def _climb(folder: Path) -> tuple[str, tuple[str, ...], Expected]:
    _lists(folder, {"x": ("blue",)})
    (folder / "secret.txt").write_text("red\ngreen\n")
    return _with("__../secret__"), ("../secret",), Expected.refused


def _no_folder(folder: Path) -> tuple[str, tuple[str, ...], Expected]:
    return _with("__colour__"), ("lists",), Expected.refused


def _empty(folder: Path) -> tuple[str, tuple[str, ...], Expected]:
    _lists(folder, {"colour": ("# nothing", "")})
    return _with("__colour__"), ("colour",), Expected.refused


def _binary(folder: Path) -> tuple[str, tuple[str, ...], Expected]:
    _lists(folder, {})
    (folder / "lists" / "colour.txt").write_bytes(bytes(range(256)))
    return _with("__colour__"), ("colour",), Expected.refused


def _directory(folder: Path) -> tuple[str, tuple[str, ...], Expected]:
    _lists(folder, {})
    (folder / "lists" / "colour.txt").mkdir()
    return _with("__colour__"), ("colour",), Expected.refused


def _many(folder: Path) -> tuple[str, tuple[str, ...], Expected]:
    _lists(folder, {"colour": tuple("red blue green yellow".split() * 50_000)})
    return _with("__colour__"), ("colour",), Expected.either


def _text(prompt: str, *names: str) -> Callable[[Path], tuple[str, tuple[str, ...], Expected]]:
    def make(folder: Path) -> tuple[str, tuple[str, ...], Expected]:
        _lists(folder, {"colour": ("red", "blue")})
        return prompt, names, Expected.refused

    return make


_HOSTILE = {
    "files that double": _doubling,
    "40 levels of ten": _wide,
    "a chain of 2,000": _chain,
    "a circle": _circle,
    "a link out of the folder": _link,
    "a linked folder": _link_folder,
    "a name that climbs": _climb,
    "no folder": _no_folder,
    "an empty list": _empty,
    "a binary list": _binary,
    "a folder as a list": _directory,
    "200,000 lines": _many,
    "10,000 open braces": _text("{" * 10_000 + "red", "{", "brace", "nested"),
    "10,000 nested groups": _text("{a|" * 10_000 + "b" + "}" * 10_000, "{", "brace", "nested"),
    "an open brace": _text(_with("{red|blue"), "{"),
    "a brace that closes nothing": _text(_with("red}"), "}"),
    "an unknown name": _text(_with("__color__"), "color"),
}
