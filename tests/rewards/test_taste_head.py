"""The head against closed forms, and its report against people who click at random."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from chunk_grpo_core.rewards.taste import validation
from chunk_grpo_core.rewards.taste.captions import caption_vectors, mean_caption
from chunk_grpo_core.rewards.taste.events import Shown, new_pick
from chunk_grpo_core.rewards.taste.features import scaling
from chunk_grpo_core.rewards.taste.fit import clicks_in, fit_picks
from chunk_grpo_core.rewards.taste.head import load_head, primal, save_head
from chunk_grpo_core.rewards.taste.learning import learn
from chunk_grpo_core.rewards.taste.report import own_agreement, wilson
from chunk_grpo_core.rewards.taste.rows import rows_of
from chunk_grpo_core.rewards.taste.solve import gram_of, solve
from chunk_grpo_core.rewards.taste.statistics import COUNT
from chunk_grpo_core.rewards.taste.validation import LOOKS, chance_of, dispersion, folds

PICTURES, PROMPTS = 5, 160


def name(number):
    return f"{number:064x}"


def shown(number):
    return Shown(picture=name(number), prompt=f"prompt {number // PICTURES}")


def world(seed=0):
    """What is seen of 800 pictures, and a linear taste of two of its numbers."""
    raw = torch.randn(PICTURES * PROMPTS, COUNT, generator=torch.Generator().manual_seed(seed))
    return raw, raw[:, 3] - raw[:, 50]


def numbers(raw):
    return {name(i): row for i, row in enumerate(raw)}


def picks_of(likes, kinds, count, seed=0):
    """Each pick of another prompt, if there are enough; likes None is a random clicker."""
    dice = torch.Generator().manual_seed(seed)
    picks = []
    for number in range(count):
        kind = kinds[number % len(kinds)]
        size = {"duel": 2, "same": 2, "like": 1, "stars": 1}.get(kind, 4)
        places = torch.randperm(PICTURES, generator=dice)[:size] + PICTURES * (number % PROMPTS)
        scores = torch.rand(size, generator=dice) - 0.5 if likes is None else likes[places]
        answer = {
            "duel": lambda s: int(s.argmax()),
            "best": lambda s: int(s.argmax()),
            "hearts": lambda s: (s > s.median()).int().tolist(),
            "like": lambda s: bool(s > 0),
            "stars": lambda s: int((s * 1.5 + 3).round().clamp(1, 5)),
            "same": lambda s: None,
        }[kind](scores)
        picks.append(new_pick(kind, [shown(int(i)) for i in places], answer))
    return picks


KINDS = ("duel", "best", "hearts", "like", "stars", "same")


def problem(kinds, count=36):
    """Rows of picks of some kinds, and what is seen of the pictures."""
    raw, likes = world()
    place = {(shown(i).picture, shown(i).prompt): i for i in range(len(raw))}
    rows = rows_of(picks_of(likes, kinds, count), place, len(raw))
    return rows, scaling(raw)(raw)


def test_rows_are_differences_inside_a_pick_and_singles():
    place = {(shown(i).picture, shown(i).prompt): i for i in range(4)}
    four = [shown(i) for i in range(4)]
    picks = [
        new_pick("duel", four[:2], 1),
        new_pick("best", four, 2),
        new_pick("hearts", four, [1, 0, 1, -1]),
        new_pick("hearts", four, [1, 1, 1, 1]),
        new_pick("like", four[3:], False),
        new_pick("same", four[:2]),
        new_pick("duel", [four[0], four[0]], 0),
        new_pick("duel", [four[0], shown(200)], 0),
    ]
    rows = rows_of(picks, place, 4)
    third = 1 / 3
    assert rows.matrix.tolist() == [
        [-1, 1, 0, 0],
        pytest.approx([-third, -third, 1, -third]),
        [1, -0.5, 0, -0.5],
        [0, -0.5, 1, -0.5],
        pytest.approx([third, third, third, -1]),
        [0, 0, 0, 1],
    ] or rows.matrix[4].tolist() == pytest.approx([third, third, third, -1])
    assert rows.targets.tolist() == [1, 1, 1, 1, 1, -1]
    assert rows.is_single.tolist() == [False] * 5 + [True]
    assert rows.picks == tuple(picks[i].id for i in (0, 1, 2, 2, 2, 4))


@pytest.mark.parametrize("kinds", [KINDS, ("duel",), ("stars", "like")])
def test_at_the_solution_every_row_is_in_balance(kinds):
    rows, seen = problem(kinds)
    gram = gram_of(seen @ seen.T, rows)
    weights = torch.rand(len(rows), generator=torch.Generator().manual_seed(1)).double() * 2
    strength = 0.3
    beta = solve(gram, rows, strength, weights, tolerance=1e-12)
    u = (gram @ beta).requires_grad_()
    logistic = torch.nn.functional.softplus(-rows.targets * u)
    loss = torch.where(rows.is_number, (u - rows.targets) ** 2 / 2, logistic)
    (slope,) = torch.autograd.grad((weights * loss).sum(), u)
    assert torch.allclose(strength * beta, -slope, atol=1e-9)


def test_the_dual_form_is_the_primal_one():
    rows, seen = problem(("duel", "hearts"))
    strength = 2.0
    beta = solve(gram_of(seen @ seen.T, rows), rows, strength, tolerance=1e-12)
    weights = primal(seen, rows.matrix.T @ beta, None)[:, 0].requires_grad_()
    margins = rows.matrix @ (seen @ weights)
    objective = torch.nn.functional.softplus(-margins).sum() + strength / 2 * weights @ weights
    (slope,) = torch.autograd.grad(objective, weights)
    assert slope.abs().max() < 1e-9 and weights.abs().max() > 0.01


def test_stars_alone_are_ridge_regression_with_a_free_level():
    rows, seen = problem(("stars",))
    gram = gram_of(seen @ seen.T, rows)
    closed = torch.linalg.solve(gram + 0.7 * torch.eye(len(gram)).double(), rows.targets)
    assert torch.allclose(solve(gram, rows, 0.7), closed, atol=1e-9)
    assert rows.targets.mean().abs() < 1e-9


def test_with_captions_the_weights_give_the_kernel():
    rows, seen = problem(("duel",))
    texts = [f"a {'red' if i % 2 else 'blue'} thing {i % 7}" for i in range(len(seen))]
    common = mean_caption(texts)
    vectors = caption_vectors(texts, common)
    duals = torch.randn(len(seen)).double()
    kernel = (seen @ seen.T) * (0.5 + vectors @ vectors.T)
    weights = primal(seen, duals, vectors)
    factors = torch.cat([torch.ones(len(seen), 1).double(), vectors], 1)
    assert torch.allclose(kernel @ duals, ((seen @ weights) * factors).sum(1), atol=1e-6)


@pytest.fixture(scope="module")
def fitted():
    raw, likes = world()
    return fit_picks(picks_of(likes, ("duel", "best"), 160), numbers(raw))


def test_it_learns_a_taste_and_says_so(fitted):
    raw, likes = (part[:200] for part in world(seed=1))
    scores = fitted.head.score(raw, [""] * len(raw))[0]
    assert torch.corrcoef(torch.stack([scores, likes]))[0, 1] > 0.6
    report = fitted.report
    assert report.verdict == "better than chance" and report.agreement.low > 0.6
    assert [look.clicks for look in report.looks] == [40, 80, 160]
    assert report.words().startswith("160 picks: it agrees with ")
    assert report.words().endswith("chance is 50 %. Better than chance.")
    liked = [int(picture, 16) for picture in report.most_liked]
    disliked = [int(picture, 16) for picture in report.least_liked]
    seen_likes = world()[1]
    assert seen_likes[liked].mean() > 1 and seen_likes[disliked].mean() < -1


def test_scores_are_in_deviations_of_what_was_shown_and_the_same_in_any_batch(fitted):
    raw, _ = world()
    picks = picks_of(world()[1], ("duel", "best"), 160)
    places = list({int(one.picture, 16): None for pick in picks for one in pick.shown})
    scores = fitted.head.score(raw[places], [""] * len(places))[0]
    assert abs(float(scores.mean())) < 1e-3
    assert float(scores.std(correction=0)) == pytest.approx(1, abs=1e-3)
    alone = torch.cat([fitted.head.score(row[None], [""]) for row in raw[:9]], 1)
    assert torch.equal(fitted.head.score(raw[:9].flip(0), [""] * 9).flip(1), alone)


def test_the_ensemble_is_surer_where_there_were_more_picks(monkeypatch):
    monkeypatch.setattr(validation, "LAMBDAS", (0.3,))  # else few picks get a stronger one
    few_numbers = torch.zeros(COUNT)
    few_numbers[[3, 20, 50, 70]] = 1.0  # else there is more to learn than picks
    raw, likes = world()
    raw, other = raw * few_numbers, world(seed=2)[0][:200] * few_numbers
    doubts = []
    for count in (24, 160):
        head = fit_picks(picks_of(likes, ("duel",), count), numbers(raw)).head
        scores = head.score(other, [""] * len(other))
        doubts.append(float(scores.std(0).mean() / scores[0].std()))
    assert doubts[1] < 0.7 * doubts[0]


def test_it_is_fitted_and_judged_the_same_way_every_time(tmp_path):
    raw, likes = world()
    picks = picks_of(likes, KINDS, 45)
    files = [save_head(fit_picks(picks, numbers(raw)).head, tmp_path / f"{i}.safetensors")
             for i in range(2)]  # fmt: skip
    assert files[0].read_bytes() == files[1].read_bytes()


def test_later_picks_do_not_change_what_an_earlier_look_said():
    raw, likes = world()
    picks = picks_of(likes, ("duel",), 90)
    early, late = (fit_picks(picks[:n], numbers(raw)).report.looks for n in (45, 90))
    assert early == late[:1] and len(late) == 2


def test_the_interval_is_that_of_as_many_clicks_as_they_are_worth():
    """Hearts and likes share what they are compared with, and are worth less than duels."""
    raw, likes = world()
    spread = {}
    for kind in ("duel", "hearts", "like"):
        learnt = learn(picks_of(likes, (kind,), 40), numbers(raw))
        gram = gram_of(learnt.seen @ learnt.seen.T, learnt.rows)
        spread[kind] = dispersion(gram, learnt.rows, folds(learnt.rows))
        said = learnt.agreement
        assert said == wilson(said.agreed, said.clicks, said.clicks / spread[kind])
    assert 1.2 < spread["duel"] < min(spread["hearts"], spread["like"]) - 0.1


@pytest.mark.slow
@pytest.mark.parametrize("kinds", [("duel",), ("best", "hearts"), ("like", "stars")])
def test_one_who_clicks_at_random_is_not_called_understood(kinds):
    """At the first look by its share: of 50, at most as many as 2 % allow in 99 of 100 cases."""
    raw = world()[0][: 60 * PICTURES]
    place = {(shown(i).picture, shown(i).prompt): i for i in range(len(raw))}
    seen = scaling(raw)(raw)
    clicks, limit = LOOKS[0]
    chances = []
    for seed in range(50):
        rows = rows_of(picks_of(None, kinds, 60, seed), place, len(raw)).first(clicks)
        gram = gram_of(seen @ seen.T, rows)
        chances.append(chance_of(gram, rows, folds(rows), permutations=149))
    chances = torch.tensor(chances)
    assert int((chances <= limit).sum()) <= 4
    assert 0.3 < float(chances.mean()) < 0.7
    assert sum(limit for _, limit in LOOKS) <= 0.05


def test_words_say_what_is_known_and_that_it_is_not_enough(fitted):
    report = replace(fitted.report, picks=34, agreement=wilson(22, 34), looks=())
    assert report.words() == (
        "34 picks: it agrees with 22 of your 34 clicks when they were left out: 65 % (on new "
        "prompts 48 to 79 %); chance is 50 %. Too few to tell; it is judged from 40 clicks on."
    )
    few = replace(report, left_out_by="pick").words()
    assert "(on new pictures 48 to 79 %)" in few and "on new prompts it may do worse" in few
    judged = {n: replace(report, agreement=wilson(n / 2, n)).verdict for n in (39, 40, 159, 160)}
    assert judged == {39: "too few to tell", 40: "cannot tell yet", 159: "cannot tell yet",
                      160: "no sign"}  # fmt: skip
    none = replace(report, agreement=wilson(0, 0))
    assert "none of them says which picture is better" in none.words()
    assert json.loads(json.dumps(report.to_json()))["verdict"] == "too few to tell"


def test_the_own_agreement_is_counted_on_duels_asked_again_in_any_order():
    a, b, c = shown(0), shown(1), shown(2)
    picks = [new_pick("duel", pair, answer) for pair, answer in
             (((a, b), 0), ((b, a), 1), ((a, c), 0), ((a, b), 1), ((b, c), 0))]  # fmt: skip
    assert (own_agreement(picks).agreed, own_agreement(picks).clicks) == (1, 2)


def test_picks_of_one_prompt_are_left_out_together_and_of_too_few_one_by_one():
    rows, _ = problem(("duel",), 90)
    parts = folds(rows)
    for group in set(rows.groups):
        assert len({int(parts[i]) for i, other in enumerate(rows.groups) if other == group}) == 1
    assert set(parts.tolist()) == {0, 1, 2, 3, 4}
    same = replace(rows, groups=("one",) * len(rows))
    assert set(folds(same).tolist()) == {0, 1, 2, 3, 4}


def test_picks_that_say_nothing_are_refused_and_gone_pictures_are_counted():
    raw, likes = world()
    with pytest.raises(ValueError, match="none of its 2 picks says which picture is better"):
        fit_picks(picks_of(likes, ("same",), 2), numbers(raw))
    some = numbers(raw)
    del some[picks_of(likes, ("duel",), 30)[0].shown[0].picture]
    report = fit_picks(picks_of(likes, ("duel",), 30), some).report
    assert report.missing_pictures == 1 and "1 pictures are gone" in report.words()


def test_a_taste_that_depends_on_the_caption_is_seen():
    raw, _ = world()
    words = ["dawn" if i // PICTURES % 2 else "night" for i in range(len(raw))]
    likes = raw[:, 3] * torch.tensor([1.0 if word == "dawn" else -1.0 for word in words])
    picks = [
        replace(p, shown=tuple(replace(s, prompt=f"{words[int(s.picture, 16)]} {s.prompt}")
                               for s in p.shown))
        for p in picks_of(likes, ("best",), 200)
    ]  # fmt: skip
    head = fit_picks(picks, numbers(raw)).head
    assert head.reads_captions
    other = world(seed=3)[0][:200]
    dawn, night = (head.score(other, [f"{w} prompt 77"] * len(other))[0] for w in ("dawn", "night"))
    assert torch.corrcoef(torch.stack([dawn, other[:, 3]]))[0, 1] > 0.3
    assert torch.corrcoef(torch.stack([night, other[:, 3]]))[0, 1] < -0.3


def test_a_head_comes_back_from_its_file(fitted, tmp_path):
    file = save_head(fitted.head, tmp_path / "a" / "head.safetensors")
    read = load_head(file)
    raw = world(seed=4)[0][:50]
    texts = [f"prompt {i}" for i in range(len(raw))]
    assert torch.equal(read.score(raw, texts), fitted.head.score(raw, texts))
    assert read.report == json.loads(json.dumps(fitted.report.to_json()))
    with pytest.raises(ValueError, match="must end in .safetensors"):
        save_head(fitted.head, tmp_path / "head.pt")


def damage(file, tensors=None, **facts):
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        metadata = {**opened.metadata(), **facts}
    save_file({**load_file(file), **(tensors or {})}, file, metadata)


@pytest.mark.parametrize(
    ("tensors", "facts", "words"),
    [
        ({}, {"format": "other"}, "its format is 'other', and it must be 'chunk-grpo taste 1'"),
        ({}, {"statistics": "colours-9"}, "was fitted on statistics 'colours-9'"),
        ({}, {"report": "{"}, "its report is no JSON object"),
        ({"mean": torch.zeros(3)}, {}, "is damaged"),
        ({"more": torch.zeros(3)}, {}, "is damaged"),
        ({"mean": torch.full((COUNT,), torch.nan)}, {}, "finite float32 tensors"),
        ({}, {"encoder_digest": "abc"}, "is damaged"),
    ],
)
def test_a_file_that_is_no_head_is_refused_by_name(fitted, tmp_path, tensors, facts, words):
    file = save_head(fitted.head, tmp_path / "head.safetensors")
    damage(file, tensors, **facts)
    with pytest.raises(ValueError, match=words) as error:
        load_head(file)
    assert str(file) in str(error.value)


def test_files_of_others_are_no_heads(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no head"):
        load_head(tmp_path / "none.safetensors")
    (tmp_path / "x.safetensors").write_bytes(b"not tensors")
    with pytest.raises(ValueError, match=r"no whole \.safetensors"):
        load_head(tmp_path / "x.safetensors")
    save_file({"a": torch.zeros(2)}, tmp_path / "lora.safetensors")
    with pytest.raises(ValueError, match="no head of a taste that can be read"):
        load_head(tmp_path / "lora.safetensors")


def test_a_report_of_full_agreement_has_an_interval_around_it():
    for clicks in range(1, 400):
        for agreed in (0, clicks):
            interval = wilson(agreed, clicks, 0.58 * clicks)
            assert interval.low <= interval.share <= interval.high


def test_clicks_are_those_that_say_which_picture_is_better():
    four = [shown(i) for i in range(4)]
    picks = [
        new_pick("duel", four[:2], 0),
        new_pick("same", four[2:], None),
        new_pick("best", four, 3),
        new_pick("hearts", four, [1, 0, 1, -1]),
        new_pick("like", four[:1], True),
    ]
    assert [clicks_in([pick]) for pick in picks] == [1, 0, 1, 3, 1]
    assert clicks_in(picks) == 6 and clicks_in([]) == 0
