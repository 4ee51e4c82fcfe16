"""The reward for rendered text: its formula, and the real networks on real pictures of text."""

from __future__ import annotations

import logging
import time

import numpy as np
import pytest
import torch
from environment import package
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFont

from chunk_grpo_core.prompts.example import Example
from chunk_grpo_core.rewards import load_reward
from chunk_grpo_core.rewards.ocr import (
    OcrReward,
    RapidOcr,
    edit_distance,
    text_likeness,
)
from chunk_grpo_core.rewards.quoted import quoted_texts

BLANK = torch.zeros(1, 4, 4, 3)
WORDS = st.text("ab ", max_size=6)


class Says:
    """Reads the same text in every picture, or fails where the first pixel is white."""

    fingerprint = {"engine": "fake"}

    def __init__(self, text=""):
        self.text = text

    def __call__(self, levels):
        assert levels.dtype == torch.uint8 and levels.ndim == 3
        if levels[0, 0, 0] == 255:
            raise RuntimeError("the engine is broken")
        return self.text


def by_recursion(a, b):
    """Levenshtein's distance by its definition."""
    if not a or not b:
        return len(a) + len(b)
    return min(
        by_recursion(a[1:], b) + 1,
        by_recursion(a, b[1:]) + 1,
        by_recursion(a[1:], b[1:]) + (a[0] != b[0]),
    )


@given(st.text("abc", max_size=5), st.text("abc", max_size=5))
def test_edit_distance_is_levenshteins(a, b):
    assert edit_distance(a, b) == by_recursion(a, b)


def test_edit_distance_of_known_words():
    assert edit_distance("kitten", "sitting") == 3
    assert edit_distance("intention", "execution") == 5


@pytest.mark.parametrize(
    ("read", "target", "loose", "strict"),
    [
        ("Hello World", "hello  WORLD", 1.0, 1.0),
        ("say hello now", "hello", 1.0, 5 / 11),  # contained; six letters too many
        ("helo", "hello", 0.8, 0.8),
        ("", "hello", 0.0, 0.0),
        ("xxxxxxxxxx", "hello", 0.0, 0.0),  # distance 10 counts as 5
        ("abcd", "wxyzabcdef", 0.4, 0.4),
    ],
)
def test_likeness_follows_the_formula(read, target, loose, strict):
    assert text_likeness(read, target) == pytest.approx(loose)
    assert text_likeness(read, target, strict=True) == pytest.approx(strict)


@given(WORDS, WORDS.filter(str.strip))
def test_likeness_lies_in_0_to_1_and_strict_is_1_for_the_same_text_alone(read, target):
    loose, strict = (text_likeness(read, target, strict=strict) for strict in (False, True))
    assert 0.0 <= loose <= 1.0 and 0.0 <= strict <= 1.0
    assert (strict == 1.0) == (read.replace(" ", "") == target.replace(" ", ""))
    assert (loose == 1.0) == (target.replace(" ", "") in read.replace(" ", ""))


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ('a sign that says "Open 24h" and "no"', ("Open 24h", "no")),
        ("a sign that says “Café”, neon", ("Café",)),
        ("ein Schild „Offen“ im Regen", ("Offen",)),
        ("en skylt ”Öppet” i regn", ("Öppet",)),
        ("une enseigne « Ouvert » et »Zu«, ‹ja›", ("Ouvert", "Zu", "ja")),
        ("「開店」 on a sign, 『休み』", ("開店", "休み")),
        ("写着“你好”的牌子", ("你好",)),
        ("写着'开店'的牌子", ("开店",)),
        ("＂HELLO＂ on a wall", ("HELLO",)),
        # Inches, feet and seconds.
        ('a 27" monitor showing "HELLO"', ("HELLO",)),
        ('a 12" ruler', ()),
        ('a 27" monitor and a 32" screen', ()),
        ('a 5\'10" man with a "2024" badge', ("2024",)),
        ("a 27” monitor showing “HELLO”", ("HELLO",)),
        ('a size 27 " monitor with "HI"', ("HI",)),
        ('highway 66 "OPEN" and 7 "ELEVEN"', ("OPEN", "ELEVEN")),
        ('an 8.5"x11" page reading "FAX"', ("FAX",)),
        ('a shelf of 12" records labelled "7" and "LP 33"', ("7", "LP 33")),
        ('poster says "50% OFF" next to a 6\' 2" man', ("50% OFF",)),
        ('a monitor (27") showing "HELLO"', ("HELLO",)),
        ('a book titled "TOME 3" by a 3" cup', ("TOME 3",)),
        ("a 6'2 man with a 'HI' badge", ("HI",)),
        ('3½" disk labelled "BOOT"', ("BOOT",)),
        ('a ¾" pipe, a 1 ¼ " nut and a ⅝" bolt: "M16"', ("M16",)),
        ('a 3 1/2" disk labelled "½ PRICE"', ("½ PRICE",)),
        ('GATE 5"A"', ("A",)),
        ('a 27"monitor showing "HELLO"', ("HELLO",)),
        ('a 5"x7 print of "HELLO"', ("HELLO",)),
        # Backslashes before marks.
        (r"a sign \"A\" and \"B C\"", ("A", "B C")),
        (r"a 27\" monitor showing \"HELLO\"", ("HELLO",)),
        (r'"A" and \"B\" and "C"', ("A", "B", "C")),
        (r'text "She said \"hi\""', ('She said "hi"',)),
        (r"a sign \'A\'", ("A",)),
        # One kind inside another, and several kinds in one prompt.
        ("“Zoé”, «Été» und „Übung”", ("Zoé", "Été", "Übung")),
        ("text \"She said 'hi'\"", ("She said 'hi'",)),
        ("“NO ‘ENTRY’ HERE”", ("NO ‘ENTRY’ HERE",)),
        ("看板「営業中」と『本日休業』", ("営業中", "本日休業")),
        # Single quotes, and apostrophes.
        ("O'Brien's sign 'PUB'", ("PUB",)),
        ("James' cup says ‘It’s tea time’", ("It’s tea time",)),
        ("a '90s computer with the text 'BOOT'", ("BOOT",)),
        ("a sign that says 'OPEN'", ("OPEN",)),
        ("a sign 'DON'T WALK' and ‘STOP’", ("DON'T WALK", "STOP")),
        ("a sign ‘DON’T WALK’", ("DON’T WALK",)),
        ("it's a dog's life", ()),
        ("the dogs' bowl says 'REX'", ("REX",)),
        ("rock 'n' roll in the '90s: the boys' band", ()),
        ("it's a dog's bowl, \"REX\" and 'no'", ("REX",)),
        ("'ROCK 'N' ROLL'", ("ROCK 'N' ROLL",)),
        ("‘ROCK ’N’ ROLL’ and 'ROCK 'n' ROLL'", ("ROCK ’N’ ROLL", "ROCK 'n' ROLL")),
        ("a ROCK 'N' ROLL poster", ()),
        ("a compass with 'N' and 'S'", ("N", "S")),
        ("'Tis the season, sign 'JOY'", ("JOY",)),
        ("’Twas night; ‘JOY’ on a door", ("JOY",)),
        ("give 'em a sign 'GO', open 'til dawn", ("GO",)),
        ("rock 'n roll 'til dawn at 'BAR 9'", ("BAR 9",)),
        ("'Til dawn at the boys' club", ()),
        ("a card 'TIS THE SEASON' on a door", ("TIS THE SEASON",)),
        ("a flyer 'GIVE 'EM HELL'", ("GIVE 'EM HELL",)),
        # Nothing.
        ('"" and " "', ()),
        ('an open " quote', ()),
        ("", ()),
    ],
)
def test_the_targets_are_what_stands_in_quotation_marks(prompt, texts):
    assert quoted_texts(prompt) == texts


@given(st.lists(st.sampled_from("\\\"'“”‘’«»「」27½n aB\n"), max_size=2000).map("".join))
def test_targets_are_parts_of_the_prompt_and_found_in_no_time(prompt):
    start = time.perf_counter()
    for text in quoted_texts(prompt):
        assert text and text.replace("\\", "") in prompt.replace("\\", "")
    assert time.perf_counter() - start < 0.5


def test_of_several_targets_each_counts_in_any_order_and_strict_reads_them_as_one():
    prompt = 'a shop "OPEN" with a door "EXIT"'
    for read, loose, strict in (
        ("open exit", 1.0, 1.0),
        ("exit open", 1.0, 1.0 - edit_distance("exitopen", "openexit") / 8),
        ("open", 0.5, 0.5),
    ):
        assert OcrReward(Says(read)).score(BLANK, [prompt]).values.item() == loose
        found = OcrReward(Says(read), strict=True).score(BLANK, [prompt]).values.item()
        assert found == pytest.approx(strict)
    listed = Example("a shop", {"target_text": ["OPEN", "EXIT"]})
    assert OcrReward(Says("exit")).score(BLANK, [listed]).values.item() == 0.5


def test_metadata_goes_before_the_prompt():
    reward, told = OcrReward(Says("stop")), Example('a "go" sign', {"target_text": "STOP"})
    assert reward.score(BLANK, [told]).values.item() == 1.0
    assert reward.score(BLANK, ['a "go" sign']).values.item() < 1.0
    for wrong in (7, ["a", 7], {"a": "b"}):
        with pytest.raises(ValueError, match="target_text is .*; it must be a text, or a list"):
            OcrReward(Says()).score(BLANK, [Example("a", {"target_text": wrong})])
    with pytest.raises(ValueError, match="longer than 1000 characters"):
        OcrReward(Says()).score(BLANK, [Example("a", {"target_text": "x" * 1001})])


def test_a_prompt_without_a_target_is_an_error_or_masked():
    images, prompts = BLANK.expand(3, -1, -1, -1), ['"yes"', "a dog", '" "']
    with pytest.raises(ValueError, match="the prompt 'a dog' does not say which text to read"):
        OcrReward(Says("yes")).score(images, prompts)
    masking = OcrReward(Says("yes"), no_target="mask")
    batch = masking.score(images, prompts)
    assert batch.valid.tolist() == [True, False, False] and batch.values[0] == 1.0
    with pytest.raises(ValueError, match="no_target is 'zero'; it must be 'error' or 'mask'"):
        OcrReward(Says(), no_target="zero")


def test_what_cannot_be_read_is_masked_and_logged(caplog):
    images = BLANK.repeat(3, 1, 1, 1)
    images[0, 0, 0, 0], images[1, 3, 3, 2] = 1.0, torch.inf
    with caplog.at_level(logging.WARNING):
        batch = OcrReward(Says("yes")).score(images, ['"yes"'] * 3)
    assert batch.valid.tolist() == [False, False, True]
    assert "RuntimeError('the engine is broken')" in caplog.text


# The networks of the package, with the network of the machine cut off (conftest.py)


@pytest.fixture(scope="module")
def reader():
    package("rapidocr")
    package("onnxruntime")
    return RapidOcr(threads=1)


def picture_of(text, *, size=44, width=360, height=120):
    """Black text on white by PIL's own font, as (1, H, W, 3)."""
    canvas = Image.new("RGB", (width, height), "white")
    ImageDraw.Draw(canvas).text((16, 28), text, fill="black", font=ImageFont.load_default(size))
    return torch.from_numpy(np.asarray(canvas) / 255.0).float()[None]


def test_the_right_text_scores_1_and_a_wrong_one_0(reader):
    image = picture_of("NASA 2049")
    prompts = ['a sign "NASA 2049"', 'a sign "NASA 2048"', 'a sign "fjord club"']
    for strict in (False, True):
        batch = OcrReward(reader, strict=strict).score(image.repeat(3, 1, 1, 1), prompts)
        right, nearly, wrong = batch.values.tolist()
        assert batch.valid.all()
        assert right == 1.0 and wrong == 0.0
        assert nearly == pytest.approx(7 / 8)  # one letter of eight


def test_a_blank_picture_is_read_as_no_text_and_not_masked(reader):
    batch = OcrReward(reader).score(torch.ones(1, 64, 64, 3), ['"yes"'])
    assert batch.valid.all() and batch.values.item() == 0.0


def test_further_text_costs_only_where_the_rule_is_strict(reader):
    image = picture_of("open\nclosed", height=160)
    loose, strict = (
        OcrReward(reader, strict=s).score(image, ['"open"']).values.item() for s in (False, True)
    )
    assert loose == 1.0 and strict == pytest.approx(0.4)  # four letters of ten


def test_red_and_blue_are_not_swapped_on_the_way_to_the_engine(reader):
    seen = []

    class Engine:
        txts = None

        def __call__(self, picture):
            seen.append(picture)
            return self

    mine = RapidOcr.__new__(RapidOcr)
    mine._engine = Engine()
    red = torch.tensor([255, 0, 0], dtype=torch.uint8).expand(40, 40, 3)
    assert mine(red) == ""
    assert seen[0][0, 0].tolist() == [0, 0, 255] and seen[0].dtype == np.uint8  # as OpenCV does


def test_it_is_loaded_by_name_and_says_what_it_depends_on(reader):
    reward = load_reward("ocr", strict=True, threads=1)
    assert reward.fingerprint["engine"].startswith("rapidocr 3.")
    assert reward.fingerprint["strict"] is True


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"longest_side": 8}, "longest_side is 8; it must be at least 32"),
     ({"threads": 0}, "threads is 0; it must be at least 1")],
)  # fmt: skip
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        RapidOcr(**settings)


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r"chunk-grpo-core\[ocr\]"):
        RapidOcr()
