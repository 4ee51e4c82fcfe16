"""Prompt files of every common form are read, or refused with file, line and key."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import time

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from chunk_grpo_core.prompts import files as files_module
from chunk_grpo_core.prompts.example import Example
from chunk_grpo_core.prompts.files import SUFFIXES, parse_lines, read_prompt_file


def written(tmp_path, name, text, encoding="utf-8"):
    path = tmp_path / name
    path.write_bytes(text.encode(encoding) if isinstance(text, str) else text)
    return path


def texts(found):
    return [line.text for line in found]


CONTROL = "".join(map(chr, [*range(9), *range(14, 32), 127]))
TEXT = st.text(st.characters(codec="utf-8", exclude_characters=CONTROL))
PROMPT = TEXT.map(str.strip).filter(bool)
ROWS = st.lists(st.tuples(PROMPT, TEXT), min_size=1, max_size=5)


@given(st.lists(st.sampled_from(["a cat", " # no", "", "  ", r"\# 1", "\u2028dog\u2028"])))
def test_every_line_of_a_text_is_a_prompt_but_blank_ones_and_comments(found):
    wanted = [(i, line.strip()) for i, line in enumerate(found, 1)]
    wanted = [(i, line) for i, line in wanted if line and line[0] != "#"]
    for end in ("\n", "\r\n", "\r"):
        read = parse_lines(end.join(found), "here")
        assert texts(read) == [line.removeprefix("\\") for _, line in wanted]
        assert [line.where for line in read] == [f"here, line {i}" for i, _ in wanted]


@given(ROWS, st.sampled_from(["prompt", "caption"]), st.booleans())
def test_jsonl_and_csv_give_back_what_was_written(tmp_path_factory, rows, key, mark):
    folder = tmp_path_factory.mktemp("files")
    encoding = "utf-8-sig" if mark else "utf-8"
    objects = [json.dumps({"tag": tag, key: text}, ensure_ascii=False) for text, tag in rows]
    table = io.StringIO(newline="")
    csv.writer(table).writerows([("tag", key), *((tag, text) for text, tag in rows)])
    for name, body in (("a.jsonl", "\n\n".join(objects)), ("a.csv", table.getvalue())):
        found = read_prompt_file(written(folder, name, body, encoding))
        assert texts(found) == [text for text, _ in rows]
        assert [line.metadata for line in found] == [{"tag": tag} for _, tag in rows]


def test_where_a_prompt_stands_is_known_whatever_came_before(tmp_path):
    body = 'caption,n\n\n"two\nlines, quoted",1\nplain,2\n'
    found = read_prompt_file(written(tmp_path, "a.CSV", body))
    assert [(line.text, line.where) for line in found] == [
        ("two\nlines, quoted", "a.CSV, line 3"),
        ("plain", "a.CSV, line 5"),
    ]


def test_the_key_prompt_wins_and_the_other_is_kept(tmp_path):
    path = written(tmp_path, "a.jsonl", '{"caption": "c", "prompt": "p", "count": [1, 2]}')
    (line,) = read_prompt_file(path)
    assert (line.text, line.metadata) == ("p", {"caption": "c", "count": [1, 2]})


@pytest.mark.parametrize(
    ("name", "body", "words"),
    [
        ("a.jsonl", '{"prompt": "a"}\n{"prompt": ', ["a.jsonl, line 2", "not JSON"]),
        ("a.jsonl", '\n["a"]', ["a.jsonl, line 2", "not an object"]),
        ("a.jsonl", '{"prompt": 3}', ["line 1", "prompt is 3"]),
        ("a.jsonl", '{"caption": "  "}', ["line 1", "caption is '  '", "not empty"]),
        ("a.csv", "words;style\na;b", ["a.csv, line 1", "'words;style'", "semicolons"]),
        ("a.csv", "prompt,prompt\na,b", ["line 1", "named twice"]),
        ("a.csv", "prompt,n\na cat, a dog,1", ["line 2", "3 cells under 2", "double quotes"]),
        ("a.csv", "prompt,n\nfine,1\na cat", ["line 3", "1 cells under 2"]),
        ("a.csv", "prompt,n\n,1", ["line 2", "prompt is ''"]),
        ("a.csv", 'prompt\n"open', ["line 2", "not CSV"]),
    ],
)
def test_a_bad_line_is_refused_with_its_number(name, body, words, tmp_path):
    with pytest.raises(ValueError) as caught:
        read_prompt_file(written(tmp_path, name, body))
    assert [word for word in words if word not in str(caught.value)] == [], caught.value


TABLE = "Prompt;Art\nein Löwe;„Öl“\n"
LIST = '["a cat", {"caption": "a dog", "n": 1}]'


@pytest.mark.parametrize(
    ("name", "body", "wanted", "guesses"),
    [
        # The encodings of common editors.
        ("a.txt", "für\nGröße".encode("utf-8-sig"), ["für", "Größe"], []),
        ("a.txt", "für\r\nGröße".encode("utf-16"), ["für", "Größe"], []),
        ("a.txt", b"\xfe\xff" + "für".encode("utf-16-be"), ["für"], []),
        ("a.txt", "für 犬".encode("utf-32"), ["für 犬"], []),
        ("a.txt", "a cat\na dog".encode("utf-16-le"), ["a cat", "a dog"], ["UTF-16-LE"]),
        ("a.txt", "a\nf\xfcr “x”".encode("cp1252"), ["a", "für “x”"], ["Windows-1252", "line 2"]),
        ("a.txt", b"a cat\x1a", ["a cat"], []),
        # Tables of spreadsheets and benchmarks.
        ("a.csv", TABLE, ["ein Löwe"], ["semicolons", "'Prompt'"]),
        ("a.csv", TABLE.encode("cp1252"), ["ein Löwe"], ["Windows-1252", "semicolons", "'Prompt'"]),
        ("a.csv", "sep=;\nprompt;n;;\na, b;1;;\n;;;\n", ["a, b"], ["semicolons"]),
        ("a.csv", "prompt\tn\na\t1", ["a"], ["tabs"]),
        ("a.tsv", "Prompt\tNote\na cat\t\n", ["a cat"], ["'Prompt'"]),
        ("a.tsv", 'prompt\tn\n"a\ttab"\t1\n', ["a\ttab"], []),
        ("a.tsv", 'prompt\tn\n"GO" on a sign\t1\nb\t2', ['"GO" on a sign', "b"], ["quotes"]),
        ("a.csv", 'Prompts,Category\n"a ""red"" cat",x\n', ['a "red" cat'], ["'Prompts'"]),
        # JSON of benchmarks.
        ("a.json", '["a cat", " a dog "]', ["a cat", "a dog"], []),
        ("a.json", LIST, ["a cat", "a dog"], ["'caption'"]),
        ("a.json", '{"prompts": ["a"], "n": 1}', ["a"], []),
        ("a.jsonl", '{"text": "a"}\r\n{"text": "b", "n": 1}', ["a", "b"], ["'text'"]),
        ("a.jsonl", '{"image": "x", "prompt_en": "a"}', ["a"], ["'prompt_en'"]),
        ("a.jsonl", '{"Prompt EN": "a", "prompt_zh": "b"}', ["a"], ["'Prompt EN'"]),
    ],
)
def test_what_is_common_is_read_and_what_was_guessed_is_told(name, body, wanted, guesses, tmp_path):
    told = []
    assert texts(read_prompt_file(written(tmp_path, name, body), told.append)) == wanted
    assert len(told) == len([word for word in guesses if not word.startswith("line")])
    assert all(name in sentence for sentence in told)
    assert [word for word in guesses if word not in " ".join(told)] == []


def test_the_key_of_the_first_entry_is_that_of_all(tmp_path):
    body = '{"prompt": "a sign", "text": "OPEN"}\n{"text": "SHUT"}'
    with pytest.raises(ValueError, match="line 2: no 'prompt' among the keys 'text'"):
        read_prompt_file(written(tmp_path, "a.jsonl", body))


DEEP = '{"prompt": "a", "m": ' + "[" * 40 + "]" * 40 + "}"


@pytest.mark.parametrize(
    ("name", "body", "words"),
    [
        ("a.txt", "", ["a.txt holds no prompts", "empty"]),
        ("a.txt", "\n# one\n  # two\n", ["a.txt holds no prompts", "comments"]),
        ("a.csv", "prompt,n\n", ["a.csv holds no prompts"]),
        ("a.jsonl", "\n\n", ["a.jsonl holds no prompts", "empty"]),
        ("a.txt", b"a\nb\x00c", ["a.txt, line 2", "'\\x00'"]),
        ("a.txt", b"\x89PNG\r\n\x1a\n\x00\x00", ["a.txt, line 2"]),
        ("a.txt", "a dog\nкошка".encode("cp1251"), ["a.txt, line 2", "UTF-8"]),
        ("a.txt", "猫と犬".encode("shift-jis"), ["a.txt, line 1", "UTF-8"]),
        ("a.txt", b"\xff\xfea\x00\xd8\xd8", ["a.txt, line 1", "UTF-16"]),
        ("a.txt", "x" * 50_001, ["a.txt, line 1", "50,001 characters"]),
        ("a.jsonl", '{"prompt": "a \\ud800"}', ["a.jsonl, line 1", r"\ud800", "surrogate"]),
        ("a.jsonl", '{"prompt": "a", "\\udfff": 1}', ["a.jsonl, line 1", "surrogate"]),
        ("a.jsonl", '{"prompt": "a\\u0000"}', ["a.jsonl, line 1", "NUL"]),
        ("a.jsonl", '{"prompt": "a", "n": NaN}', ["a.jsonl, line 1", "NaN"]),
        ("a.jsonl", '{"prompt": "a", "n": 1e999}', ["a.jsonl, line 1", "1e999", "too large"]),
        ("a.jsonl", '{"prompt": "a", "prompt": "b"}', ["line 1", "'prompt' stands twice"]),
        ("a.jsonl", '{"Prompt": "a", "PROMPT": "b"}', ["line 1", "'Prompt' or 'PROMPT'"]),
        ("a.jsonl", '{"image": "a"}', ["line 1", "'image'", "'prompt' or 'caption'", "prompt_en"]),
        ("a.jsonl", DEEP, ["a.jsonl, line 1", "32 deep"]),
        ("a.json", "[" * 100_000, ["a.json", "nested too deeply"]),
        ("a.json", '{"a": 1}', ["a.json: holds an object", '["a cat", "a dog"]']),
        ("a.json", '["a", 3]', ["a.json, entry 2", "3"]),
        ("a.json", '["a",\n"b"', ["a.json", "not JSON", "line 2"]),
        ("a.json", '["a", " "]', ["a.json, entry 2", "not empty"]),
        ("a.csv", "prompt,,n\na,b,1", ["a.csv, line 2", "'b'", "no name"]),
        ("a.tsv", "prompt\tn\na\nb\t1", ["a.tsv, line 2", "1 cells under 2"]),
        ("a.parquet", "", ["a.parquet", ".txt, .jsonl, .json, .csv, .tsv"]),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(name, body, words, tmp_path):
    with pytest.raises(ValueError) as caught:
        read_prompt_file(written(tmp_path, name, body))
    assert [word for word in words if word not in str(caught.value)] == [], caught.value
    assert len(str(caught.value)) < 500


def test_what_is_too_large_is_refused_before_it_takes_memory(tmp_path, monkeypatch):
    large = tmp_path / "large.txt"
    with large.open("wb") as file:
        file.truncate(10 * 2**40)  # a file of 10 TiB that takes no room
    with pytest.raises(ValueError, match=r"large\.txt is larger than 32 MiB"):
        read_prompt_file(large)
    many = written(tmp_path, "many.json", "[" + "{}," * 4_000_001 + "{}]")
    with pytest.raises(ValueError, match=r"many\.json: holds more than 4,000,000 values"):
        read_prompt_file(many)
    monkeypatch.setattr(files_module, "MOST_PROMPTS", 2)
    with pytest.raises(ValueError, match=r"few\.txt, line 3: more than 2 prompts"):
        read_prompt_file(written(tmp_path, "few.txt", "a\nb\nc"))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_no_prompt_file(tmp_path):
    os.mkfifo(tmp_path / "a.txt")
    for name in ("a.txt", "gone.txt"):
        with pytest.raises(FileNotFoundError, match=name):
            read_prompt_file(tmp_path / name)


def test_half_a_character_and_nan_are_refused_wherever_a_prompt_comes_from():
    with pytest.raises(ValueError, match="half a character"):
        Example("a \ud83d cat")
    with pytest.raises(ValueError, match="metadata of the prompt 'a'.*JSON"):
        Example("a", {"n": float("nan")})
    with pytest.raises(ValueError, match="text, line 2: the prompt holds the character NUL"):
        parse_lines("a\nb\0", "text")


PIECES = st.sampled_from(
    ["prompt", "caption", "Prompt", ",", ";", "\t", "\n", "\r\n", '"', '{"prompt": "a"}', "[", "]",
     "{", "}", ":", "null", "1", "NaN", "\\", "\\ud800", "# x", "\x00", "ü", "猫", "\ufeff"]
)  # fmt: skip
ENCODINGS = st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "shift-jis"])


@pytest.mark.slow
@given(
    st.lists(PIECES, max_size=12).map("".join) | TEXT,
    ENCODINGS,
    st.binary(max_size=4),
    st.sampled_from(SUFFIXES),
)
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example("", "utf-8", b"\xff", ".json")
def test_any_file_gives_prompts_that_can_be_kept_or_an_error_with_its_name(
    tmp_path, body, encoding, more, suffix
):
    path = written(tmp_path, f"name{suffix}", body.encode(encoding, "ignore") + more)
    start = time.perf_counter()
    try:
        found = read_prompt_file(path, lambda sentence: None)
    except ValueError as error:
        assert f"name{suffix}" in str(error)
    else:
        assert found
        for line in found:
            kept = Example(line.text, line.metadata)
            assert json.loads(kept.key)[0] == line.text == line.text.strip() != ""
            assert re.fullmatch(rf"name{suffix}, (line|entry) [1-9]\d*", line.where)
    assert time.perf_counter() - start < 1.0
