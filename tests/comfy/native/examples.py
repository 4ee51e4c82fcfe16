"""Tests with every outcome, for the test of the process that runs them; never collected."""

from __future__ import annotations

import os

import pytest


@pytest.fixture
def broken():
    print("said in the setup")
    raise LookupError("nothing there")


def test_passes():
    print("said by the test")


def test_fails():
    left = [1, 2]
    assert left == [1, 3]


def test_skips():
    pytest.skip("not here")


def test_breaks_before_it_begins(broken):
    pass


def test_ends_the_process():
    os.abort()


def test_never_runs():
    pass
