"""Tests that run ComfyUI's code in a process of their own instead of talking to a server.

ComfyUI fills ``sys.path`` and ``sys.modules`` with names like ``nodes`` and ``utils``, so it must
not enter the process of the other tests. A test file holds functions ``check_<claim>(lab)`` and

    test_native = subprocess_tests(__file__)

pytest then reports one test for each check. The checks of all such files that pytest collected run
in one subprocess, which is this file run as a script; it starts with the first test of a server,
so that it has ended when the turn of these tests comes. A function ``before_comfyui()`` of a test
file is called there first: what looks for torchvision when it is imported (diffusers) must be
imported while the stubs are hidden.
"""

from __future__ import annotations

import ast
import collections
import contextlib
import functools
import importlib
import importlib.util
import json
import logging
import subprocess
import sys
import tempfile
import traceback
import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]


_files: list[Path] = []


def subprocess_tests(file: str) -> Callable[..., None]:
    """Return a parametrised pytest test, one case for each ``check_*`` function of ``file``."""
    import pytest

    path = Path(file)
    _files.append(path)
    names = [
        node.name
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("check_")
    ]

    @pytest.mark.parametrize("check", names)
    def test(check: str, native_checks: Checks) -> None:
        outcome = native_checks.outcomes[f"{path.stem}.{check}"]
        if outcome:
            pytest.fail(outcome, pytrace=False)

    return test


class Checks:
    """All checks of the collected files, running in a process of their own beside the tests."""

    def __init__(self, comfyui: Path) -> None:
        from .server import end_with_parent, server_environment

        self._scratch = tempfile.TemporaryDirectory()
        scratch = Path(self._scratch.name)
        self._report, self._log, stubs = scratch / "report.json", scratch / "log", scratch / "stubs"
        arguments = [str(comfyui), str(stubs), str(self._report), *map(str, _files)]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, str(HERE / "inprocess.py"), *arguments],
                env=server_environment(stubs),
                cwd=scratch,
                stdout=log,
                stderr=subprocess.STDOUT,
                preexec_fn=end_with_parent if sys.platform == "linux" else None,
            )

    @functools.cached_property
    def outcomes(self) -> dict[str, str]:
        """File and name of a check -> traceback, empty if it passed; waits for the last check."""
        status = self._process.wait()
        outcomes = json.loads(self._report.read_text()) if self._report.is_file() else {}
        died = f"the process ended with {status}:\n{self._log.read_text(errors='replace')[-6000:]}"
        return collections.defaultdict(lambda: died, outcomes)

    def stop(self) -> None:
        """End the process and forget what it said."""
        self._process.kill()
        self._process.wait()
        self._scratch.cleanup()


class Lab:
    """What a check works with: this pack, loaded as ComfyUI loads it."""

    def __init__(self, pack: str) -> None:
        self._pack = pack

    def module(self, name: str) -> types.ModuleType:
        """A module of the pack, for example ``"nodes.bridge.policy"``."""
        return importlib.import_module(f"{self._pack}.{name}")


def _load_pack() -> str:
    """Import the pack by path, under a name that is no identifier, like ComfyUI does."""
    name = str(ROOT).replace(".", "_x_")
    spec = importlib.util.spec_from_file_location(name, ROOT / "__init__.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return name


def enter_comfyui(comfyui: str, stubs: str) -> Lab:
    """Make this process one of ComfyUI's, on one thread of the CPU, with the pack loaded."""
    sys.path[:0] = [comfyui, stubs]
    import torch

    torch.set_num_threads(1)
    from comfy.cli_args import args

    args.cpu = True  # before anything imports comfy.model_management
    logging.getLogger().setLevel(logging.WARNING)
    return Lab(_load_pack())


@contextlib.contextmanager
def page_server(instance: Any) -> Iterator[None]:
    """While open, ``instance`` is ComfyUI's server; what stood in its place comes back."""
    before = sys.modules.get("server")
    server = types.ModuleType("server")
    server.PromptServer = types.SimpleNamespace(instance=instance)  # type: ignore[attr-defined]
    sys.modules["server"] = server
    try:
        yield
    finally:
        del sys.modules["server"]
        if before is not None:
            sys.modules["server"] = before


def _load_checks(files: Sequence[Path]) -> list[types.ModuleType]:
    package = types.ModuleType("native_checks")  # so that the files' relative imports work
    package.__path__ = [str(HERE)]
    sys.modules[package.__name__] = package
    return [importlib.import_module(f"{package.__name__}.{file.stem}") for file in files]


def _main(comfyui: str, stubs: str, report: Path, files: Sequence[Path]) -> None:
    # This file's folder goes: its server.py is not ComfyUI's.
    sys.path[:] = [path for path in sys.path if path != stubs and Path(path).resolve() != HERE]
    modules = _load_checks(files)
    for module in modules:
        getattr(module, "before_comfyui", lambda: None)()
    lab = enter_comfyui(comfyui, stubs)
    outcomes: dict[str, str] = {}
    for module in modules:
        for name, check in list(vars(module).items()):
            if name.startswith("check_"):
                outcomes[f"{module.__name__.rpartition('.')[2]}.{name}"] = _outcome(check, lab)
                report.write_text(json.dumps(outcomes))


def _outcome(check: Callable[[Lab], None], lab: Lab) -> str:
    try:
        check(lab)
    except BaseException:  # checks of KeyboardInterrupt may let one through
        return traceback.format_exc()
    return ""


if __name__ == "__main__":
    _main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), [Path(name) for name in sys.argv[4:]])
