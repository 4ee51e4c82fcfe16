"""What a workflow may not decide alone: to send pictures and prompts somewhere, and to download.

A workflow may come from anybody. So consent lies in a file of the server that neither workflows nor
the API of ComfyUI can write: ``chunk_grpo_allow.txt`` in ComfyUI's user folder, one line for each::

    send to http://gpu-box:8181
    download pickscore

Lines that begin with # are comments. The file is read each time it is asked.
"""

from __future__ import annotations

from pathlib import Path

import folder_paths

from ...chunk_grpo_core.rewards.remote.address import checked_url, is_local

__all__ = ["check_may_download", "check_may_send", "consent_file"]

_PORTS = {"http": 80, "https": 443}


def consent_file() -> Path:
    """Where the owner of the server allows things; it need not exist."""
    return Path(folder_paths.get_user_directory(), "chunk_grpo_allow.txt")


def check_may_send(reward: str, url: str) -> None:
    """Make sure that a reward may send pictures and prompts to a server.

    Raises:
        ValueError: The address is none, or neither this machine nor allowed.
    """
    address = checked_url(url)
    if not is_local(address.hostname or ""):
        origin = f"{address.scheme}://{address.netloc.lower()}"
        _check(f"{reward} sends pictures and prompts to {origin}", "send to", origin)


def check_may_download(reward: str) -> None:
    """Make sure that the weights of a reward may be downloaded.

    Raises:
        ValueError: They may not.
    """
    _check(f"the weights of {reward} are missing and would be downloaded", "download", reward)


def _check(deed: str, verb: str, target: str) -> None:
    file = consent_file()
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines() if file.exists() else []
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} cannot be read: {error}") from error
    allowed = [" ".join(line.split()) for line in lines]
    said = [line.removeprefix(f"{verb} ") for line in allowed if line.startswith(f"{verb} ")]
    if _plain(target) not in map(_plain, said):
        raise ValueError(
            f"{deed}; a workflow may come from anybody, so that takes your consent on this server: "
            f"add the line '{verb} {target}' to {file} and run again"
        )


def _plain(target: str) -> str:
    """The same text for the same address."""
    target = target.strip().rstrip("/").lower()
    for scheme, port in _PORTS.items():
        if target.startswith(f"{scheme}://"):
            return target.removesuffix(f":{port}")
    return target
