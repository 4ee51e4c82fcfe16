"""Where the weights of reward models are, and how they are read without trusting them.

Nothing here opens a connection. A file is looked for, in this order: at the path given, in the
folders given, in the cache of the Hugging Face hub; what is not there is asked for by name.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar
from urllib.parse import quote

import torch
from torch import Tensor, nn

from ..disk.names import path_inside
from ..optional import require
from ..settings.declared import shortened

__all__ = [
    "DEFAULT_FOLDER",
    "WeightFile",
    "build_empty",
    "check_fit",
    "confined",
    "digest",
    "find_file",
    "read_weights",
    "strict_load",
]

DEFAULT_FOLDER = Path("models", "reward_models")
"""Where weights are looked for and put outside ComfyUI, relative to the current folder."""

_PICKLES = (".pt", ".pth", ".bin")
_HASHED_WHOLE = 4 * 2**30
_SAMPLES, _SAMPLE_BYTES = 64, 2**20
_Network = TypeVar("_Network", bound=nn.Module)


@dataclass(frozen=True, kw_only=True)
class WeightFile:
    """A file a reward needs: where it comes from, and what to tell a user who lacks it."""

    folder: str
    """Its folder below ``models/reward_models/``, for example ``"pickscore"``."""
    name: str
    """File name in the repository."""
    repo: str
    """Repository, ``owner/name``."""
    bytes: int
    """Size, about."""
    licence: str
    """Of the weights, as their page states it."""
    revision: str = "main"
    """Commit, or a branch where no commit is known."""
    sha256: str | None = None
    """Digest, where it is known."""
    host: Literal["huggingface.co", "github.com"] = "huggingface.co"
    """Site of the repository."""

    @property
    def page(self) -> str:
        """Address of the page that describes the weights."""
        return f"https://{self.host}/{self.repo}"

    @property
    def url_path(self) -> str:
        """Path of the file on its host, with a leading slash."""
        verb = "resolve" if self.host == "huggingface.co" else "raw"
        return f"/{self.repo}/{verb}/{self.revision}/{quote(self.name)}"

    @property
    def size(self) -> str:
        """Size to show, for example ``"1.97 GB"``."""
        for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
            if self.bytes >= factor:
                return f"{self.bytes / factor:.3g} {unit}"
        return f"{self.bytes} bytes"


def find_file(
    weights: WeightFile,
    path: str | Path | None = None,
    folders: Sequence[str | Path] = (),
    setting: str = "path",
) -> Path:
    """Find a file of weights on this machine.

    Args:
        weights: What is looked for.
        path: The file, or the folder that holds it, if the user named one; nothing else is tried.
        folders: Folders of models. Looked for in each: ``<folder>/<weights.folder>/<name>``, then
            ``<folder>/<name>``.
        setting: Of the reward, from which ``path`` comes; for messages.

    Raises:
        ValueError: ``path`` can be none.
        FileNotFoundError: It is not there. The message names file, size, licence, source and where
            to put it.
    """
    if path is not None:
        path = Path(path)
        try:
            file = path / weights.name if path.is_dir() else path
            is_there = file.is_file()
        except OSError as error:  # a name that is too long, say
            name = shortened(str(path))
            raise ValueError(f"{setting} is {name}, which is no file: {error.strerror}") from None
        if not is_there:
            raise FileNotFoundError(
                f"{setting}: there is no file {file}; {_how_to_get(weights, folders)}"
            )
        return file
    for folder in map(Path, folders):
        for file in (folder / weights.folder / weights.name, folder / weights.name):
            if file.is_file():
                return file
    cached = _in_hub_cache(weights)
    if cached is None:
        raise FileNotFoundError(f"{weights.name} was not found; {_how_to_get(weights, folders)}")
    return cached


def _how_to_get(weights: WeightFile, folders: Sequence[str | Path]) -> str:
    target = Path(*folders[:1] or [DEFAULT_FOLDER]) / weights.folder
    return (
        f"get {weights.name} ({weights.size}, licence: {weights.licence}) from {weights.page} and "
        f"put it into {target}"
    )


def _in_hub_cache(weights: WeightFile) -> Path | None:
    """Look the file up in the layout of the hub's cache; no package, no network."""
    home = os.environ.get("HF_HOME") or Path(
        os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "huggingface"
    )
    cache = Path(os.environ.get("HF_HUB_CACHE") or Path(home, "hub")).expanduser()
    repo = cache / f"models--{weights.repo.replace('/', '--')}"
    reference = repo / "refs" / weights.revision
    commit = reference.read_text().strip() if reference.is_file() else weights.revision
    file = repo / "snapshots" / commit / weights.name
    return file if file.is_file() else None


def confined(name: str, folders: Sequence[str | Path]) -> Path:
    """Find a file or folder that a workflow names, in the folders of models alone.

    Args:
        name: Relative path. A workflow may come from anybody, so it must not lead elsewhere.
        folders: Where it may be; the first that has it wins.

    Raises:
        ValueError: ``name`` is no path that stays inside; links on the disk may lead elsewhere.
        FileNotFoundError: No folder has it.
    """
    paths = [path_inside(name, folder, "the folders of models", links=True) for folder in folders]
    for path in paths:
        if path.exists():
            return path
    raise FileNotFoundError(f"{shortened(name)} is in none of: {', '.join(map(str, folders))}")


def digest(path: str | Path) -> str:
    """Fingerprint of a file: its SHA-256; above 4 GiB, of its size and 64 MiB spread over it."""
    path = Path(path)
    size = path.stat().st_size
    with open(path, "rb") as file:
        if size <= _HASHED_WHOLE:
            hashed = hashlib.sha256()
            while block := file.read(2**20):
                hashed.update(block)
            return hashed.hexdigest()
        hashed = hashlib.sha256(str(size).encode())
        for sample in range(_SAMPLES):
            file.seek((size - _SAMPLE_BYTES) * sample // (_SAMPLES - 1))
            hashed.update(file.read(_SAMPLE_BYTES))
        return f"sampled-{hashed.hexdigest()}"


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read tensors by name onto the CPU; no code in the file can run.

    ``.safetensors`` is read as such; ``.pt``, ``.pth`` and ``.bin`` with torch's loader of plain
    tensors (``weights_only``). A dictionary below ``state_dict`` is taken out.

    Raises:
        ValueError: Another ending, more than tensors in it, or a damaged file.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        safetensors = require("safetensors", "To read weights")
        load = require("safetensors.torch", "To read weights").load_file
        try:
            return load(path)
        except safetensors.SafetensorError as error:
            raise ValueError(f"{path} is no whole .safetensors file: {error}") from error
    if path.suffix not in _PICKLES:
        endings = ", ".join((".safetensors", *_PICKLES))
        raise ValueError(
            f"{path} has the ending {shortened(path.suffix)}; it must be one of {endings}"
        )
    try:
        mapped = zipfile.is_zipfile(path)  # the format before torch 1.6 cannot be mapped
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(
            f"{path} was refused: it is damaged, or it holds more than tensors, and such a file "
            "can run code when it is loaded; get the .safetensors file, or convert it on a "
            "machine where that does no harm"
        ) from error
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()
    ):
        raise ValueError(f"{path} must hold tensors by name, and it holds something else")
    return dict(content)


def build_empty(build: Callable[[], _Network]) -> _Network:
    """Build a network whose parameters take no memory; :func:`strict_load` gives them values.

    Tables of positions, which no file holds, are made.
    """
    with torch.device("meta"):
        network = build()
    for module in network.modules():
        for name, buffer in list(module.named_buffers(recurse=False)):
            if name == "position_ids":
                positions = torch.arange(buffer.shape[-1]).expand(buffer.shape)
                module.register_buffer(name, positions, persistent=False)
    return network


def check_fit(network: nn.Module, shapes: Mapping[str, Sequence[int]], source: str | Path) -> None:
    """Check that a file holds exactly what a network needs.

    Args:
        network: May be empty, see :func:`build_empty`.
        shapes: Name -> shape of every tensor of the file.
        source: The file, for messages.

    Raises:
        ValueError: A name is missing or unknown, or a shape differs.
    """
    wanted = {name: tensor.shape for name, tensor in network.state_dict().items()}
    differing = {
        f"{name} has shape {tuple(shapes[name])}, not {tuple(shape)}"
        for name, shape in wanted.items()
        if name in shapes and tuple(shapes[name]) != tuple(shape)
    }
    for what, names in (
        ("lacks", wanted.keys() - shapes.keys()),
        ("has unknown", shapes.keys() - wanted.keys()),
        ("has other shapes:", differing),
    ):
        if names:
            shown = ", ".join(sorted(names)[:3]) + (", ..." if len(names) > 3 else "")
            raise ValueError(
                f"{source} does not fit: it {what} {shown} ({len(names)} of {len(wanted)} tensors);"
                " is it the file of another model?"
            )


def strict_load(network: _Network, tensors: Mapping[str, Tensor], source: str | Path) -> _Network:
    """Put tensors into a network that will only judge: every name and shape must fit.

    Args:
        network: Its parameters are replaced, not copied into, and need no gradients afterwards.
        tensors: Names as in ``network.state_dict()``.
        source: The file, for messages.

    Returns:
        The network, in evaluation mode.

    Raises:
        ValueError: A name is missing or unknown, or a shape differs.
    """
    check_fit(network, {name: tensor.shape for name, tensor in tensors.items()}, source)
    network.load_state_dict(tensors, strict=True, assign=True)
    left = [n for n, t in (*network.named_parameters(), *network.named_buffers()) if t.is_meta]
    if left:
        raise RuntimeError(f"{', '.join(left)} have no values after loading")
    return network.requires_grad_(False).train(False)
