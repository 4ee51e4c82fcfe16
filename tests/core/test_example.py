"""An example is a prompt with what goes with it; a string is only its text."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chunk_grpo_core.prompts.example import Example, examples_of

VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=4,
)
METADATA = st.dictionaries(st.text(), VALUE, max_size=3)
PICTURE = st.none() | st.sampled_from([Path("a.png"), Path("folder/b.png")])
EXAMPLES = st.builds(Example, st.text(), METADATA, PICTURE)


@given(EXAMPLES, EXAMPLES)
def test_examples_are_equal_if_all_they_hold_is(one, other):
    def content(example):
        return example.text, json.dumps(example.metadata, sort_keys=True), example.picture

    assert (one == other) is (content(one) == content(other))
    assert one != other or hash(one) == hash(other)


@given(EXAMPLES)
def test_a_record_gives_back_the_example(example):
    assert Example.from_json(json.loads(json.dumps(example.to_json()))) == example
    assert pickle.loads(pickle.dumps(example)) == example


def test_a_string_is_only_its_text():
    example = Example.of("a cat")
    assert example == Example("a cat") and Example.of(example) is example
    assert example.to_json() == "a cat" and example.metadata == {} and example.picture is None
    assert examples_of(["a", Example("b")]) == (Example("a"), Example("b"))


def test_the_order_of_metadata_does_not_matter_and_what_was_given_can_change():
    given_metadata = {"a": 1, "b": (2, 3)}
    example = Example("x", given_metadata)
    given_metadata["a"] = 9
    assert example == Example("x", {"b": [2, 3], "a": 1})


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: Example(3), ["a prompt is 3", "string"]),
        (lambda: Example("a", "tag"), ["metadata of the prompt 'a' is 'tag'", "mapping"]),
        (lambda: Example("a", {"x": {1}}), ["metadata of the prompt 'a'", "JSON", "set"]),
        (lambda: examples_of("a cat"), ["single prompt 'a cat'", "list"]),
        (lambda: examples_of(Example("a cat")), ["a cat", "list"]),
        (lambda: Example.from_json(3), ["recorded prompt is 3"]),
        (lambda: Example.from_json({"text": "a"}), ["recorded prompt is {'text': 'a'}"]),
        (lambda: Example.from_json({"prompt": "a", "metadata": 3}), ["is 3", "mapping"]),
        (lambda: Example.from_json({"prompt": "a", "picture": 3}), ["recorded prompt"]),
    ],
)
def test_what_is_no_example_is_refused(call, words):
    with pytest.raises(ValueError) as caught:
        call()
    assert [word for word in words if word not in str(caught.value)] == [], caught.value
