"""Alternatives and wildcards give the prompts that were written, each time the same."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chunk_grpo_core.prompts.wildcards import WildcardFolder, expand, parse_template

WORDS = st.text("ab c", max_size=3)


def joined(parts):
    """(source, all texts) of parts written one after the other."""
    source, texts = "", {""}
    for part, more in parts:
        source, texts = source + part, {a + b for a in texts for b in more}
    return source, texts


def either(options):
    """(source, all texts) of a group of alternatives."""
    return "{" + "|".join(source for source, _ in options) + "}", set().union(
        *(texts for _, texts in options)
    )


WRITTEN = st.recursive(
    WORDS.map(lambda text: (text, {text})),
    lambda inner: st.lists(inner, min_size=2, max_size=3).flatmap(
        lambda parts: st.sampled_from([joined(parts), either(parts)])
    ),
    max_leaves=8,
)


def no_wildcards(name):
    raise ValueError(name)


def texts(source, count=10_000, seed=0, lookup=no_wildcards):
    return expand(parse_template(source, lookup), count, random.Random(seed))


def folder(tmp_path, **files):
    for name, lines in files.items():
        path = tmp_path / "wild" / f"{name.replace('__', '/')}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(lines, encoding="utf-8")
    return WildcardFolder(tmp_path / "wild")


@given(WRITTEN)
def test_all_alternatives_are_covered_and_nothing_else(written):
    source, wanted = written
    found = texts(source)
    assert len(found) == len(set(found))
    assert set(found) == wanted


@given(WRITTEN, st.integers(1, 4), st.integers(0, 3))
def test_a_choice_is_different_possible_and_the_same_for_the_same_seed(written, count, seed):
    source, possible = written
    found = texts(source, count, seed)
    assert 1 <= len(found) == len(set(found)) <= count
    assert set(found) <= possible
    assert found == texts(source, count, seed)


def test_as_many_are_made_as_there_are():
    source = "{a|b|c|d} {1|2|3|4|5}"
    for count in range(1, 25):
        assert len(texts(source, count, seed=count)) == min(count, 20)


def test_alternatives_of_a_group_are_equally_likely_however_much_they_hold():
    draws = Counter(texts("{cat|{red|blue|green} dog|cat}", 1, seed)[0] for seed in range(3000))
    assert draws["cat"] / 3000 == pytest.approx(2 / 3, abs=0.04)  # written twice, twice as likely
    dogs = [draws[f"{colour} dog"] / 3000 for colour in ("red", "blue", "green")]
    assert dogs == pytest.approx([1 / 9] * 3, abs=0.03)


def test_astronomically_many_combinations_are_no_problem():
    assert len(texts("{a|b}" * 200, 50)) == 50
    assert texts("{a|a}" * 200, 3) == ["a" * 200]


@pytest.mark.parametrize(
    ("source", "wanted"),
    [
        (r"\{a\|b\}", "{a|b}"),
        (r"{x\|y|x\|y}", "x|y"),
        (r"a \(photo:1.2\) \n", r"a \(photo:1.2\) \n"),
        (r"\__name__ and \_\_name\_\_", "__name__ and __name__"),
        ("a|b", "a|b"),
        ("snake_case __ and ____", "snake_case __ and ____"),
        ('{"scene": {"colour": "red"}}', '{"scene": {"colour": "red"}}'),
        ("{}", "{}"),
        ("trailing \\", "trailing \\"),
    ],
)
def test_what_is_no_alternative_stays_as_it_is(source, wanted):
    assert texts(source) == [wanted]


def test_braces_without_a_bar_keep_the_alternatives_inside():
    assert texts('{"colour": "{red|blue}"}') == ['{"colour": "red"}', '{"colour": "blue"}']


@given(st.text("{}|_\\ab", max_size=30))
@settings(max_examples=300)
def test_any_text_can_be_escaped(text):
    source = "".join(f"\\{c}" if c in "{}|_" else c for c in text.replace("\\", ""))
    assert texts(source) == [text.replace("\\", "")]


@pytest.mark.parametrize(
    ("source", "word"),
    [
        ("a {b|c", r"\{"),
        ("a {b|{c|d}", "never closed"),
        ("a b} c", r"\}"),
        ("{2$$a|b}", "'2$$'"),
        ("{1-2$$a|b}", "'1-2$$'"),
        ("{2$$__x__}", "there"),
        ("{a|0.5::b}", "'0.5::'"),
        ("{3::a|b}", "not supported"),
    ],
)
def test_what_cannot_be_read_is_refused(source, word, tmp_path):
    lookup = folder(tmp_path, x="1\n2").lookup
    with pytest.raises(ValueError) as caught:
        texts(source, lookup=lookup)
    assert word in str(caught.value)


def test_wildcards_are_the_lines_of_their_files(tmp_path):
    files = folder(
        tmp_path,
        animal="\ufeff# pets\ncat\r\n\n{small|large} __dog-breed__\n",
        **{"dog-breed": "pug\nbeagle\n", "deep__er__sky": "blue"},
    )
    assert texts("a __animal__, __deep/er/sky__", lookup=files.lookup) == [
        "a cat, blue",
        "a small pug, blue",
        "a small beagle, blue",
        "a large pug, blue",
        "a large beagle, blue",
    ]


def test_an_unknown_wildcard_names_the_files_that_exist(tmp_path):
    files = folder(tmp_path, colour="red", deep__animal="cat")
    with pytest.raises(ValueError, match=r"no wildcard 'color'; .*'wild' has: colour, deep/animal"):
        texts("__color__", lookup=files.lookup)
    for name in ("../wild/colour", "col*", "deep"):
        with pytest.raises(ValueError, match="no wildcard"):
            texts(f"__{name}__", lookup=files.lookup)
    with pytest.raises(ValueError, match=r"'none' has no \.txt files"):
        texts("__a__", lookup=WildcardFolder(tmp_path / "none").lookup)


def test_errors_inside_a_wildcard_file_name_its_line(tmp_path):
    files = folder(
        tmp_path, a="# one\nfine\n{b|c\n", b="__c__", c="x\n__b__", d="\n# no\n", e="1::x"
    )
    for name, pattern in {
        "a": r"^a\.txt, line 3: '\{' is never closed",
        "b": r"^b\.txt, line 1: c\.txt, line 2: wildcards .* circle: b -> c -> b",
        "d": r"d\.txt has no lines",
        "e": r"e\.txt, line 1: '1::' is not supported",
    }.items():
        with pytest.raises(ValueError, match=pattern):
            texts(f"__{name}__", lookup=files.lookup)
    (tmp_path / "wild" / "f.txt").write_bytes(b"ok\n\xff\xfe\n")
    with pytest.raises(ValueError, match=r"f\.txt, line 2: not UTF-8"):
        texts("__f__", lookup=WildcardFolder(tmp_path / "wild").lookup)
