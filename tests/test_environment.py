"""What is missing under the tests cannot hide a failure where everything must be there."""

from __future__ import annotations

import pytest
from environment import package


@pytest.mark.parametrize(
    ("ci", "outcome"), [("true", pytest.fail.Exception), ("", pytest.skip.Exception)]
)
def test_a_missing_package_fails_with_ci_and_is_skipped_without(ci, outcome, monkeypatch):
    monkeypatch.setenv("CI", ci)
    with pytest.raises(outcome, match="needs the package no_such_package"):
        package("no_such_package.part")
    assert package("json.decoder").JSONDecoder
    with pytest.raises(ModuleNotFoundError):
        package("json.no_such_part")
