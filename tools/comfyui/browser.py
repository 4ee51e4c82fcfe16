"""ComfyUI's page in a real browser: load a workflow, queue it, see what a person sees."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",  # the page reaches only the server
)
RECORD_EVENTS = """() => {
  const api = window.comfyAPI.api.api;
  window.testEvents = [];
  for (const end of ["start", "success", "error", "interrupted"]) {
    const name = `execution_${end}`;
    api.addEventListener(name, (event) => window.testEvents.push([name, event.detail]));
  }
}"""
ENDED = """() => window.testEvents.some(([name]) => name !== "execution_start")"""
UNTIL_A_GRAPH_IS_OPEN = """async (most) => {
  const pause = (ms) => new Promise((done) => setTimeout(done, ms));
  const end = performance.now() + most;
  while (!window.app.graph.nodes.length && performance.now() < end) await pause(50);
  await pause(250);
}"""
TIDY = """async () => {
  const { extensionManager, canvas } = window.app, { toast, workflow, setting } = extensionManager;
  if (setting.get("Comfy.VueNodes.Enabled")) await setting.set("Comfy.VueNodes.Enabled", false);
  const nothing = { nodes: [], links: [], groups: [], config: {}, extra: {}, version: 0.4 };
  await window.app.loadGraphData(nothing, true, true, "nothing");
  for (const other of [...workflow.openWorkflows]) {
    if (other.path !== workflow.activeWorkflow.path) await workflow.closeWorkflow(other);
  }
  toast.removeAll?.(); // frontends from 1.58 on have none
  [canvas.ds.scale, canvas.ds.offset[0], canvas.ds.offset[1]] = [1, 0, 0];
  window.testEvents = [];
}"""
IS_TIDY = """() => !window.app.graph.nodes.length
  && !document.querySelector(".p-toast-message, .p-dialog-mask")"""
SWITCH_VUE = """async (on) => {
  const { setting } = window.app.extensionManager;
  if (Boolean(setting.get("Comfy.VueNodes.Enabled")) === on) return false;
  await setting.set("Comfy.VueNodes.Enabled", on);
  return true;
}"""
UNTIL_IT_STANDS_STILL = """async (selector) => {
  const place = () => {
    const { x, y, width, height } = document.querySelector(selector).getBoundingClientRect();
    return [x, y, width, height].join();
  };
  const end = performance.now() + 5000;
  for (let last = "", frames = 0; frames < 15 && performance.now() < end;) {
    await new Promise(requestAnimationFrame);
    frames = place() === last ? frames + 1 : 0;
    last = place();
  }
}"""
NO_BANNER = "localStorage.setItem('vueNodesBannerDismissed', 'true')"
SHOW_ALL = """(margin) => {
  const canvas = window.app.canvas, graph = window.app.graph;
  const boxes = graph.nodes.map((n) => [n.pos[0], n.pos[1] - 32, n.size[0], n.size[1] + 32]);
  for (const group of graph.groups) boxes.push([...group.pos, ...group.size]);
  if (!boxes.length) return null;
  const left = Math.min(...boxes.map((b) => b[0])), top = Math.min(...boxes.map((b) => b[1]));
  const width = Math.max(...boxes.map((b) => b[0] + b[2])) - left;
  const height = Math.max(...boxes.map((b) => b[1] + b[3])) - top;
  const page = canvas.canvas.getBoundingClientRect();
  const free = [innerWidth - margin.left - margin.right, innerHeight - margin.top - margin.bottom];
  const scale = Math.min(free[0] / width, free[1] / height, 1.2);
  canvas.ds.scale = scale;
  canvas.ds.offset[0] = (margin.left - page.left + (free[0] - width * scale) / 2) / scale - left;
  canvas.ds.offset[1] = (margin.top - page.top + (free[1] - height * scale) / 2) / scale - top;
  canvas.setDirty(true, true);
  const x = (canvas.ds.offset[0] + left) * scale + page.left;
  const y = (canvas.ds.offset[1] + top) * scale + page.top;
  return {x, y, width: width * scale, height: height * scale};
}"""
WINDOW_MARGIN = {"left": 90, "top": 150, "right": 30, "bottom": 30}
GRAPH_MARGIN = {"left": 24, "top": 24, "right": 24, "bottom": 24}
FOCUS = "(on) => { window.app.extensionManager.focusMode = on; }"
HIDE_THE_REST = ".comfy-menu-hamburger, .p-toast { display: none !important; }"


class BrowserUnavailable(RuntimeError):
    """No browser can be driven on this machine; the message says why."""


def browser_path() -> str:
    """Return the program file of an installed Chromium or Chrome (``CHROMIUM_PATH`` names one)."""
    for name in filter(None, (os.environ.get("CHROMIUM_PATH"), *BROWSERS)):
        if path := shutil.which(name):
            return path
    raise BrowserUnavailable(f"no browser: none of {', '.join(BROWSERS)} is installed")


class ComfyPage:
    """One tab with ComfyUI's editor."""

    def __init__(self, page, url: str):
        self.page = page
        self.errors: list[str] = []
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.goto(url, wait_until="domcontentloaded", timeout=120_000)
        page.wait_for_function("() => window.app?.graph && window.app?.canvas", timeout=120_000)
        self._wait_until_quiet()
        # The default graph loads after the app is there; a page may also open an empty one.
        page.evaluate(UNTIL_A_GRAPH_IS_OPEN, 1500)
        page.evaluate(RECORD_EVENTS)

    def _wait_until_quiet(self) -> None:
        """Until the page asks the server nothing for a while. In a training it always asks."""
        from playwright.sync_api import TimeoutError as TooLong

        with contextlib.suppress(TooLong):
            self.page.wait_for_load_state("networkidle", timeout=5_000)

    def tidy(self) -> None:
        """Make the page like a new one with an empty graph: the next test must see nothing old."""
        self.page.keyboard.press("Escape")
        self.page.evaluate(TIDY)
        self.page.wait_for_function(IS_TIDY, timeout=10_000)
        self.errors.clear()

    def load(self, workflow: dict, name: str = "test") -> None:
        """Open a workflow in UI format."""
        self.page.evaluate(
            "([workflow, name]) => window.app.loadGraphData(workflow, true, true, name)",
            [workflow, name],
        )

    def load_api(self, prompt: dict, name: str = "test") -> None:
        """Open a workflow in API format; the page lays the nodes out."""
        self.page.evaluate(
            "([prompt, name]) => window.app.loadApiJson(prompt, name)", [prompt, name]
        )

    def serialize(self) -> dict:
        """Return the open workflow in UI format."""
        return json.loads(self.page.evaluate("() => JSON.stringify(window.app.graph.serialize())"))

    def prompt(self) -> dict:
        """Return the open workflow in API format, without the node titles in ``_meta``."""
        text = self.page.evaluate(
            "async () => JSON.stringify((await window.app.graphToPrompt()).output)"
        )
        return {node: _without_meta(entry) for node, entry in json.loads(text).items()}

    def unknown_types(self) -> list[str]:
        """Return the node types of the open workflow that the page does not know."""
        return self.page.evaluate(
            "() => window.app.graph.nodes.map((n) => n.type)"
            ".filter((type) => !(type in window.LiteGraph.registered_node_types))"
        )

    def queue(self, seconds: float = 120) -> tuple[str, dict]:
        """Press Queue and return (name, data) of the event that ended the run.

        Change the graph between two runs: an unchanged one is answered from the cache without any
        event. A graph that the server rejects raises RuntimeError with the page's node errors.
        """
        self.page.evaluate("() => { window.testEvents = []; }")
        self.page.evaluate("() => window.app.queuePrompt(0, 1)")
        if rejected := self.page.evaluate("() => window.app.lastNodeErrors"):
            raise RuntimeError(f"the server rejected the prompt: {rejected}")
        self.page.wait_for_function(ENDED, timeout=seconds * 1000)
        name, data = self.page.evaluate("() => window.testEvents.at(-1)")
        return name, data

    def use_vue_nodes(self, on: bool) -> None:
        """Switch the experimental "Nodes 2.0" renderer on or off."""
        if self.page.evaluate(SWITCH_VUE, on):
            self.page.wait_for_timeout(500)

    def settle(self, selector: str) -> None:
        """Wait until an element keeps its place for a while, whatever moved it."""
        self.page.evaluate(UNTIL_IT_STANDS_STILL, selector)

    def alerts(self) -> list[str]:
        """Return the warnings that lie over the page, for example about a broken workflow file."""
        return self.page.locator(".p-toast-message-text").all_inner_texts()

    def show_all(self, margin: dict[str, int] | None = None) -> dict[str, float] | None:
        """Zoom and move the canvas so that every node and group is in view; return their box."""
        box = self.page.evaluate(SHOW_ALL, margin or WINDOW_MARGIN)
        self.page.wait_for_timeout(700)
        return box

    def screenshot(self, path: Path, graph_only: bool = False) -> Path:
        """Write a picture of the window with every node in view, or of the graph alone."""
        options = {"type": "jpeg", "quality": 88} if Path(path).suffix == ".jpg" else {}
        if not graph_only:
            self.show_all()
            self.page.screenshot(path=str(path), **options)
            return Path(path)
        self.page.evaluate(FOCUS, True)
        hidden = self.page.add_style_tag(content=HIDE_THE_REST)
        if box := self.show_all(GRAPH_MARGIN):
            grow = GRAPH_MARGIN["left"]
            options["clip"] = {
                "x": box["x"] - grow,
                "y": box["y"] - grow,
                "width": box["width"] + 2 * grow,
                "height": box["height"] + 2 * grow,
            }
        self.page.screenshot(path=str(path), **options)
        hidden.evaluate("(style) => style.remove()")
        self.page.evaluate(FOCUS, False)
        return Path(path)

    def close(self) -> None:
        """Close the tab."""
        self.page.close()


class ComfyBrowser:
    """A headless browser with its own empty profile."""

    def __init__(self, url: str, width: int = 1600, height: int = 1000):
        self.url = url
        self.viewport = {"width": width, "height": height}

    def start(self) -> ComfyBrowser:
        """Launch the browser.

        Raises:
            BrowserUnavailable: There is no browser, or no Playwright to drive it.
        """
        try:
            from playwright.sync_api import sync_playwright
        except ImportError:
            raise BrowserUnavailable("no browser driver; run: pip install playwright") from None
        program = browser_path()
        self._playwright = sync_playwright().start()
        self._browser = self._playwright.chromium.launch(
            executable_path=program, headless=True, args=list(ARGUMENTS)
        )
        self._profile = self._new_profile()
        return self

    def open(self) -> ComfyPage:
        """Open ComfyUI in a new tab."""
        return ComfyPage(self._profile.new_page(), self.url)

    @contextlib.contextmanager
    def apart(self) -> Iterator[ComfyBrowser]:
        """Give this browser with another empty profile: its tabs share nothing with the others.

        For tabs that are loaded again: a page opens the drafts that any tab of its profile kept.
        """
        other = ComfyBrowser(self.url, **self.viewport)
        other._browser, other._profile = self._browser, self._new_profile()
        try:
            yield other
        finally:
            other._profile.close()

    def stop(self) -> None:
        """Close the browser and forget its profile."""
        self._browser.close()
        self._playwright.stop()

    def _new_profile(self):
        profile = self._browser.new_context(viewport=self.viewport)
        profile.add_init_script(NO_BANNER)
        return profile

    def __enter__(self) -> ComfyBrowser:
        return self.start()

    def __exit__(self, *exception: object) -> None:
        self.stop()


def _without_meta(entry: dict) -> dict:
    return {key: value for key, value in entry.items() if key != "_meta"}
