"""Picks on disk: no click is lost, none is halved, whatever happens to whoever writes."""

from __future__ import annotations

import json
import logging
import os
import random
import signal
import threading
import time
from dataclasses import replace

import pytest
import torch

from chunk_grpo_core.disk.lock import InUse, locked
from chunk_grpo_core.rewards.taste.events import Shown, counting, new_pick, pick_line, pick_of
from chunk_grpo_core.rewards.taste.picks import Taste, pixel_hash, read_picks

A, B, C = (Shown(picture=letter * 64, prompt="a cat", seed=5) for letter in "abc")


def duel(answer=0, **facts):
    return new_pick("duel", [A, B], answer, **facts)


EVENTS = [
    duel(1, ms=900, round=2),
    new_pick("best", [A, B, C], 2),
    new_pick("hearts", [A, B, C], [1, 0, -1]),
    new_pick("like", [A], True),
    new_pick("like", [B], False),
    new_pick("stars", [C], 5),
    new_pick("stars", [C], -1),
    new_pick("same", [A, B]),
    new_pick("skip", []),
    new_pick("undo", [], "someone-elses"),
]


def test_every_kind_comes_back_as_it_was_and_reads_as_plain_json(tmp_path):
    taste = Taste(tmp_path / "mine")
    for pick in EVENTS:
        taste.append(pick)
    assert taste.picks() == EVENTS
    rows = [json.loads(line) for line in taste.file.read_text("utf-8").splitlines()]
    assert rows[0]["kind"] == "duel" and rows[0]["answer"] == 1 and rows[0]["v"] == 1
    assert rows[0]["shown"][0] == {"picture": "a" * 64, "prompt": "a cat", "seed": 5}
    assert [path.name for path in taste.folder.iterdir()] == ["picks.jsonl"]


def test_undo_takes_a_pick_back_and_can_be_taken_back():
    first, second, skip = duel(), duel(), new_pick("skip", [])
    undo = new_pick("undo", [], first.id)
    assert counting([first, second, skip, undo]) == [second]
    assert counting([first, second, undo, new_pick("undo", [], undo.id)]) == [first, second]


def test_a_line_cut_at_any_byte_is_never_glued_to_the_next_pick(tmp_path, caplog):
    first, last, following = duel(), new_pick("best", [A, B, C], 1), duel()
    file = tmp_path / "picks.jsonl"
    whole = f"{pick_line(first)}\n".encode()
    line = f"{pick_line(replace(last, shown=(A, replace(B, prompt='ein Käfer'), C)))}\n".encode()
    for cut in range(len(line) + 1):
        file.write_bytes(whole + line[:cut])
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            kept = read_picks(file)
        is_whole = cut >= len(line) - 1
        assert len(kept) == 1 + is_whole and kept[0] == first
        torn = 0 < cut < len(line) - 1
        assert bool(caplog.messages) == torn and (not torn or "line 2" in caplog.messages[0])
        if cut % 7 == 0 or cut > len(line) - 3:
            Taste(tmp_path).append(following)
            assert read_picks(file) == [*kept, following]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.slow
def test_killed_at_any_moment_every_confirmed_pick_is_there(tmp_path):
    taste, dice = Taste(tmp_path), random.Random(3)
    confirmed: list[str] = []
    for _ in range(12):
        inside, outside = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(inside)
            while True:
                pick = new_pick("hearts", [replace(A, prompt="x" * 3000)] * 2, [1, 0])
                taste.append(pick)
                os.write(outside, f"{pick.id}\n".encode())
        os.close(outside)
        time.sleep(dice.uniform(0.0, 0.05))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        with os.fdopen(inside) as pipe:
            confirmed += pipe.read().split()
        here = duel()
        taste.append(here)  # nothing has to be mended or unlocked by hand
        confirmed.append(here.id)
        ids = [pick.id for pick in taste.picks()]
        assert [one for one in ids if one in set(confirmed)] == confirmed
        confirmed = ids  # one more may have been written than was confirmed
    for line in taste.file.read_text().splitlines():
        json.loads(line)
    assert len(confirmed) > 20


def test_two_writers_at_once_lose_nothing(tmp_path):
    def write(picks):
        other = Taste(tmp_path)
        for pick in picks:
            other.append(pick)
        other.extend(picks + [extra[id(picks)]])

    batches = [[duel() for _ in range(15)] for _ in range(3)]
    extra = {id(batch): duel() for batch in batches}
    threads = [threading.Thread(target=write, args=(batch,)) for batch in batches]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    written = Taste(tmp_path).picks()
    assert {p.id for p in written} == {p.id for b in batches for p in b} | {
        p.id for p in extra.values()
    }
    for batch in batches:  # each in its own order
        assert [pick for pick in written if pick in batch] == batch


def test_a_lock_is_waited_for_and_then_told(tmp_path):
    with locked(tmp_path):
        started = time.monotonic()
        with pytest.raises(InUse, match=f"process {os.getpid()}"), locked(tmp_path, wait=0.1):
            pass
        assert time.monotonic() - started >= 0.1


def test_tastes_merge_by_id_with_their_pictures(tmp_path):
    mine, other = Taste(tmp_path / "a"), Taste(tmp_path / "b")
    pictures = torch.rand(3, 5, 4, 3)
    shared = new_pick("duel", [other.keep(pictures[0]), other.keep(pictures[1])], 0)
    alone = new_pick("like", [other.keep(pictures[2], prompt="z")], True)
    for pick in (shared, alone):
        other.append(pick)
    mine.append(shared)
    assert mine.merge(other) == [alone] and mine.merge(other) == []
    assert mine.picks() == [shared, alone]
    assert pixel_hash(mine.picture(alone.shown[0])) == pixel_hash(pictures[2])


def test_one_id_for_two_picks_is_refused_and_nothing_is_added(tmp_path):
    taste, pick = Taste(tmp_path), duel(0)
    taste.append(pick)
    with pytest.raises(ValueError, match=f"two different picks have the id {pick.id}"):
        taste.extend([duel(), replace(pick, answer=1)])
    assert taste.picks() == [pick]
    with taste.file.open("a") as file:
        file.write(f"{pick_line(replace(pick, answer=1))}\n")
    with pytest.raises(ValueError, match="picks.jsonl, line 2: another pick has the id"):
        taste.picks()


def test_a_picture_and_its_file_are_one_whatever_is_written_into_the_notes(tmp_path):
    from PIL import Image, PngImagePlugin

    taste, picture = Taste(tmp_path), torch.rand(6, 5, 3)
    shown = taste.keep(picture, prompt="a", index=3)
    file = tmp_path / "pictures" / f"{shown.picture}.png"
    notes = PngImagePlugin.PngInfo()
    notes.add_text("rating", "5")
    Image.open(file).save(file, pnginfo=notes)
    assert torch.equal(taste.picture(shown), (picture * 255).round() / 255)
    Image.new("RGB", (5, 6)).save(file)
    with pytest.raises(ValueError, match="another picture than the one that was shown"):
        taste.picture(shown)
    file.unlink()
    with pytest.raises(FileNotFoundError, match="there is no picture"):
        taste.picture(shown)


def test_pictures_are_named_inside_the_folder_and_its_roots_alone(tmp_path):
    from PIL import Image

    output, taste = tmp_path / "output", Taste(tmp_path / "mine", roots=[tmp_path / "output"])
    output.mkdir()
    Image.new("RGB", (4, 4), "red").save(output / "a.png")
    picture = torch.tensor([1.0, 0.0, 0.0]).expand(4, 4, 3)
    shown = Shown(picture=pixel_hash(picture), path="a.png")
    assert torch.equal(taste.picture(shown), picture)
    for path in ("../output/a.png", "/etc/passwd"):
        with pytest.raises(ValueError, match="outside the folder"):
            taste.picture(replace(shown, path=path))


def row(**changes):
    return {**json.loads(pick_line(EVENTS[2])), **changes}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[]", ["line 2: not an object", '"kind"']),
        ('{"v": 1,', ["line 2: not JSON"]),
        (json.dumps(row(v=2)), ["line 2: v is 2", "newer version"]),
        (json.dumps(row(v=True)), ["v is True"]),
        (json.dumps(row(kind="love")), ["kind is 'love'", "one of duel, same, best"]),
        (json.dumps(row(kind=["duel"])), ["kind is ['duel']"]),
        (json.dumps(row(note="hm")), ["the key 'note' is unknown"]),
        (json.dumps(row(id="../x")), ["id is '../x'"]),
        (json.dumps(row(time="yesterday")), ["time is 'yesterday'", "2026-11-29T18"]),
        (json.dumps(row(time="2026-11-29T18:00:00")), ["time is '2026-11-29T18:00:00'"]),
        (json.dumps(row(answer=[1, 0])), ["the answer of hearts is [1, 0]", "list of 3 numbers"]),
        (json.dumps(row(answer=[1, 0, 2])), ["each 1, 0 or -1"]),
        (json.dumps(row(answer=[True, 0, 0])), ["each 1, 0 or -1"]),
        (json.dumps(row(kind="duel", answer=0)), ["duel shows 3 pictures; it must be 2"]),
        (json.dumps(row(kind="best", answer=3)), ["a place from 0 to 2"]),
        (json.dumps(row(kind="best", answer=True)), ["the answer of best is True"]),
        (json.dumps(row(shown={})), ["shown is {}; it must be a list"]),
        (json.dumps(row(shown=[{"picture": "x"}] * 3)), ["line 2, picture 1: picture is 'x'"]),
        (json.dumps(row(ms=-1)), ["ms is -1; it must be a whole number of at least 0"]),
        ('{"v": 1, "v": 1}', ["the key 'v' stands twice"]),
        ('{"v": NaN}', ["NaN is not a number of JSON"]),
        ('{"v": "\\ud800"}', ["half a character"]),
    ],
)
def test_a_wrong_line_is_named_with_file_line_value_and_what_is_allowed(text, words, tmp_path):
    file = tmp_path / "picks.jsonl"
    file.write_text(f"{pick_line(EVENTS[0])}\n{text}\n{pick_line(EVENTS[1])}\n")
    with pytest.raises(ValueError) as error:
        read_picks(file)
    assert str(file) in str(error.value)
    for word in words:
        assert word in str(error.value)


def test_bytes_that_are_no_text_are_named_with_their_line(tmp_path):
    file = tmp_path / "picks.jsonl"
    file.write_bytes(pick_line(EVENTS[0]).encode() + b"\n\xff\xfe{}\n")
    with pytest.raises(ValueError, match="line 2: not UTF-8"):
        read_picks(file)


def test_what_does_not_fit_is_refused_before_it_is_written():
    with pytest.raises(ValueError, match="answer of duel is 2; it must be a place from 0 to 1"):
        duel(2)
    with pytest.raises(ValueError, match="cannot be written as JSON"):
        new_pick("like", [replace(A, made={"cfg": float("nan")})], True)
    assert pick_of(json.loads(pick_line(EVENTS[0])), "x") == EVENTS[0]
