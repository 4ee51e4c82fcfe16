"""What the grids get as JSON: no nan, not too many pictures, the files of the right pictures."""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch


def greys(count):
    """Pictures 4 x 4, each of its own grey."""
    return torch.linspace(0, 1, count)[:, None, None, None].expand(count, 4, 4, 3)


def level(file):
    """The grey of a file in ComfyUI's temporary folder."""
    import folder_paths
    from PIL import Image

    path = Path(folder_paths.get_temp_directory(), file["subfolder"], file["filename"])
    with Image.open(path) as picture:
        return picture.getpixel((0, 0))[0]


def test_a_score_that_is_not_finite_is_null_and_never_zero(lab):
    rows = lab.module("nodes.score_rows")
    base = lab.module("chunk_grpo_core.method.reward")
    values = torch.tensor([0.5, math.nan, math.inf])
    batch = base.RewardBatch(values, torch.ones(3, dtype=torch.bool), {"size": torch.ones(3)})
    made = rows.score_rows(greys(3), ["a", "b", "c"], batch)
    assert json.loads(json.dumps(made, allow_nan=False)) == made
    assert [row["score"] for row in made["chunk_grpo_scores"]] == [0.5, None, None]
    assert [row["parts"] for row in made["chunk_grpo_scores"]] == [{"size": 1.0}] + [
        {"size": None}
    ] * 2
    assert made["chunk_grpo_total"] == [3]


def test_the_best_and_the_worst_are_kept_with_their_own_files(lab):
    rows = lab.module("nodes.score_rows")
    base = lab.module("chunk_grpo_core.method.reward")
    scores = torch.tensor([0.3, 0.9, 0.5, 0.1, 0.7])
    assert rows.extremes(scores, 3) == [1, 3, 4]
    assert rows.extremes(scores, 5) == rows.extremes(scores, 9) == [0, 1, 2, 3, 4]
    before, rows.PICTURES_AT_MOST = rows.PICTURES_AT_MOST, 3
    try:
        batch = base.RewardBatch(scores, torch.ones(5, dtype=torch.bool))
        made = rows.score_rows(greys(5), list("abcde"), batch)
    finally:
        rows.PICTURES_AT_MOST = before
    kept = made["chunk_grpo_scores"]
    assert [(row["number"], row["prompt"]) for row in kept] == [(1, "b"), (3, "d"), (4, "e")]
    assert [level(row["picture"]) for row in kept] == [63, 191, 255]
    assert made["chunk_grpo_total"] == [5]


def test_a_pair_has_the_pictures_of_base_and_lora_in_this_order(lab):
    rows = lab.module("nodes.score_rows")
    evaluation = lab.module("chunk_grpo_core.measure.evaluate").Evaluation
    comparison = lab.module("chunk_grpo_core.watch.comparison").Comparison
    scores = [torch.tensor([[0.1], [math.nan], [0.2]]), torch.tensor([[0.4], [0.5], [0.1]])]
    both = [
        evaluation(("a", "b", "c"), score, {}, pictures)
        for score, pictures in zip(scores, greys(6).split(3), strict=True)
    ]
    pair = comparison(before=both[0], after=both[1], reward="taste", noise_seed=0)
    made = rows.pair_rows(pair)
    json.dumps(made, allow_nan=False)
    kept = made["chunk_grpo_pairs"]
    assert [row["prompt"] for row in kept] == ["a", "b", "c"]
    assert kept[1]["gain"] is kept[1]["base"] is kept[1]["shown"][0] is None
    assert [[level(file) for file in row["pictures"]] for row in kept] == [
        [0, 153], [51, 204], [102, 255],
    ]  # fmt: skip
    (gain,) = made["chunk_grpo_gain"]
    assert (gain["prompts"], gain["wins"], gain["win_rate"]) == (3, 1, 0.5)


def test_pictures_with_opacity_lie_on_white_and_broken_ones_are_refused(lab):
    node = lab.module("nodes.rewards").ScoreImages
    reward = lab.module("chunk_grpo_core.rewards").load_reward("brightness")
    clear = torch.cat([torch.zeros(1, 8, 8, 3), torch.full((1, 8, 8, 1), 0.25)], dim=-1)
    mean = node.execute(reward, clear, "").args[0]
    assert abs(mean - 0.75) < 0.01
    for broken, words in (
        (torch.full((1, 8, 8, 3), float("nan")), "images holds NaN"),
        (torch.zeros(1, 8, 8, 2), "not (1, 8, 8, 2)"),
        (torch.zeros(0, 8, 8, 3), "not (0, 8, 8, 3)"),
    ):
        try:
            node.execute(reward, broken, "")
        except ValueError as error:
            assert words in str(error)
        else:
            raise AssertionError(f"accepted: {words}")
