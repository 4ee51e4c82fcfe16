"""Tests of another process are reported as if they had run in this one."""

import subprocess
import sys

import pytest

from tools.comfyui.server import ROOT

from .native import examples
from .native.process import inside_comfyui

NAMES = [name for name in vars(examples) if name.startswith("test_")]
PLACE = "tests/comfy/native/examples.py::"


@pytest.fixture(scope="module")
def run(pytestconfig):
    run = inside_comfyui(pytestconfig, [PLACE + name for name in NAMES])
    yield run
    run.stop()


def outcomes(reports):
    return [(report.when, report.outcome) for report in reports]


def of_call(outcome):
    return [("setup", "passed"), ("call", outcome), ("teardown", "passed")]


def test_a_test_that_passes_tells_what_it_printed(run):
    reports = run.reports(f"{PLACE}test_passes")
    assert outcomes(reports) == of_call("passed")
    assert reports[1].capstdout == "said by the test\n"


def test_a_failure_has_its_line_its_values_and_its_place(run):
    reports = run.reports(f"{PLACE}test_fails")
    assert outcomes(reports) == of_call("failed")
    assert "assert [1, 2] == [1, 3]" in reports[1].longreprtext
    assert "At index 1 diff: 2 != 3" in reports[1].longreprtext
    assert "native/examples.py:" in reports[1].longreprtext


def test_a_skip_keeps_its_reason(run):
    reports = run.reports(f"{PLACE}test_skips")
    assert outcomes(reports) == of_call("skipped")
    assert "not here" in reports[1].longrepr[2]


def test_a_fixture_that_fails_is_an_error_of_the_setup(run):
    reports = run.reports(f"{PLACE}test_breaks_before_it_begins")
    assert outcomes(reports) == [("setup", "failed"), ("teardown", "passed")]
    assert "nothing there" in reports[0].longreprtext
    assert reports[0].capstdout == "said in the setup\n"


@pytest.mark.parametrize("name", ["test_ends_the_process", "test_never_runs"])
def test_a_process_that_dies_shows_its_status_and_its_log(name, run):
    with pytest.raises(pytest.fail.Exception, match="ended with -6") as caught:
        run.reports(PLACE + name)
    assert "Fatal Python error: Aborted" in str(caught.value)
    assert "test_ends_the_process" in str(caught.value)


def test_the_process_of_other_tests_does_not_become_one_of_comfyuis():
    command = [sys.executable, "-m", "pytest", "--collect-only", "--in-comfyui", __file__]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "--in-comfyui is for" in done.stderr
