"""LoRA files: layouts of other programs, wrong numbers, wrong shapes, wrong headers."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save

from ..compare import rows_of
from ..material import BASE, Material, as_toml
from ..mutate import damaged_bytes
from ..outcomes import Case, Check, Expected
from ..warm import Ended
from .configurations import train
from .lora_layouts import LAYOUTS, Tensors, read_tensors, text_encoder, with_alphas

__all__ = ["different_pictures", "lora_files"]

_USES = ("sample", "sample", "convert native", "convert diffusers", "continue")


def lora_files(rng: random.Random, folder: Path, material: Material) -> Case:
    """A file, and one of the commands that take one."""
    use, kind = rng.choice(_USES), rng.choice(["layout", "layout", "wrong", "wrong", "damaged"])
    plain = read_tensors(material.lora)
    if kind == "layout":
        name = rng.choice(sorted(LAYOUTS))
        tensors, expected = LAYOUTS[name](plain, material)
        return _case(folder, material, use, name, save(tensors), expected, same=True)
    if kind == "wrong":
        name = rng.choice(sorted(_WRONG))
        body, expected = _WRONG[name](plain, rng)
        if name == "another width" and use == "convert diffusers":
            expected = _ANY  # whether a model has such a layer is not known there
        return _case(folder, material, use, name, body, expected)
    body, what = damaged_bytes(material.lora.read_bytes(), rng)
    # A turned bit of a weight is a weight like another; a file of another size is damaged.
    expected = _ANY if len(body) == material.lora.stat().st_size else _NO
    return _case(folder, material, use, what, body, expected)


def _case(
    folder: Path,
    material: Material,
    use: str,
    about: str,
    body: bytes,
    expected: Expected,
    *,
    same: bool = False,
) -> Case:
    (folder / "lora.safetensors").write_bytes(body)
    about = f"{use}: {about}"
    if use == "continue":
        more = ("--set", "run.continue_from=lora.safetensors", "--set", "lora.rank=16")
        names = ("lora.safetensors", "LoRA to continue")
        case = train(folder, as_toml(BASE), about, names, *more, expected=expected)
        return replace(case, check=_same_reward(material)) if same else case
    check: Check | None
    if use == "sample":
        argv = ("sample", str(material.finished), "--lora", "lora.safetensors", "--count", "1")
        check = _same_pictures(material) if same else None
    else:
        to = use.split()[1]
        argv = ("convert", "lora.safetensors", "new.safetensors", "--to", to)
        check = _same_function(material, to) if same else _finite
    return Case(argv=argv, about=about, names=("lora.safetensors",), expected=expected, check=check)


def _same_reward(material: Material) -> Check:
    """The first iteration samples with the LoRA that is continued."""

    def check(folder: Path, ended: Ended) -> str:
        ours, theirs = rows_of(folder / "run" / "metrics.jsonl")[0], material.continued_reward
        is_same = abs(ours["reward_mean"] - theirs) < 1e-3
        return "" if is_same else f"the reward is {ours['reward_mean']}, not {theirs}"

    return check


def _same_pictures(material: Material) -> Check:
    def check(folder: Path, ended: Ended) -> str:
        return different_pictures(folder / "sampled", material.finished.parent / "sampled")

    return check


def different_pictures(ours: Path, theirs: Path) -> str:
    import numpy
    from PIL import Image

    for file in sorted(theirs.iterdir()):
        if not (ours / file.name).is_file():
            return f"there is no picture {file.name}"
        one, other = (numpy.asarray(Image.open(p / file.name), dtype=int) for p in (ours, theirs))
        if (largest := abs(one - other).max()) > 3:
            return f"{file.name} differs by {largest} of 255 from that of the same LoRA"
    return ""


def _same_function(material: Material, to: str) -> Check:
    def check(folder: Path, ended: Ended) -> str:
        ours, theirs = (
            _deltas(read_tensors(path))
            for path in (folder / "new.safetensors", material.finished.parent / f"{to}.safetensors")
        )
        if ours.keys() != theirs.keys():
            return f"layers differ, such as {min(ours.keys() ^ theirs.keys())}"
        for name, delta in theirs.items():
            if not torch.allclose(ours[name], delta, rtol=0.05, atol=1e-6 + 0.05 * delta.std()):
                return f"{name} has another update"
        return ""

    return check


def _finite(folder: Path, ended: Ended) -> str:
    strange = [
        k for k, v in read_tensors(folder / "new.safetensors").items() if not v.isfinite().all()
    ]
    return f"{strange[0]} is not finite" if strange else ""


def _deltas(tensors: Tensors) -> Tensors:
    """Module -> (alpha / r) B A; read here once more, without the library."""
    deltas = {}
    for name, a in tensors.items():
        if name.endswith(".lora_A.weight"):
            module = name.removesuffix(".lora_A.weight")
            b, alpha = tensors[f"{module}.lora_B.weight"], tensors.get(f"{module}.alpha")
            scale = 1.0 if alpha is None else float(alpha) / a.shape[0]
            deltas[module] = scale * b.float() @ a.float()
    return deltas


_NO, _ANY = Expected.refused, Expected.either

# What is no LoRA, or none that can be computed.


def _filled(value: float, side: str, how_many: int) -> Callable[..., tuple[bytes, Expected]]:
    def make(tensors: Tensors, rng: random.Random) -> tuple[bytes, Expected]:
        names = [name for name in tensors if side in name]
        out = dict(tensors)
        for name in rng.sample(names, min(how_many, len(names))):
            out[name] = out[name].clone()
            out[name].view(-1)[rng.randrange(out[name].numel())] = value
        return save(out), _NO

    return make


def _changed(
    change: Callable[[Tensors, random.Random], Tensors], expected: Expected = _NO
) -> Callable[..., tuple[bytes, Expected]]:
    return lambda tensors, rng: (save(change(dict(tensors), rng)), expected)


def _alpha(value: object) -> Callable[..., tuple[bytes, Expected]]:
    def change(tensors: Tensors, rng: random.Random) -> Tensors:
        out = with_alphas(tensors)
        alphas = [name for name in out if name.endswith(".alpha")]
        out[rng.choice(alphas)] = torch.tensor(value)
        return out

    return _changed(change)


def _some(tensors: Tensors, rng: random.Random, end: str = ".lora_A.weight") -> str:
    module = rng.choice([name for name in tensors if name.endswith(end)])
    return module.removesuffix(end)


def _shape(tensors: Tensors, rng: random.Random) -> Tensors:
    module = _some(tensors, rng)
    rank = tensors[f"{module}.lora_A.weight"].shape[0]
    side, shape = rng.choice([("A", (rank, 7)), ("B", (7, rank))])
    return {**tensors, f"{module}.lora_{side}.weight": torch.randn(shape)}


def _another_rank(tensors: Tensors, rng: random.Random) -> Tensors:
    name = f"{_some(tensors, rng)}.lora_A.weight"
    return {**tensors, name: torch.randn(tensors[name].shape[0] + 1, tensors[name].shape[1])}


def _one_missing(tensors: Tensors, rng: random.Random) -> Tensors:
    tensors.pop(rng.choice(sorted(tensors)))
    return tensors


def _with(suffix: str, *shape: int) -> Callable[..., tuple[bytes, Expected]]:
    def change(tensors: Tensors, rng: random.Random) -> Tensors:
        return {**tensors, f"{_some(tensors, rng)}{suffix}": torch.ones(shape or (160,))}

    return _changed(change)


def _misnamed(share: float) -> Callable[..., tuple[bytes, Expected]]:
    def change(tensors: Tensors, rng: random.Random) -> Tensors:
        modules = sorted({name.split(".lora_")[0] for name in tensors})
        wrong = rng.sample(modules, max(1, int(share * len(modules))))
        return {
            (name.replace("blocks.", "blocks_", 1) if name.split(".lora_")[0] in wrong else name): t
            for name, t in tensors.items()
        }

    return _changed(change)


def _dtype(dtype: torch.dtype) -> Callable[..., tuple[bytes, Expected]]:
    return _changed(lambda t, rng: {name: (v * 100).to(dtype) for name, v in t.items()})


def _rank_zero(tensors: Tensors, rng: random.Random) -> Tensors:
    return {n: v[:0] if "lora_A" in n else v[:, :0].contiguous() for n, v in tensors.items()}


def _lokr(tensors: Tensors, rng: random.Random) -> Tensors:
    module = "lora_unet_double_blocks_0_img_attn_proj"
    return {f"{module}.lokr_w1": torch.randn(4, 4), f"{module}.lokr_w2": torch.randn(40, 40)}


def _loha(tensors: Tensors, rng: random.Random) -> Tensors:
    module = "lora_unet_double_blocks_0_img_attn_proj"
    return {
        f"{module}.hada_w{n}_{side}": torch.randn(*((160, 2) if side == "a" else (2, 160)))
        for n in (1, 2)
        for side in "ab"
    }


def _header(config: str) -> Callable[..., tuple[bytes, Expected]]:
    def make(tensors: Tensors, rng: random.Random) -> tuple[bytes, Expected]:
        return save(tensors, {"lora_adapter_metadata": config}), _NO

    return make


def _raw(body: bytes) -> Callable[..., tuple[bytes, Expected]]:
    return lambda tensors, rng: (body, _NO)


def _long_header(tensors: Tensors, rng: random.Random) -> tuple[bytes, Expected]:
    return struct.pack("<Q", 2**62) + b"{}", _NO


def _overlapping(tensors: Tensors, rng: random.Random) -> tuple[bytes, Expected]:
    entry = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}
    head = json.dumps({f"transformer.a.lora_{side}.weight": entry for side in "AB"}).encode()
    return struct.pack("<Q", len(head)) + head + bytes(16), _NO


_WRONG: dict[str, Callable[..., tuple[bytes, Expected]]] = {
    "NaN in one A": _filled(float("nan"), "lora_A", 1),
    "NaN in one B": _filled(float("nan"), "lora_B", 1),
    "infinity in a B": _filled(float("inf"), "lora_B", 2),
    "minus infinity in an A": _filled(float("-inf"), "lora_A", 1),
    "1e30 in every B": _filled(1e30, "lora_B", 1000),
    "alpha NaN": _alpha(float("nan")),
    "alpha infinite": _alpha(float("inf")),
    "alpha 0": _alpha(0.0),
    "alpha as a list": _alpha([1.0, 2.0]),
    "int8": _dtype(torch.int8),
    "int64": _dtype(torch.int64),
    "bool": _dtype(torch.bool),
    "complex": _dtype(torch.complex64),
    "rank 0": _changed(_rank_zero),
    "another width": _changed(_shape),
    "A and B of other ranks": _changed(_another_rank),
    "one tensor missing": _changed(_one_missing),
    "a convolution": _changed(lambda t, rng: {n: v[..., None, None] for n, v in t.items()}),
    "one dimension": _changed(lambda t, rng: {n: v.flatten() for n, v in t.items()}),
    "all zero": _changed(lambda t, rng: {n: torch.zeros_like(v) for n, v in t.items()}, _ANY),
    "a magnitude (DoRA)": _with(".lora_magnitude_vector"),
    "a dora_scale": _with(".dora_scale", 160, 1),
    "a bias": _with(".lora_B.bias"),
    "a difference (diff)": _with(".diff", 160, 160),
    "a mid factor (lora_mid)": _with(".lora_mid.weight", 2, 2),
    "one module misnamed": _misnamed(0.0),
    "half the modules misnamed": _misnamed(0.5),
    "all modules misnamed": _misnamed(1.0),
    "LoKr": _changed(_lokr),
    "LoHa": _changed(_loha),
    "text encoder alone": _changed(lambda t, rng: text_encoder()),
    "another model": _changed(lambda t, rng: {f"transformer.x.{n}": v for n, v in t.items()}),
    "no tensors": _changed(lambda t, rng: {}),
    "a VAE": _changed(lambda t, rng: {"decoder.conv_in.weight": torch.randn(4, 4, 3, 3)}),
    "header: a list": _header("[]"),
    "header: null": _header("null"),
    "header: no JSON": _header("{"),
    "header: 50,000 deep": _header("[" * 50_000),
    "header: r 0": _header('{"transformer.r": 0, "transformer.lora_alpha": 1}'),
    "header: r as a text": _header('{"transformer.r": "x", "transformer.lora_alpha": 1}'),
    "header: alpha NaN": _header('{"transformer.r": 2, "transformer.lora_alpha": NaN}'),
    "empty": _raw(b""),
    "a pickle": _raw(b"\x80\x02}q\x00."),
    "a zip": _raw(b"PK\x03\x04" + bytes(100)),
    "an HTML page": _raw(b"<!DOCTYPE html><html><body>403</body></html>"),
    "a header of 4 exabytes": _long_header,
    "tensors that overlap": _overlapping,
}
