"""Tests inside ComfyUI instead of through a server; see ``process.py`` for the where.

``pytest --in-comfyui tests/comfy/native/test_x.py`` turns the pytest process itself into one of
ComfyUI's, for a debugger.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from beside import report

from tools.comfyui.inside import enter_comfyui
from tools.comfyui.stubs import write_stubs

from .process import native_run

HERE = Path(__file__).resolve().parent


@pytest.fixture(scope="session")
def lab(pytestconfig, comfy_tree, tmp_path_factory):
    """Give this pack, loaded as ComfyUI loads it, in the process of the test."""
    assert pytestconfig.option.in_comfyui
    # These look for torchvision when they are imported: while its stand-in is not yet there.
    from diffusers import FluxTransformer2DModel  # noqa: F401
    from transformers import CLIPModel  # noqa: F401

    stubs = tmp_path_factory.mktemp("stubs")
    write_stubs(stubs)
    return enter_comfyui(str(comfy_tree), str(stubs))


def pytest_collection_finish(session):
    """Let them run beside all others, from the beginning."""
    if not (session.config.option.in_comfyui or session.config.option.collectonly):
        native_run(session)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item):
    """Let the other process say how the test went."""
    if HERE not in item.path.parents or item.config.option.in_comfyui:
        return None
    run = native_run(item.session)
    if run is None:  # ``lab`` says why
        return None
    report(item, run)
    return True
