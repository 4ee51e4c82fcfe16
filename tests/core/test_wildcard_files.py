"""Wildcard files: names, YAML, errors with their line, and bounds on what they may become."""

from __future__ import annotations

import random
import time
import tracemalloc

import pytest

from chunk_grpo_core.prompts.template import expand, parse_template
from chunk_grpo_core.prompts.wildcards import WildcardFolder


def texts(source, lookup, count=10_000, seed=0):
    return expand(parse_template(source, lookup), count, random.Random(seed))


def folder(tmp_path, **files):
    for name, lines in files.items():
        name = name if name.endswith(("yaml", "yml")) else f"{name}.txt"
        path = tmp_path / "wild" / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(lines, encoding="utf-8")
    return WildcardFolder(tmp_path / "wild")


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
    with pytest.raises(ValueError, match=r"'none' has no \.txt or \.yaml files"):
        texts("__a__", lookup=WildcardFolder(tmp_path / "none").lookup)


def test_errors_inside_a_wildcard_file_name_its_line(tmp_path):
    files = folder(
        tmp_path, a="# one\nfine\n{b|c\n", b="__c__", c="x\n__b__", d="\n# no\n", e="x\n2$$x"
    )
    for name, pattern in {
        "a": r"^a\.txt, line 3: '\{' is never closed",
        "b": r"^b\.txt, line 1: c\.txt, line 2: wildcards .* circle: b -> c -> b",
        "d": r"d\.txt has no lines",
        "e": r"e\.txt, line 2: '2\$\$' is read directly",
    }.items():
        with pytest.raises(ValueError, match=pattern):
            texts(f"__{name}__", lookup=files.lookup)
    (tmp_path / "wild" / "f.txt").write_bytes(b"ok\n\xff\xfe\n")
    with pytest.raises(ValueError, match=r"f\.txt, line 2: not UTF-8"):
        texts("__f__", lookup=WildcardFolder(tmp_path / "wild").lookup)


def test_names_may_hold_spaces_and_capitals_do_not_matter_where_one_name_fits(tmp_path):
    files = folder(tmp_path, **{"hair color": "red", "deep__Big Sky": "blue", "A": "1", "a": "2"})
    assert texts("a __hair color__ girl", files.lookup) == ["a red girl"]
    assert texts("__Hair Color__ __deep/big sky__", files.lookup) == ["red blue"]
    assert texts("__A__ __a__", files.lookup) == ["1 2"]
    assert texts("one __ two __hair color__ __", files.lookup) == ["one __ two red __"]


YAML = """
# a popular layout
hair:
  colour: [red, 2::dark blond, "{light|dark} blue"]
  style:
    - long
    - very __hair/colour__
"eye colour": green
answers: [no, 1.0, ~, 2001-01-01, 'a|b']
"""


def test_yaml_files_hold_lists_under_names(tmp_path):
    files = folder(tmp_path, **{"any.yaml": YAML, "pets.yml": "- cat\n- dog\n", "hair": "none"})
    assert texts("__hair/colour__", files.lookup) == [
        "red",
        "dark blond",
        "light blue",
        "dark blue",
    ]
    assert texts("__hair/style__", files.lookup)[:2] == ["long", "very red"]
    assert texts("__eye colour__ __pets__", files.lookup) == ["green cat", "green dog"]
    assert texts("__answers__", files.lookup) == ["no", "1.0", "~", "2001-01-01", "a|b"]
    assert texts("__hair__", files.lookup) == ["none"]
    draws = [texts("__hair/colour__", files.lookup, 1, seed)[0] for seed in range(2000)]
    assert draws.count("dark blond") / 2000 == pytest.approx(0.5, abs=0.04)


BOMB = "a: &a [x, y]\nb: &b [*a, *a]\n"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (BOMB, ["w.yaml, line 2", "aliases"]),
        ("a: !!python/object:os.system [ls]", ["w.yaml, line 1", "tags"]),
        ("a:\n  - {text: x, weight: 2}", ["w.yaml, line 2", "texts only"]),
        ("a:\n  - [x]", ["w.yaml, line 2", "texts only"]),
        ("just text", ["w.yaml, line 1", "not a list"]),
        ("a: [x", ["w.yaml, line", "not YAML"]),
        ("a:\n  - fine\n  - '{b|'", ["w.yaml, line 3", "never closed"]),
        ("".join(f"{' ' * i}k{i}:\n" for i in range(40)), ["w.yaml, line", "20 deep"]),
        ("b: [x]", ["no wildcard 'a'", "has: b"]),
        ("a: []", ["no wildcard 'a'"]),
        ("a: [0::x]", ["wildcard 'a'", "weight 0"]),
    ],
)
def test_a_yaml_file_that_is_no_list_of_wildcards_is_refused_with_its_line(body, words, tmp_path):
    files = folder(tmp_path, **{"w.yaml": body})
    with pytest.raises(ValueError) as caught:
        texts("__a__", files.lookup)
    assert [word for word in words if word not in str(caught.value)] == [], caught.value


def test_two_yaml_files_with_one_name_are_refused(tmp_path):
    files = folder(tmp_path, **{"v.yaml": "a: [x]", "w.yaml": "a: [y]"})
    with pytest.raises(ValueError, match=r"both v\.yaml and w\.yaml have the wildcard 'a'"):
        texts("__a__", files.lookup)


def chain(length, line):
    """Files a0, a1, ... of which each names the next one."""
    return {f"a{i}": line.replace("next", f"__a{i + 1}__") for i in range(length)} | {
        f"a{length}": "{|}"
    }


@pytest.mark.parametrize(
    ("files", "word"),
    [
        (chain(45, "next next"), "50,000 characters"),
        (chain(45, "nextnext"), "50,000 characters"),
        (chain(60, "next next"), "in a chain: a0 -> a1 -> a2 -> ... -> a50"),
        (chain(2000, "next"), "in a chain"),
        (chain(45, "{{{next|x}|x}|x}"), "60 deep"),
        ({"a0": "x\n" * 10 + "__a1__", "a1": "__a0__"}, "circle: a0 -> a1 -> a0"),
    ],
)
def test_files_that_grow_without_end_are_refused_at_once_and_in_little_memory(
    files, word, tmp_path
):
    lookup = folder(tmp_path, **files).lookup
    tracemalloc.start()
    start = time.perf_counter()
    try:
        with pytest.raises(ValueError, match=word):
            texts("__a0__", lookup, 5)
        assert time.perf_counter() - start < 2.0
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()


def test_more_combinations_than_can_be_counted_are_no_problem(tmp_path):
    lines = "next next\nx next y\n"
    lookup = folder(tmp_path, **chain(10, lines)).lookup
    assert len(texts("__a0__", lookup, 50)) == 50


def test_links_out_of_the_folder_are_refused_and_those_inside_are_followed(tmp_path):
    files = folder(tmp_path, inside="red")
    (tmp_path / "secret.txt").write_text("root:x:0")
    (tmp_path / "secret.yaml").write_text("key: [root]")
    (tmp_path / "wild" / "out.txt").symlink_to(tmp_path / "secret.txt")
    (tmp_path / "wild" / "same.txt").symlink_to("inside.txt")
    (tmp_path / "wild" / "gone.txt").symlink_to(tmp_path / "nothing.txt")
    (tmp_path / "linked").symlink_to(tmp_path / "wild", target_is_directory=True)
    assert texts("__same__", files.lookup) == ["red"]
    assert texts("__same__", WildcardFolder(tmp_path / "linked").lookup) == ["red"]
    with pytest.raises(ValueError, match=r"out\.txt is a link to a file outside"):
        texts("__out__", files.lookup)
    with pytest.raises(ValueError, match="no wildcard 'gone'"):
        texts("__gone__", files.lookup)
    (tmp_path / "wild" / "out.yaml").symlink_to(tmp_path / "secret.yaml")
    with pytest.raises(ValueError, match=r"out\.yaml is a link to a file outside"):
        texts("__key__", WildcardFolder(tmp_path / "wild").lookup)
