"""Tests that run in another process, beside those of this one, and are reported as if they had
run here.

The first process collects the tests like all others and starts the second one, a pytest of its
own, which writes every report of every test into a file as a line of JSON. The first process passes
them on as its own. So such a test has a name, a traceback, fixtures, rewritten assertions and
``-k`` like any other.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from tools.comfyui.server import ROOT, end_with_parent

__all__ = ["Beside", "ReportLines", "report"]

POLL_SECONDS = 0.02


class Beside:
    """A run of tests beside those of the session itself.

    Args:
        config: Options of the session; those that shape a traceback are handed on.
        words: What the other pytest runs: files or ids, and options.
        environment: Of its process.
    """

    def __init__(
        self, config: pytest.Config, words: Sequence[str], environment: Mapping[str, str]
    ) -> None:
        self._scratch = tempfile.TemporaryDirectory()
        scratch = Path(self._scratch.name)
        self._log, reports = scratch / "log", scratch / "reports"
        reports.touch()
        self._lines = reports.open(encoding="utf-8")
        options = [f"--report-lines={reports}", f"--tb={config.option.tbstyle}"]
        options += ["--showlocals"] if config.option.showlocals else []
        options += ["-v"] * config.option.verbose
        command = [sys.executable, "-m", "pytest", "-c", str(ROOT / "pyproject.toml")]
        command += ["-p", "no:cacheprovider", *options, *words]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                env=environment,
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


def report(item: pytest.Item, run: Beside) -> None:
    """Let the other process say how a test went."""
    hook = item.ihook
    hook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    passed_through = (KeyboardInterrupt, pytest.exit.Exception)
    call = pytest.CallInfo.from_call(lambda: run.reports(item.nodeid), "call", passed_through)
    if call.excinfo is None:
        reports = call.result
    else:
        reports = [hook.pytest_runtest_makereport(item=item, call=call)]
    for one in reports:
        hook.pytest_runtest_logreport(report=one)
    hook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)


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
