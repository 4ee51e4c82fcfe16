"""Training and held-out prompts never meet, and none is lost."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chunk_grpo_core.prompts.example import Example
from chunk_grpo_core.prompts.files import PromptLine, parse_lines
from chunk_grpo_core.prompts.split import PromptConfig, PromptSet, make_prompt_set
from chunk_grpo_core.prompts.wildcards import WildcardFolder


def lines(*prompts):
    return parse_lines("\n".join(prompts), "text")


def texts(found):
    return [line.text for line in found]


def same(prompt):
    return prompt.lower().split()


# The split

LINES = st.lists(st.sampled_from(["a", "A", "b", "b ", "c  d", "C d", "e", "{a|x}", "{b|y|e}"]))


@given(LINES, LINES, st.integers(0, 4), st.sampled_from([0.0, 0.3, 0.9]), st.integers(0, 3))
def test_no_held_out_prompt_is_trained_on_and_none_is_lost(train, listed, count, share, variants):
    config = PromptConfig(held_out=count, held_out_share=share, split_seed=1, variants=variants)
    everything, barred = make_all(train, variants), make_all(listed, variants)
    source = len(barred or everything)
    wanted = max(1, round(share * source)) if share and source else min(count, source)
    left = [p for p in everything if p not in barred]
    if len(left) - (0 if barred else wanted) <= 0:
        with pytest.raises(ValueError, match="none is left to train on"):
            make_prompt_set(lines(*train), lines(*listed), config)
        return
    found = make_prompt_set(lines(*train), lines(*listed), config)
    kept, held_out = ([same(e.text) for e in side] for side in (found.train, found.held_out))
    assert len(held_out) == wanted
    assert not [p for p in kept if p in held_out]
    assert sorted(kept if barred else kept + held_out) == sorted(left)
    assert all(p in (barred or everything) for p in held_out)
    assert len(kept) == len({*map(tuple, kept)}) and len(held_out) == len({*map(tuple, held_out)})
    assert found.withheld == len(everything) - len(left)
    assert found == make_prompt_set(lines(*train), lines(*listed), config)


def make_all(written_lines, variants):
    """Return the different prompts of lines, as words."""
    config = PromptConfig(held_out=0, variants=variants)
    try:
        return [same(e.text) for e in make_prompt_set(lines(*written_lines), (), config).train]
    except ValueError:
        return []


def test_repetitions_are_counted_and_the_first_is_kept():
    found = make_prompt_set(
        lines("a cat", "b", "A  Cat", "b", "c"), lines("z", "Z"), PromptConfig(held_out=1)
    )
    assert texts(found.train) == ["a cat", "b", "c"]
    assert (found.repeated, found.withheld, texts(found.held_out)) == (3, 0, ["z"])


def test_nothing_of_a_held_out_list_is_trained_on_even_if_it_is_not_measured():
    found = make_prompt_set(lines("a", "b", "c"), lines("A", "b"), PromptConfig(held_out=1))
    assert texts(found.train) == ["c"] and len(found.held_out) == 1 and found.withheld == 2


def test_expansion_comes_before_the_split(tmp_path):
    (tmp_path / "thing.txt").write_text("cat\ndog\nred cat\n")
    config = PromptConfig(variants=9, held_out=9)
    wild = WildcardFolder(tmp_path)
    found = make_prompt_set(lines("{a|one} __thing__"), lines("a {cat|Red cat}"), config, wild)
    assert sorted(texts(found.held_out)) == ["a Red cat", "a cat"]
    assert texts(found.train) == ["a dog", "one cat", "one dog", "one red cat"]
    assert found.withheld == 2


def test_editing_one_line_leaves_the_prompts_of_the_others():
    config = PromptConfig(held_out=0, variants=2, wildcard_seed=5)
    template = "{a|b|c|d} {1|2|3|4} {x|y|z}"
    alone = make_prompt_set(lines(template), (), config).train
    assert make_prompt_set(lines("new {p|q}", template), (), config).train[2:] == alone
    other = PromptConfig(held_out=0, variants=2, wildcard_seed=6)
    assert make_prompt_set(lines(template), (), other).train != alone


def test_lines_of_the_same_form_choose_on_their_own():
    source = [f"{i} {{a|b|c|d}}" for i in range(30)]
    found = make_prompt_set(lines(*source), (), PromptConfig(held_out=0)).train
    assert {text[-1] for text in texts(found)} == set("abcd")


def test_shuffling_changes_the_order_and_nothing_else():
    prompts = lines(*map(str, range(20)))
    plain = make_prompt_set(prompts, (), PromptConfig(held_out=5, split_seed=3))
    assert texts(plain.train) == [str(i) for i in range(20) if str(i) not in texts(plain.held_out)]
    first, again, second = (
        make_prompt_set(prompts, (), PromptConfig(held_out=5, split_seed=3, shuffle_seed=seed))
        for seed in (1, 1, 2)
    )
    assert first == again
    assert len({plain.train, first.train, second.train}) == 3
    assert set(plain.train) == set(first.train) == set(second.train)
    assert plain.held_out == first.held_out == second.held_out


def test_all_prompts_of_a_line_carry_its_metadata():
    line = PromptLine(text="{red|blue} cat", where="x", metadata={"count": 1})
    config = PromptConfig(variants=2, held_out=1)
    found = make_prompt_set([line, *lines("dog")], (), config)
    assert set(found.train) | set(found.held_out) == {
        Example("red cat", {"count": 1}), Example("blue cat", {"count": 1}), Example("dog")
    }  # fmt: skip


def labelled(*rows):
    """Lines with a target each; a row is a text and its target."""
    return [
        PromptLine(text=text, where=f"line {number}", metadata={"target_text": target})
        for number, (text, target) in enumerate(rows, 1)
    ]


def test_one_text_with_two_targets_stays_two_prompts_and_equal_ones_are_one():
    rows = [("a sign", "OPEN"), ("a sign", "SHUT"), ("A  sign", "OPEN"), ("a cat", "OPEN")]
    found = make_prompt_set(labelled(*rows), (), PromptConfig(held_out=0))
    assert found.train == (
        Example("a sign", {"target_text": "OPEN"}),
        Example("a sign", {"target_text": "SHUT"}),
        Example("a cat", {"target_text": "OPEN"}),
    )
    assert found.repeated == 1


@given(
    st.lists(st.tuples(st.sampled_from("aAbcd"), st.sampled_from("12")), min_size=1),
    st.integers(0, 3),
    st.integers(0, 5),
)
def test_the_split_never_divides_the_prompts_of_one_text(rows, count, seed):
    different = {text.lower() for text, _ in rows}
    if count >= len(different):
        return
    config = PromptConfig(held_out=count, split_seed=seed)
    found = make_prompt_set(labelled(*rows), (), config)
    sides = [{e.text.lower() for e in side} for side in (found.train, found.held_out)]
    assert not sides[0] & sides[1] and len(sides[1]) == count
    wanted = {(text.lower(), target) for text, target in rows}
    assert len(found.train) + len(found.held_out) == len(wanted)


def test_no_prompt_with_the_text_of_a_held_out_one_is_trained_on_whatever_its_metadata():
    train = labelled(("a sign", "OPEN"), ("a sign", "SHUT"), ("a cat", "x"))
    found = make_prompt_set(train, labelled(("A sign", "EXIT")), PromptConfig(held_out=1))
    assert texts(found.train) == ["a cat"] and found.withheld == 2


def test_without_variants_everything_is_text():
    config = PromptConfig(variants=0, held_out=0)
    source = (r"{a|b", "__x__", r"a \{ b")
    assert texts(make_prompt_set(lines(*source), (), config).train) == list(source)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: make_prompt_set(lines("fine", "a {b|c")), ["text, line 2", "never closed"]),
        (lambda: make_prompt_set(lines("__x__")), ["text, line 1", "__x__", "folder"]),
        (
            lambda: make_prompt_set(lines("{|}"), (), PromptConfig(variants=2)),
            ["text, line 1", "empty"],
        ),
        (lambda: make_prompt_set(()), ["none is left"]),
        (lambda: make_prompt_set(lines("a", "b")), ["prompts: 2 held out", "fewer"]),
        (lambda: PromptSet(train=("A b",), held_out=("a  B",)), ["'a b'", "trained on"]),
        (lambda: PromptConfig(held_out=-1), ["held_out is -1"]),
        (lambda: PromptConfig(variants=-2), ["variants is -2"]),
        (lambda: PromptConfig(variants=9 * 10**18), ["variants is 9", "at most 100000"]),
        (lambda: PromptConfig(held_out_share=1.0), ["held_out_share is 1.0", "[0, 1)"]),
    ],
)
def test_what_cannot_be_is_refused(call, words):
    with pytest.raises(ValueError) as caught:
        call()
    assert [word for word in words if word not in str(caught.value)] == [], caught.value
