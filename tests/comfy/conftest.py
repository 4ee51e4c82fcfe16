"""One ComfyUI server for the whole run; clients and browser pages of it for the tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from environment import unavailable

from . import graphs
from .browser import BrowserUnavailable, ComfyBrowser
from .client import ComfyClient
from .server import ComfyServer, ComfyUnavailable, comfyui_path


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


@pytest.fixture(scope="module")
def comfy_browser(comfy_server):
    """Give a browser that can open pages of the server.

    For one module only: while it lives, ``asyncio.run`` does not work in the tests' own thread.
    """
    try:
        browser = ComfyBrowser(comfy_server.url).start()
    except BrowserUnavailable as error:
        unavailable(str(error))
    yield browser
    browser.stop()


@pytest.fixture
def comfy_page(comfy_browser):
    """Give a fresh page with ComfyUI's editor, ready to load workflows."""
    page = comfy_browser.open()
    yield page
    page.close()
