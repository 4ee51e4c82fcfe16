"""Settings of a reward as text."""

from __future__ import annotations

import pytest

from chunk_grpo_core.rewards.settings import reward_settings


def test_values_are_json_or_else_text():
    pairs = [
        "version=2.0",
        "strict=true",
        'words=["a", "b"]',
        "dtype = float16 ",
        "url=http://a?b=c",
    ]
    assert reward_settings(pairs) == {
        "version": 2.0,
        "strict": True,
        "words": ["a", "b"],
        "dtype": "float16",
        "url": "http://a?b=c",
    }
    assert reward_settings([]) == {}
    assert reward_settings(["name="]) == {"name": ""}


@pytest.mark.parametrize("pair", ["strict", "=1", "two words=1", "", "1a=2"])
def test_what_is_no_pair_is_refused(pair):
    with pytest.raises(ValueError, match="write KEY=VALUE") as error:
        reward_settings([pair])
    assert repr(pair) in str(error.value)


def test_a_setting_is_given_once():
    with pytest.raises(ValueError, match="setting a was given twice"):
        reward_settings(["a=1", " a =2"])
