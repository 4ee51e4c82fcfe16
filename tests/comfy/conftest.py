"""One ComfyUI server for the whole run; clients and a browser page of it for the tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from environment import unavailable

from tools.comfyui.browser import BrowserUnavailable, ComfyBrowser
from tools.comfyui.server import ComfyServer, ComfyUnavailable, comfyui_path

from . import graphs
from .client import ComfyClient

FAILED = pytest.StashKey[bool]()


@pytest.fixture(scope="session")
def comfy_tree():
    """Give the folder of a ComfyUI that the tests may import or start."""
    try:
        return comfyui_path()
    except ComfyUnavailable as error:
        unavailable(str(error))


@pytest.fixture(scope="session")
def comfy_server(comfy_tree, tmp_path_factory):
    """Give a running ComfyUI that has this repository and the test nodes as node packs."""
    try:
        packs = (Path(__file__).parent / "tiny_architectures",)
        server = ComfyServer(tmp_path_factory.mktemp("comfy"), packs=packs).start()
    except ComfyUnavailable as error:
        unavailable(str(error))
    yield server
    server.stop()


@pytest.fixture(autouse=True)
def emptied_queue(request):
    """Take from the server what a failed test left running, which all others would wait for."""
    yield
    if FAILED in request.node.stash and "comfy_server" in request.fixturenames:
        ComfyClient(request.getfixturevalue("comfy_server").url).empty_queue()


@pytest.fixture
def comfy(comfy_server):
    """Give a fresh client of the server."""
    return ComfyClient(comfy_server.url)


@pytest.fixture(scope="module")
def model_files(comfy_server):
    """Let the server list the files of all examples; each is empty."""
    files = {
        (f["directory"], f["name"]) for name in graphs.NAMES for _, f in graphs.model_files(name)
    }
    paths = [comfy_server.add_model(*file) for file in files]
    yield
    for path in paths:
        path.unlink()


@pytest.fixture(scope="session")
def comfy_browser(comfy_server):
    """Give a browser that can open pages of the server.

    While it lives, ``asyncio.run`` does not work in the tests' own thread; tests/comfy comes last.
    """
    try:
        browser = ComfyBrowser(comfy_server.url).start()
    except BrowserUnavailable as error:
        unavailable(str(error))
    yield browser
    browser.stop()


@pytest.fixture(scope="module")
def kept_pages(comfy_server):
    """Give the list that holds the page of a module: opening one takes seconds.

    Not for longer, and with an empty history: an open page reads the last 64 runs after every run
    of anybody, which takes half the time of the server and of a core.
    """
    ComfyClient(comfy_server.url).post("/history", {"clear": True})
    pages = []
    yield pages
    for page in pages:
        page.close()


@pytest.fixture
def comfy_page(request, comfy_browser, kept_pages):
    """Give a page with ComfyUI's editor and an empty graph, ready to load workflows."""
    if not kept_pages:
        kept_pages.append(comfy_browser.open())
    (page,) = kept_pages
    page.tidy()
    yield page
    if FAILED in request.node.stash:  # the next test gets a new one
        kept_pages.remove(page)
        page.close()


@pytest.fixture
def browser_apart(comfy_browser):
    """Give a browser with a profile of its own, for tests that load a page again."""
    with comfy_browser.apart() as browser:
        yield browser


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.failed:
        item.stash[FAILED] = True
    return report
