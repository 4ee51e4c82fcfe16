"""Tests inside ComfyUI instead of through a server; see ``process.py`` for the where.

``pytest --in-comfyui tests/comfy/native/test_x.py`` turns the pytest process itself into one of
ComfyUI's, for a debugger.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.comfyui.inside import enter_comfyui
from tools.comfyui.stubs import write_stubs

from .process import ReportLines, native_run

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


def pytest_configure(config):
    if config.option.report_lines:
        config.pluginmanager.register(ReportLines(config, Path(config.option.report_lines)))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item):
    """Let the other process say how the test went."""
    if HERE not in item.path.parents or item.config.option.in_comfyui:
        return None
    run = native_run(item.session)
    if run is None:  # ``lab`` says why
        return None
    hook = item.ihook
    hook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    passed_through = (KeyboardInterrupt, pytest.exit.Exception)
    call = pytest.CallInfo.from_call(lambda: run.reports(item.nodeid), "call", passed_through)
    if call.excinfo is None:
        reports = call.result
    else:
        reports = [hook.pytest_runtest_makereport(item=item, call=call)]
    for report in reports:
        hook.pytest_runtest_logreport(report=report)
    hook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True
