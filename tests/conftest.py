"""Settings of every test run: one thread, no model hub, markers by place and fixture."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("MPLBACKEND", "Agg")

import pytest
import torch
from environment import on_ci
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("tests", deadline=None)  # a busy machine is no failure
settings.load_profile("tests")

ROOT = Path(__file__).resolve().parent.parent
TESTS_COMFY = ROOT / "tests" / "comfy"
TESTS_NATIVE = TESTS_COMFY / "native"
# For benchmarks/, and for the core where it is not installed; last, so that our nodes/ hides
# nobody's.
sys.path.append(str(ROOT))

from beside import Beside, ReportLines, report  # noqa: E402

from chunk_grpo_core.train.cpu_rows import ask_for_equal_rows  # noqa: E402

ask_for_equal_rows(os.environ)  # of this process and of those it starts

MUCH = 100
"""Tests that are worth a process of their own."""
OTHERS = pytest.StashKey[Beside]()
"""The run of all that needs no ComfyUI, where it runs beside the rest."""


def pytest_addoption(parser):
    group = parser.getgroup("native", "tests inside ComfyUI (tests/comfy/native)")
    group.addoption(
        "--in-comfyui",
        action="store_true",
        help="run them in this process, which becomes one of ComfyUI's (for a debugger)",
    )
    group.addoption("--report-lines", metavar="FILE", help="write each report to FILE, as JSON")
    group.addoption("--no-comfy", action="store_true", help="leave out what needs a ComfyUI")


def pytest_configure(config):
    if config.option.report_lines:
        config.pluginmanager.register(ReportLines(config, Path(config.option.report_lines)))


def is_of_comfyui(item):
    return TESTS_COMFY in item.path.parents


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    if config.option.no_comfy:
        config.hook.pytest_deselected(items=[item for item in items if is_of_comfyui(item)])
        items[:] = [item for item in items if not is_of_comfyui(item)]
    for item in items:
        if config.option.in_comfyui and TESTS_NATIVE not in item.path.parents:
            raise pytest.UsageError(f"--in-comfyui is for {TESTS_NATIVE}; leave out {item.nodeid}")
        if is_of_comfyui(item):
            item.add_marker("comfy")
        if "comfy_browser" in getattr(item, "fixturenames", ()):
            item.add_marker("browser")
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
    # Server and browser live from the first test that needs them to the end; the native tests run
    # beside all others in a process of their own, which has then said everything.
    folders = (TESTS_COMFY, TESTS_NATIVE)
    items.sort(key=lambda item: [folder in item.path.parents for folder in folders])


def pytest_collection_finish(session):
    """Where there is much of both, let the tests without ComfyUI run beside those with it."""
    options = session.config.option
    others = sum(not is_of_comfyui(item) for item in session.items)
    alone = options.collectonly or options.usepdb or options.in_comfyui or options.no_comfy
    if alone or min(others, len(session.items) - others) < MUCH:
        return
    words = ["--no-comfy", *session.config.args]
    words += ["-m", options.markexpr] if options.markexpr else []
    words += ["-k", options.keyword] if options.keyword else []
    session.stash[OTHERS] = run = Beside(session.config, words, os.environ)
    session.config.add_cleanup(run.stop)
    session.items.sort(key=lambda item: not is_of_comfyui(item))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item):
    run = item.session.stash.get(OTHERS, None)
    if run is None or is_of_comfyui(item):
        return None
    report(item, run)
    return True


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    """Skip a file of tests whose package of an extra is absent; with CI=true it fails."""
    report = yield
    error = report.call.excinfo.value.__cause__ if report.failed else None
    if isinstance(error, ImportError) and error.name == "aiohttp" and not on_ci():
        report.outcome, report.longrepr = "skipped", (str(collector.path), 0, f"Skipped: {error}")
    return report


@pytest.fixture(scope="session")
def pack():
    """Give the root of the node pack, imported as ComfyUI does it: under its path as a name."""
    name = str(ROOT).replace(".", "_x_")
    spec = importlib.util.spec_from_file_location(name, ROOT / "__init__.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def usual_signals():
    """Signals as in a shell; a job in the background ignores some, and hands that on."""
    usual = {"SIGINT": signal.default_int_handler, "SIGHUP": signal.SIG_DFL}
    numbers = {name: getattr(signal, name) for name in usual if hasattr(signal, name)}
    before = {number: signal.signal(number, usual[name]) for name, number in numbers.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
