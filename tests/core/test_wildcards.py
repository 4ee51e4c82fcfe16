"""Alternatives and wildcards give the prompts that were written, each time the same."""

from __future__ import annotations

import random
import time
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chunk_grpo_core.prompts.template import expand, parse_template
from chunk_grpo_core.prompts.wildcards import WildcardFolder

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
        (r"for \${5} and $5", "for ${5} and $5"),
        ("{^_^}", "{^_^}"),
        ("{! !} {~} {@}", "{! !} {~} {@}"),
        ("channel 3#, 16:9::", "channel 3#, 16:9::"),
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
        ("{3$$a|b}", "'3$$' asks for 3 of 2"),
        ("{2-1$$a|b}", "asks for 2 to 1"),
        ("{1-5$$a|b}", "asks for 1 to 5 of 2"),
        ("{3$$__x__}", "asks for 3 of 2"),
        ("{2$$ {a|b} $$c|d}", "followed by a '$$'"),
        ("{2$$ | $$c|d}", "'2$$'"),
        ("{a|2$$b}", "'2$$'"),
        ("{51$$" + "|".join("a" * 60) + "}", "at most 50"),
        ("{-1::a|b}", "'-1::'"),
        ("{1e999::a|b}", "'1e999::'"),
        ("{1.2.3::a|b}", "'1.2.3::'"),
        ("{0::a|0::b}", "weight 0"),
        ("a __hair color__ girl", "'hair color'"),
        ("__x*__", "Patterns"),
        ("__~x__", "Ways to choose"),
        ("${c=!{red|blue}} a ${c} hat", "variable"),
        ("2#__x__", "quantity"),
        ("{red|blue} {^1}", "earlier choice"),
        ("{~a|b}", "way to choose"),
        ("{!a|b}", "way to choose"),
        ("{~__x__}", "way to choose"),
        ("{@{a|b}|c}", "way to choose"),
        ("{~.5::a|b}", "way to choose"),
        ("{3 $$a|b}", "'3 $$' asks for 3 of 2"),
        ("{123456789012$$a|b}", "asks for 123456789012 of 2"),
        ("{% for x in y %}", "Jinja"),
        ("{" * 70 + "a|b" + "}" * 70, "60 deep"),
        ("{" + "a" * 50_000 + "|b} c", "more than 50,000 characters"),
    ],
)
def test_what_cannot_be_read_is_refused(source, word, tmp_path):
    lookup = folder(tmp_path, x="1\n2").lookup
    with pytest.raises(ValueError) as caught:
        texts(source, lookup=lookup)
    assert word in str(caught.value)


@pytest.mark.parametrize("blanks", ["", "1", "1-", "1-1", "-"])
def test_a_head_of_many_blanks_is_read_in_no_time(blanks):
    start = time.perf_counter()
    texts("{" + blanks + " " * 40_000 + "x$$a|b}", 1)
    assert time.perf_counter() - start < 1.0


def test_weights_say_how_likely_an_alternative_is():
    draws = Counter(texts("{3::cat|0.5::dog|.5::cow|0::ox|}", 1, seed)[0] for seed in range(4000))
    assert draws["ox"] == 0
    wanted = {"cat": 0.6, "dog": 0.1, "cow": 0.1, "": 0.2}
    assert {key: draws[key] / 4000 for key in wanted} == pytest.approx(wanted, abs=0.03)
    assert texts("{2::a|3::b}") == ["a", "b"] and texts("x {2::a}") == ["x a"]
    assert texts("{0::a|b}") == ["b"]


@pytest.mark.parametrize(
    ("source", "wanted"),
    [
        ("{2$$a|b|c}", {"a, b", "a, c", "b, a", "b, c", "c, a", "c, b"}),
        ("{2$$ and $$a|b}", {"a and b", "b and a"}),
        ("{1-2$$+$$a|b}", {"a", "b", "a+b", "b+a"}),
        ("{-2$$+$$a|b}", {"a", "b", "a+b", "b+a"}),
        ("{2-$$+$$a|b}", {"a+b", "b+a"}),
        ("{0-1$$a|b}", {"", "a", "b"}),
        ("{2$$$$a|b}", {"ab", "ba"}),
        ("{ 2 $$a|b}", {"a, b", "b, a"}),
        ("{1 - 2 $$+$$a|b}", {"a", "b", "a+b", "b+a"}),
        ("{ - 2$$+$$a|b}", {"a", "b", "a+b", "b+a"}),
        ("{2$$a|{x|y}}", {"a, x", "a, y", "x, a", "y, a"}),
        ("{2$$2::a|b}", {"a, b", "b, a"}),
        ("{2$$__pet__}", {"cat, dog", "dog, cat"}),
        ("{2$$__pet__|x}", {"cat, x", "dog, x", "x, cat", "x, dog"}),
    ],
)
def test_several_alternatives_are_different_ones_in_any_order(source, wanted):
    def lookup(name):
        return parse_template("{cat|dog}", no_wildcards)[0]

    assert set(texts(source, lookup=lookup)) == wanted
    drawn = {texts(source, 1, seed, lookup)[0] for seed in range(200)}
    assert drawn == wanted


def test_weights_count_when_several_are_taken():
    first = Counter(texts("{2$$8::a|b|c}", 1, seed)[0][0] for seed in range(2000))
    assert first["a"] / 2000 == pytest.approx(0.8, abs=0.03)


@pytest.mark.parametrize(
    ("source", "count", "seed", "wanted"),
    [
        ("{a|b|c} {1|2|3|4}", 3, 0, ["b 4", "a 3", "c 4"]),
        ("{a|b|c} {1|2|3|4}", 3, 7, ["b 2", "b 1", "a 1"]),
        ("a {x|{y|z|}} {p|q}{r|s}", 2, 3, ["a x ps", "a  pr"]),
    ],
)
def test_a_seed_gives_the_prompts_that_it_always_gave(source, count, seed, wanted):
    assert texts(source, count, seed) == wanted


@given(
    st.lists(
        st.sampled_from(
            ["a", "{", "}", "|", "__", "__x__", "$$", "2$$", "1-3$$", "::", "0.5::", "\\",
             "9999999::", "${", "2#", "{^1}", " ", "__a b__", "-", "~", "!", "2 $$"]
        ),
        max_size=14,
    ).map("".join),
    st.sampled_from([1, 3, 1000]),
)  # fmt: skip
@settings(max_examples=500)
def test_any_text_gives_different_prompts_or_a_plain_error_in_no_time(source, count):
    def lookup(name):
        if name != "x":
            raise ValueError(f"there is no wildcard {name!r}")
        return parse_template("{u|2::v|w}", no_wildcards)[0]

    start = time.perf_counter()
    try:
        found = texts(source, count, lookup=lookup)
    except ValueError as error:
        assert 10 < len(str(error)) < 400
    else:
        assert 1 <= len(found) == len(set(found)) <= count
    assert time.perf_counter() - start < 2.0
