"""Download weights, when asked to and never otherwise."""

from __future__ import annotations

import hashlib
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from ..disk.atomic import whole_file
from ..settings.declared import shortened
from .files import WeightFile, digest

__all__ = ["fetch_file"]

_BLOCK = 2**20
_TIMEOUT_SECONDS = 60


def fetch_file(
    weights: WeightFile,
    folder: str | Path,
    *,
    base_url: str | None = None,
    progress: Callable[[float], None] = lambda fraction: None,
) -> tuple[Path, str]:
    """Download a file to ``<folder>/<weights.folder>/<weights.name>``, unless it is there.

    What arrives is kept under another name until it is whole and, where its digest is known, is
    what it should be.

    Args:
        weights: The file.
        folder: Folder of reward models.
        base_url: Address that stands in for ``https://<host>``, for mirrors.
        progress: Called with the fraction done, where the server says how much there is.

    Returns:
        Path and SHA-256 of the file.

    Raises:
        OSError: The server cannot be reached, refuses, or stops early.
        ValueError: The file is not the one whose digest is known.
    """
    target = Path(folder) / weights.folder / weights.name
    if target.is_file():
        return target, _checked(weights, target, digest(target))
    url = (base_url or f"https://{weights.host}").rstrip("/") + weights.url_path
    if not url.startswith(("https://", "http://")):
        raise ValueError(f"the address is {shortened(url)}; it must begin with https:// or http://")
    try:
        with whole_file(target) as temporary:
            sha256 = _download(url, temporary, progress)
            _checked(weights, temporary, sha256)
    except urllib.error.HTTPError as error:
        raise OSError(
            f"{url} answered {error.code} {error.reason}; see {weights.page}, where a licence may "
            "have to be accepted first"
        ) from error
    return target, sha256


def _download(url: str, path: Path, progress: Callable[[float], None]) -> str:
    hashed, done = hashlib.sha256(), 0
    with urllib.request.urlopen(url, timeout=_TIMEOUT_SECONDS) as answer, open(path, "wb") as file:
        expected = int(answer.headers.get("Content-Length") or 0)
        while block := answer.read(_BLOCK):
            hashed.update(block)
            file.write(block)
            done += len(block)
            if expected:
                progress(done / expected)
    if expected and done != expected:
        raise OSError(f"{url} stopped after {done} of {expected} bytes; try again")
    return hashed.hexdigest()


def _checked(weights: WeightFile, path: Path, sha256: str) -> str:
    if weights.sha256 is not None and sha256 != weights.sha256:
        raise ValueError(
            f"{path} has SHA-256 {sha256}, not {weights.sha256}; it is another file or damaged"
        )
    return sha256
