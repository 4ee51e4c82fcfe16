"""What the machine under the tests can do, and what happens when it cannot."""

from __future__ import annotations

import importlib
import os
from types import ModuleType
from typing import NoReturn

import pytest


def on_ci() -> bool:
    """Tell whether this run must be complete (``CI=true``)."""
    return os.environ.get("CI", "").lower() in ("1", "true")


def unavailable(reason: str) -> NoReturn:
    """Skip with the reason on a user's machine; fail with it where everything must be there."""
    if on_ci():
        pytest.fail(f"needed with CI=true: {reason}", pytrace=False)
    pytest.skip(reason, allow_module_level=True)


def package(name: str) -> ModuleType:
    """Import a package of an extra, or a module of it; without it see :func:`unavailable`."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name.partition(".")[0]:
            raise
        unavailable(f"needs the package {error.name}")
