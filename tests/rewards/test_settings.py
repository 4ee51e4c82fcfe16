"""Settings of a reward as text."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chunk_grpo_core.rewards import REWARDS, check_reward, load_reward
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


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("target_colour", {"colour": None}, "target_colour: colour is null; it must be a text"),
        ("target_colour", {"colour": 7}, 'colour is 7; it must be a text; for a text, write "7"'),
        ("target_colour", {"colour": ["red"]}, r"colour is \['red'\]; it must be a text"),
        ("target_colour", {"colour": True}, "colour is True; it must be a text"),
        ("target_colour", {"color": "red"}, "target_colour has no setting color; .* colour"),
        ("tiny_world", {"x": 1}, "the reward tiny_world has no setting x; it has none"),
        ("target_image", {}, "the reward target_image needs the setting image"),
        ("target_image", {"image": 5}, "target_image: image is 5; it must be a text"),
        ("target_image", {"image": "a\0b"}, "image is .*; it must be a text"),
        ("remote_http", {}, "the reward remote_http needs the setting url"),
        ("remote_http", {"url": 5}, "remote_http: url is 5; it must be a text"),
        ("remote_http", {"url": "http://a", "timeout": float("nan")}, "timeout is nan; .* finite"),
        ("remote_http", {"url": "http://a", "batch_size": 10**30}, "batch_size is 1000.* whole"),
        ("jpeg_compressibility", {"quality": 9.5}, "quality is 9.5; it must be a whole number"),
        ("jpeg_compressibility", {"quality": True}, "quality is True; it must be a whole number"),
        ("ocr", {"strict": 1}, "ocr: strict is 1; it must be true or false"),
        ("ocr", {"no_target": "zero"}, "no_target is 'zero'; it must be one of error, mask"),
        ("ocr", {"threads": "many"}, "threads is 'many'; it must be a whole number or none"),
        ("pickscore", {"path": 5}, "pickscore: path is 5; it must be a text or none"),
        ("pickscore", {"folders": [1]}, r"folders is \[1\]; it must be a list of texts"),
        ("hpsv2", {"version": 3}, "version is 3; it must be one of 2.1, 2.0"),
        ("hpsv2", {"scale": "much"}, "scale is 'much'; it must be a finite number"),
        ("geneval", {"partial": "yes"}, "partial is 'yes'; it must be true or false"),
        ("vlm_judge", {"url": "http://a", "model": 7}, "model is 7; it must be a text"),
        ("pickscore", {"device": "gpu"}, "device is 'gpu'; it must be cpu, cuda"),
        ("target_image", {"image": ""}, "image: . is a folder; name the pictures in it"),
        (None, {}, "reward is None; it must be one of"),
    ],
)
def test_a_wrong_setting_is_refused_with_reward_name_value_and_what_is_allowed(
    name, settings, message
):
    with pytest.raises(ValueError, match=message) as caught:
        load_reward(name, **settings)
    assert len(str(caught.value)) < 600


def test_a_number_may_stand_for_a_text_of_digits_and_none_for_nothing():
    assert check_reward("hpsv2", {"version": 2.0, "path": "none"}) == {
        "version": "2.0",
        "path": None,
    }
    assert check_reward("ocr", {"threads": "none"}) == {"threads": None}
    assert check_reward("target_image", {}, whole=False) == {}


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("target_colour", "colour"),
        ("clipscore", "model"),
        ("clipscore", "convention"),
        ("hpsv2", "version"),
        ("hpsv2", "dtype"),
        ("vlm_judge", "judge"),
        ("vlm_judge", "token_env"),
        ("remote_http", "url"),
        ("remote_http", "token_env"),
        ("remote_http", "x" * 5000),
    ],
)
def test_no_message_repeats_a_long_value(name, setting):
    needed = {"vlm_judge": {"url": "http://a", "model": "m"}, "remote_http": {"url": "http://a"}}
    with pytest.raises(ValueError) as caught:
        load_reward(name, **{**needed.get(name, {}), setting: "x" * 5000})
    assert len(str(caught.value)) < 700


def test_every_reward_declares_the_types_of_its_settings():
    for name in REWARDS:
        with pytest.raises(ValueError, match=f"the reward {name} has no setting zzzz"):
            check_reward(name, {"zzzz": 1})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=3,
)
NAMES = ["colour", "image", "url", "batch_size", "quality", "strict", "threads", "path", "folders",
         "dtype", "version", "scale", "timeout", "model", "no_target", "head"]  # fmt: skip


@given(st.sampled_from(sorted(REWARDS)), st.dictionaries(st.sampled_from(NAMES), JSON, max_size=2))
def test_any_settings_are_taken_or_refused_by_the_name_of_the_reward(name, settings):
    try:
        checked = check_reward(name, settings, whole=False)
    except ValueError as error:
        assert name in str(error) and any(key in str(error) for key in settings)
        assert len(str(error)) < 700
    else:
        assert set(checked) == set(settings)


@given(st.lists(st.text(max_size=20), max_size=3))
def test_any_pair_is_read_or_refused(pairs):
    with contextlib.suppress(ValueError):
        assert all(key.isidentifier() for key in reward_settings(pairs))
    assert reward_settings([f"a={'[' * 100_000}"]) == {"a": "[" * 100_000}


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("target_colour", {"colour": "blue"}, "colour is 'blue'; write six hexadecimal"),
        ("target_image", {"image": "/nowhere/a.png"}, "/nowhere/a.png"),
        ("jpeg_compressibility", {"quality": 99}, "quality is 99; it must be in 1..95"),
        ("jpeg_incompressibility", {"quality": 0}, "quality is 0; it must be in 1..95"),
        ("clipscore", {"batch_size": 0}, "batch_size is 0; it must be at least 1"),
        ("pickscore", {"batch_size": -1}, "batch_size is -1; it must be at least 1"),
        ("hpsv2", {"dtype": "half"}, "dtype is 'half'; it must be one of"),
        ("hpsv3", {"path": "/nowhere"}, "/nowhere"),
        ("aesthetic", {"batch_size": 0}, "batch_size is 0; it must be at least 1"),
        ("imagereward", {"path": "/nowhere/a.pt"}, "/nowhere/a.pt"),
        ("geneval", {"batch_size": 0}, "batch_size is 0; it must be at least 1"),
        ("remote_http", {"url": "ftp://a"}, "url is 'ftp://a'; write http"),
        ("remote_http", {"url": "http://localhost", "batch_size": 0}, "batch_size is 0"),
        ("vlm_judge", {"url": "http://localhost", "model": " "}, "model is empty"),
        ("ocr", {"longest_side": 3}, "longest_side is 3; it must be at least 32"),
        ("taste", {"head": "/nowhere/a.safetensors"}, "there is no head /nowhere/a"),
        ("taste", {"head": "a.safetensors", "batch_size": 0}, "batch_size is 0"),
        ("follows_prompt", {"draws": 0}, "draws is 0; it must be from 1 to"),
    ],
)
def test_whatever_refuses_a_setting_says_of_which_reward(name, settings, message):
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        load_reward(name, **settings)
    assert str(error.value).startswith(f"reward {name}: ") and message in str(error.value)
