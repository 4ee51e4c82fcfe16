"""Picks by click and by text: what is shown, what a click becomes, what is asked next."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import random
import time

import pytest
import torch

from chunk_grpo_core.rewards.taste.events import KINDS, counting, new_pick
from chunk_grpo_core.rewards.taste.fit import clicks_in
from chunk_grpo_core.rewards.taste.picking import batches, duels, said, view
from chunk_grpo_core.rewards.taste.picking.marks import Marks, pair_of
from chunk_grpo_core.rewards.taste.picks import Taste


@pytest.fixture
def taste(tmp_path):
    return Taste(tmp_path / "mine")


@pytest.fixture(scope="module")
def untouched(tmp_path_factory):
    """Give a taste with five pictures that nobody has picked from, and their batches."""
    taste = Taste(tmp_path_factory.mktemp("tastes") / "untouched")
    yield taste, shown(taste, *["a"] * 5)
    assert not taste.file.exists()


def shown(taste, *prompts, seed=3, **more):
    dice = torch.Generator().manual_seed(seed)
    pictures = torch.rand(len(prompts), 4, 4, 3, generator=dice)
    return batches.keep_batches(taste, pictures, prompts, seed=seed, **more)


def kinds(taste):
    return [(pick.kind, pick.answer) for pick in counting(taste.picks())]


def test_a_batch_comes_back_from_the_disk_one_for_each_prompt(taste):
    made = shown(taste, "a", "b", "a", "a", kind="duels")
    assert [[one.index for one in batch.shown] for batch in made] == [[0, 2, 3], [1]]
    assert {batch.id: batch for batch in batches.read_batches(taste)} == {b.id: b for b in made}
    assert batches.read_batch(taste, made[0].id) == made[0]
    assert shown(taste, "a", "b", "a", "a", kind="duels") == made  # the same, not two more
    assert len(batches.read_batches(taste)) == 2
    many = shown(taste, *["c"] * 70)
    assert [len(batch.shown) for batch in many] == [64, 6]


def test_a_damaged_batch_is_passed_over_by_name_and_the_others_are_read(taste, caplog):
    one, other = shown(taste, "a", "a"), shown(taste, "b", "b", seed=4)
    file = taste.folder / "batches" / f"{one[0].id}.json"
    for body in (b"", b"[]", b'{"v": 2}', b"\xff", file.read_bytes().replace(b'"a"', b'"z"')):
        file.write_bytes(body)
        caplog.clear()
        assert batches.read_batches(taste) == other
        assert file.name in caplog.text
    for name in ("", "..", "x" * 24, "../" + one[0].id, "0" * 24):
        with pytest.raises(FileNotFoundError, match="no batch"):
            batches.read_batch(taste, name)


def do(taste, **said):
    return view.act(taste, said)


def test_marks_take_the_place_of_old_ones_and_undo_walks_back_one_act_at_a_time(taste):
    (batch,) = shown(taste, *["a"] * 4)
    seen = []

    def state():
        (row,) = view.taste_view(taste)["batches"]
        return {key: row[key] for key in ("hearts", "best", "stars", "skipped")}

    steps = [
        {"do": "hearts", "marks": [[0, 1]]},
        {"do": "hearts", "marks": [[1, -1], [2, -1]]},
        {"do": "hearts", "marks": [[0, 0]]},
        {"do": "best", "place": 1},
        {"do": "best", "place": 3},
        {"do": "stars", "marks": [[0, 5], [1, 2]]},
        {"do": "stars", "marks": [[0, 1], [1, 2], [2, -1]]},
        {"do": "skip"},
    ]
    for step in steps:
        seen.append(state())
        assert do(taste, batch=batch.id, **step)
    assert state() == {
        "hearts": [0, -1, -1, 0], "best": 3, "stars": [1, 2, -1, None], "skipped": True,
    }  # fmt: skip
    assert [kind for kind, _ in kinds(taste)] == ["hearts", "best", "stars", "stars", "stars"]
    for before in reversed(seen):
        assert do(taste, do="undo")
        assert state() == before
    assert do(taste, do="undo") == [] and counting(taste.picks()) == []
    lines = taste.file.read_text().splitlines()
    assert len(lines) == len(taste.picks()) and all(json.loads(line) for line in lines)


def test_a_mark_that_is_there_already_writes_nothing(taste):
    (batch,) = shown(taste, "a", "a")
    for said_ in ({"do": "hearts", "marks": [[0, 1]]}, {"do": "best", "place": 0},
                  {"do": "stars", "marks": [[1, 4]]}):  # fmt: skip
        assert len(do(taste, batch=batch.id, **said_)) == 1
        assert do(taste, batch=batch.id, **said_) == []


def test_undo_of_a_page_leaves_alone_what_was_imported(taste):
    (batch,) = shown(taste, "a", "a")
    imported = new_pick("like", [taste.keep(torch.zeros(4, 4, 3))], True)
    do(taste, do="best", batch=batch.id, place=1)
    taste.append(imported)
    do(taste, do="undo")
    assert counting(taste.picks()) == [imported]
    assert do(taste, do="undo") == []


def test_a_picture_that_is_shown_alone_is_liked_and_is_never_the_best(taste):
    (batch,) = shown(taste, "a")
    do(taste, do="hearts", batch=batch.id, marks=[[0, 1]])
    do(taste, do="hearts", batch=batch.id, marks=[[0, -1]])
    assert kinds(taste) == [("like", False)]
    with pytest.raises(ValueError, match="the best of one picture"):
        do(taste, do="best", batch=batch.id, place=0)
    assert view.taste_view(taste)["batches"][0]["duels"] == []


HOSTILE = [
    None, 1, "x", [], {}, {"do": "undo?"}, {"do": []}, {"do": "best"}, {"do": "best", "batch": []},
    *({"do": "best", "place": place} for place in (-1, 5, True, 1.0, "1", None, [], 10**30)),
    *({"do": "hearts", "marks": marks}
      for marks in (None, [], {}, "x", [[0]], [[0, 2]], [[5, 1]], [[0, True]], [[0, 1, 2]],
                    [0, 1])),
    *({"do": "stars", "marks": [[0, stars]]} for stars in (0, 6, -2, 10**30)),
    *({"do": "duel", "places": places, "answer": 0}
      for places in (None, [0], [0, 0], [0, 9], ["0", "1"], [0, 1, 2], {}, [[0], [1]])),
    *({"do": "duel", "places": [0, 1], "answer": answer} for answer in (2, -1, "0", True, [], {})),
    {"do": "skip", "places": [0]}, {"do": "skip", "places": [0, 9]},
    *({"do": "best", "place": 0, "ms": ms} for ms in (-1, 1.5, "1", True, [])),
]  # fmt: skip


@pytest.mark.parametrize("what", HOSTILE, ids=lambda what: json.dumps(what)[:40])
def test_what_is_no_pick_is_refused_in_words_and_nothing_is_written(what, untouched):
    taste, (batch,) = untouched
    if isinstance(what, dict) and "batch" not in what:
        what = {"batch": batch.id, **what}
    with pytest.raises(ValueError) as error:
        view.act(taste, what)
    assert 10 < len(str(error.value)) < 400
    assert not taste.file.exists()


def test_every_picture_stands_in_two_duels_and_every_page_asks_the_same(taste):
    for count, most in ((2, 1), (3, 3), (4, 4), (9, 9)):
        (batch,) = shown(taste, *["a"] * count, seed=count)
        asked = duels.open_duels(batch, Marks([]))
        assert asked == duels.open_duels(batch, Marks([])) and len(asked) == most
        assert len({frozenset(pair) for pair in asked}) == most
        if count > 2:
            assert sorted(place for pair in asked for place in pair) == sorted([*range(count)] * 2)
    sides = [
        first < second
        for seed in range(40)
        for first, second in duels.open_duels(shown(taste, "a", "a", seed=seed)[0], Marks([]))
    ]
    assert 8 < sum(sides) < 32  # which side is left is drawn


def test_every_tenth_duel_is_an_old_one_with_its_sides_swapped(taste):
    made = [shown(taste, *["a"] * 6, seed=seed)[0] for seed in range(5)]
    order, repeated = [], []
    for number in range(30):
        state = view.taste_view(taste)
        repeat = state["repeat"]
        assert (repeat is not None) == (number % 10 == 9)
        if repeat is not None:
            batch, places = repeat["batch"], repeat["places"]
        else:
            row = next(row for row in state["batches"] if row["duels"])
            batch, places = row["id"], row["duels"][0]
        (pick,) = do(taste, do="duel", batch=batch, places=places, answer=0)
        sides = [one.picture for one in pick.shown]
        if repeat:
            before = [old for old in order if pair_of(old) == pair_of(pick)]
            assert len(before) == 1 and before[0] not in order[-3:]
            assert [one.picture for one in before[0].shown] == sides[::-1]
            repeated.append(pick)
        order.append(pick)
    assert len(made) == 5 and len(repeated) == 3
    assert view.taste_view(taste)["own"] == {"asked": 3, "agreed": 0}  # always left: never the same
    assert view.taste_view(taste)["clicks"] == 30


def test_chosen_and_rejected_follow_what_prevails(taste):
    (batch,) = shown(taste, *["a"] * 5)
    do(taste, do="hearts", batch=batch.id, marks=[[0, 1], [1, -1]])
    do(taste, do="stars", batch=batch.id, marks=[[0, 1], [1, -1], [2, 4], [4, 3]])
    do(taste, do="duel", batch=batch.id, places=[3, 2], answer=0)
    do(taste, do="duel", batch=batch.id, places=[3, 4], answer=None)
    assert Marks(taste.picks()).verdicts(batch) == [0, -1, 0, 1, 0]
    do(taste, do="best", batch=batch.id, place=0)
    assert Marks(taste.picks()).verdicts(batch) == [1, -1, 0, 1, 0]


GOOD = {
    "liked: 1, 4\ndisliked: 2": [("hearts", [1, -1, 0, 1, 0])],
    "LIKED: 1 4 ; Disliked:2": [("hearts", [1, -1, 0, 1, 0])],
    "best: 3": [("best", 2)],
    "better: 2 > 1 > 5": [("duel", 0), ("duel", 0)],
    "same: 1, 2": [("same", None)],
    "stars: 5, 3, , x": [("stars", 5), ("stars", 3), ("stars", -1)],
    "stars: , , , , 1": [("stars", 1)],
    "skip": [],
    "best: 1; undo": [],
    "best: 1\nbest: 2\nundo": [("best", 0)],
    "best: 1\nundo\nbest: 2": [("best", 1)],
    "better: 1 > 2 > 3\nbest: 2": [("duel", 0), ("duel", 0), ("best", 1)],
    "stars: 5\nstars: , 1": [("stars", 5), ("stars", 1)],
    "": [],
    " \n;; ": [],
}


@pytest.mark.parametrize("text", GOOD)
def test_a_text_says_what_clicks_say(text, taste):
    made = shown(taste, *["a"] * 5)
    added = said.add_said(taste, made, text)
    assert kinds(taste) == GOOD[text]
    assert said.add_said(taste, made, text) == []  # once for the same pictures
    others = shown(taste, *["a"] * 5, seed=9)
    assert len(said.add_said(taste, others, text)) == len(added)


def test_numbers_of_a_text_go_through_all_prompts_and_duels_stay_inside_one(taste):
    made = shown(taste, "a", "b", "a", "b")
    said.add_said(taste, made, "liked: 1, 2\nbest: 4\nbetter: 3 > 1\nstars: 1, 2, 3, 4")
    by_prompt = [Marks(taste.picks()).hearts(batch) for batch in made]
    assert by_prompt == [[1, 0], [1, 0]]
    assert [Marks(taste.picks()).best(batch) for batch in made] == [None, 1]
    assert [Marks(taste.picks()).stars(batch) for batch in made] == [[1, 3], [2, 4]]
    with pytest.raises(ValueError, match="not made of one prompt"):
        said.add_said(taste, made, "better: 1 > 2")


BAD = [
    "hm", "like: 1", "liked", "liked:", "liked: a", "liked: 0", "liked: -1", "liked: 1.5",
    "liked: 6", "liked: 99999", "liked: 1\nliked: 1", "liked: 1\ndisliked: 1", "best: 1, 2",
    "best:", "best: 6", "better: 1", "better: 1 < 2", "better: 1, 2", "better: 1 > 1",
    "better: 1 > 6", "better: >", "same", "same: 1", "same: 1, 1", "same: 1, 2, 3", "stars:",
    "stars: 6", "stars: 0",
    "stars: , ,", "stars: 1, 2, 3, 4, 5, 5", "stars: ²", "skip: 1", "undo: 1", "undo",
    "best: 2; best: 3", "best: 2; best: 2", "better: 2 > 1; better: 1 > 2", "better: 1 > 2 > 1",
    "same: 1, 2; better: 1 > 2", "better: 1 > 2; same: 2, 1", "stars: 5; stars: 4",
    "stars: 1, 2; stars: , 3", "skip; best: 1", "liked: 1; skip", "skip; skip",
    "\0", ":", "١", "liked: ١", "best: 1\nhm", "x" * 20_000, "liked: " + "9" * 5000,
]  # fmt: skip


def test_a_text_that_says_a_thing_twice_is_refused_with_both_lines(taste):
    made = shown(taste, "a", "b", "a", "b")
    said.add_said(taste, made, "best: 1; best: 2")  # of two prompts
    words = "picks, line 3: picture 3 is named the best of its prompt again, after picks, line 1"
    with pytest.raises(ValueError, match=words):
        said.add_said(taste, made, "best: 1; liked: 2; best: 3")


@pytest.mark.parametrize("text", BAD, ids=lambda text: repr(text)[:30])
def test_a_text_that_is_none_is_refused_with_its_line_and_nothing_is_written(text, untouched):
    taste, made = untouched
    with pytest.raises(ValueError, match="picks") as error:
        said.add_said(taste, made, text)
    assert len(str(error.value)) < 500
    if "\n" in text:
        assert "line 2" in str(error.value)
    assert not taste.file.exists()


def test_any_text_is_either_refused_in_words_or_written_whole(taste):
    dice = random.Random(7)
    words = [*said.WORDS, *KINDS, "liked:", "stars:", ":", ",", ";", "\n", ">", "1", "2", "-1", "x"]
    made = shown(taste, *["a"] * 3)
    fine = 0
    for _ in range(400):
        text = " ".join(dice.choices(words, k=dice.randint(1, 6)))
        before = taste.picks()
        try:
            added = said.add_said(taste, made, text)
        except ValueError as error:
            assert str(error).startswith("picks"), (text, error)
            assert taste.picks() == before
        else:
            assert taste.picks() == [*before, *added]
            fine += 1
    assert 10 < fine < 390


@pytest.fixture
def fork():
    if "fork" not in multiprocessing.get_all_start_methods():
        pytest.skip("needs fork")
    return multiprocessing.get_context("fork")


def _click(folder, name, places, confirm):
    for place in places:
        view.act(Taste(folder), {"do": "hearts", "batch": name, "marks": [[place, 1]]})
        confirm(place)


@pytest.mark.slow
def test_two_processes_that_click_at_once_lose_no_heart(taste, fork):
    (batch,) = shown(taste, *["a"] * 16)
    both = [
        fork.Process(target=_click, args=(taste.folder, batch.id, range(start, 16, 2), print))
        for start in (0, 1)
    ]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
    assert Marks(taste.picks()).hearts(batch) == [1] * 16
    assert clicks_in(counting(taste.picks())) == 0  # all are liked: nobody is better
    assert [pick.kind for pick in taste.picks()].count("hearts") == 16


@pytest.mark.slow
def test_a_click_that_was_confirmed_survives_kill_9_at_any_moment(taste, fork):
    (batch,) = shown(taste, *["a"] * 64)
    dice, confirmed = random.Random(5), set()
    for start in range(0, 60, 10):
        receiver, sender = fork.Pipe(duplex=False)
        args = (taste.folder, batch.id, range(start, start + 10), sender.send)
        process = fork.Process(target=_click, args=args)
        process.start()
        sender.close()
        assert receiver.poll(30)
        time.sleep(dice.uniform(0.0, 0.03))
        process.kill()
        process.join()
        with contextlib.suppress(EOFError):
            while True:
                confirmed.add(receiver.recv())
        hearts = Marks(taste.picks()).hearts(batch)
        assert all(hearts[place] == 1 for place in confirmed)
        view.act(taste, {"do": "hearts", "batch": batch.id, "marks": [[63 - start // 10, -1]]})
    assert Marks(taste.picks()).hearts(batch)[58:] == [-1] * 6
    for line in taste.file.read_text().splitlines():
        json.loads(line)
    assert len(confirmed) >= 6


def test_a_page_of_many_batches_is_ready_at_once(taste):
    pictures = torch.rand(8, 4, 4, 3)
    made = [batches.keep_batches(taste, pictures, [f"{n}"] * 8)[0] for n in range(60)]
    taste.extend(new_pick("hearts", batch.shown, [1, 0, 0, -1, 0, 0, 0, 0]) for batch in made)
    started = time.monotonic()
    assert view.taste_view(taste)["clicks"] == 120
    assert time.monotonic() - started < 2.0
