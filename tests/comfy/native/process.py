"""The process in which the tests of this folder run: a pytest of its own, inside ComfyUI.

The first process collects the tests like all others and hands their ids to the second one
(``pytest --in-comfyui``), which writes every report of every test into a file as a line of JSON.
The first process passes them on as its own. So a test here has a name, a traceback, fixtures,
rewritten assertions and ``-k`` like any other, and ComfyUI is loaded once for all of them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tools.comfyui.server import ROOT, ComfyUnavailable, comfyui_path, end_with_parent

HERE = Path(__file__).resolve().parent
POLL_SECONDS = 0.02
RUN = pytest.StashKey["NativeRun | None"]()


def native_run(session: pytest.Session) -> NativeRun | None:
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
            session.stash[RUN] = run = NativeRun(session.config, tests)
            session.config.add_cleanup(run.stop)
    return session.stash[RUN]


class NativeRun:
    """One run of the native tests of a session, beside the tests of the session itself.

    Args:
        config: Options of the session; those that shape a traceback are handed on.
        tests: Ids of the tests, relative to the root folder.
    """

    def __init__(self, config: pytest.Config, tests: list[str]) -> None:
        self._scratch = tempfile.TemporaryDirectory()
        scratch = Path(self._scratch.name)
        self._log, reports = scratch / "log", scratch / "reports"
        reports.touch()
        self._lines = reports.open(encoding="utf-8")
        options = ["--in-comfyui", f"--report-lines={reports}", f"--tb={config.option.tbstyle}"]
        options += ["--showlocals"] if config.option.showlocals else []
        options += ["-v"] * config.option.verbose
        command = [sys.executable, "-m", "pytest", "-c", str(ROOT / "pyproject.toml")]
        command += ["-p", "no:cacheprovider", *options, *(str(ROOT / test) for test in tests)]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                env=_environment(),
                cwd=config.invocation_params.dir,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                preexec_fn=end_with_parent if sys.platform == "linux" else None,
            )
        self._config = config
        self._reports: dict[str, list[pytest.TestReport]] = {}
        self._finished: set[str] = set()

    def reports(self, test: str) -> list[pytest.TestReport]:
        """Wait for the reports of a test: of its setup, of itself, of its teardown.

        Raises:
            pytest.fail.Exception: The process has ended without them; holds the end of its log.
        """
        messages = self._messages()
        while test not in self._finished:
            message = next(messages, None)
            if message is None:
                log = self._log.read_text(errors="replace")[-6000:]
                pytest.fail(f"the process ended with {self._process.wait()}:\n{log}", pytrace=False)
            if "finished" in message:
                self._finished.add(message["finished"])
            else:
                report = self._config.hook.pytest_report_from_serializable(
                    config=self._config, data=message
                )
                if isinstance(report.longrepr, list):  # of a skip; JSON has no tuples
                    report.longrepr = tuple(report.longrepr)
                self._reports.setdefault(report.nodeid, []).append(report)
        return self._reports.pop(test)

    def _messages(self) -> Iterator[dict]:
        """What the process has written and goes on to write, until it ends."""
        started = ""
        while True:
            ended = self._process.poll() is not None  # before the last look into the file
            while piece := self._lines.readline():
                started += piece
                if started.endswith("\n"):
                    yield json.loads(started)
                    started = ""
            if ended:
                return
            time.sleep(POLL_SECONDS)

    def stop(self) -> None:
        """End the process and forget what it said."""
        self._process.kill()
        self._process.wait()
        self._lines.close()
        self._scratch.cleanup()


class ReportLines:
    """The plugin of the second process: writes each report as a line of JSON."""

    def __init__(self, config: pytest.Config, path: Path) -> None:
        self._config = config
        self._file = path.open("a", encoding="utf-8")

    def _write(self, message: dict) -> None:
        self._file.write(json.dumps(message) + "\n")
        self._file.flush()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        hook = self._config.hook
        self._write(hook.pytest_report_to_serializable(config=self._config, report=report))

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        self._write({"finished": nodeid})


def _environment() -> dict[str, str]:
    """Like that of a server, but without the stubs: what looks for them is imported first."""
    path = os.environ.get("COMFYUI_EXTRA_PYTHONPATH", "")
    return {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
