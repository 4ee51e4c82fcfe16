"""Which servers may be asked, and which of them get a token.

Settings may come with somebody else's workflow. So a token is never one of them, the variable that
holds it cannot be any variable, and a host that is not local gets it only if the user says so.
"""

from __future__ import annotations

import functools
import ipaddress
import logging
import os
from urllib.parse import SplitResult, urlsplit

from ...settings.declared import shortened

__all__ = ["checked_url", "is_local", "read_token", "token_for", "warn_if_remote"]

log = logging.getLogger(__name__)

_TOKEN_PREFIX = "CHUNK_GRPO_"


def is_local(host: str) -> bool:
    """Tell whether a host name or address is this machine by itself (loopback)."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def read_token(env: str) -> str:
    """Read a bearer token from an environment variable; empty where it is not set.

    Raises:
        ValueError: The variable's name does not begin with ``CHUNK_GRPO_``, or its value cannot
            stand in a header.
    """
    if not env.startswith(_TOKEN_PREFIX):
        raise ValueError(
            f"token_env is {shortened(env)}; the name of the variable must begin with "
            f"{_TOKEN_PREFIX}"
        )
    token = os.environ.get(env, "").strip()
    if not all("!" <= letter <= "~" for letter in token):
        raise ValueError(f"the token in {env} must be printable ASCII without spaces")
    return token


def token_for(env: str, url: str) -> str:
    """Read the token for a server; empty where the variable is not set.

    Raises:
        ValueError: See :func:`checked_url` and :func:`read_token`; or the host is neither local nor
            what the variable ``<env>_HOST`` names.
    """
    host = checked_url(url).hostname or ""
    token, friend = read_token(env), os.environ.get(f"{env}_HOST", "").strip()
    if token and not is_local(host) and host.lower() != friend.lower():
        raise ValueError(
            f"the token in {env} is not sent to {host}; if that server should have it, set the "
            f"environment variable {env}_HOST={host}"
        )
    return token


def checked_url(url: str) -> SplitResult:
    """Take apart ``http(s)://host[:port][/path]``.

    Raises:
        ValueError: It is something else, or holds a user, a password, a query or a fragment.
    """
    if not all("!" <= letter <= "~" for letter in url):
        raise ValueError(f"url is {shortened(url)}; it must be printable ASCII without spaces")
    try:
        address = urlsplit(url)
        usable = address.scheme in ("http", "https") and address.hostname and address.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise ValueError(f"url is {shortened(url)}; write http://host:port or https://host")
    if address.username is not None or address.query or address.fragment:
        raise ValueError(
            "url must not have a user, a password, a query or a fragment; a token belongs in an "
            "environment variable"
        )
    return address


@functools.cache
def warn_if_remote(url: str) -> None:
    """Say once where pictures go, unless they stay on this machine."""
    address = urlsplit(url)
    if not is_local(address.hostname or ""):
        plain = "" if address.scheme == "https" else ", without encryption"
        log.warning("pictures and prompts are sent to %s%s", address.netloc, plain)
