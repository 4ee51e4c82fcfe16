"""The process in which the tests of this folder run, inside ComfyUI, which is loaded once for all
of them (``tests/beside.py``)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from beside import Beside

from tools.comfyui.server import ROOT, ComfyUnavailable, comfyui_path

HERE = Path(__file__).resolve().parent
RUN = pytest.StashKey["Beside | None"]()


def native_run(session: pytest.Session) -> Beside | None:
    """Start the run of all native tests of a session, the first time.

    Returns:
        None if there is nothing to run, or no ComfyUI.
    """
    if RUN not in session.stash:
        tests = [item.nodeid for item in session.items if HERE in item.path.parents]
        session.stash[RUN] = None
        try:
            comfyui_path()  # fetched here, before two processes want it
        except ComfyUnavailable:
            return None
        if tests:
            session.stash[RUN] = run = inside_comfyui(session.config, tests)
            session.config.add_cleanup(run.stop)
    return session.stash[RUN]


def inside_comfyui(config: pytest.Config, tests: list[str]) -> Beside:
    """Run tests, given by their ids, in a process that becomes one of ComfyUI's."""
    words = ["--in-comfyui", *(str(ROOT / test) for test in tests)]
    return Beside(config, words, _environment())


def _environment() -> dict[str, str]:
    """Like that of a server, but without the stubs: what looks for them is imported first."""
    path = os.environ.get("COMFYUI_EXTRA_PYTHONPATH", "")
    return {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
