"""Comparing two evaluations: the numbers by hand, the table that holds them, the pictures."""

from __future__ import annotations

import math

import pytest
import torch
from fakes import PROMPTS, Brightness, ToyPolicy

from chunk_grpo_core.measure.evaluate import (
    Evaluation,
    evaluate,
    paired_gain,
    prompt_gains,
    win_rate,
)
from chunk_grpo_core.method.cancel import Cancelled
from chunk_grpo_core.method.schedule import shifted_grid
from chunk_grpo_core.watch.comparison import Comparison, pair_grid
from chunk_grpo_core.watch.plots import plot_paired_gains

NAN = math.nan


def evaluation(rewards, prompts="abc", **extras):
    rewards = torch.tensor(rewards)
    extras = {name: torch.tensor(values) for name, values in extras.items()}
    return Evaluation(tuple(prompts), rewards, extras, torch.rand(len(rewards), 8, 8, 3))


def three_prompts():
    """Gains 0.5, 0.1 and 0.3; of 5 valid pairs 3 are better and 2 are equal."""
    before = evaluation([[0.0, 1.0], [0.5, 0.5], [0.2, NAN]], size=[[1.0, 3.0]] * 3, b=[[0.0]] * 3)
    after = evaluation([[1.0, 1.0], [0.5, 0.7], [0.5, 9.0]], size=[[2.0, 2.0]] * 3)
    return before, after


def test_gain_and_win_rate_are_those_computed_by_hand():
    before, after = three_prompts()
    assert prompt_gains(before, after).tolist() == pytest.approx([0.5, 0.1, 0.3])
    assert win_rate(before, after) == pytest.approx((3 + 2 / 2) / 5)
    assert win_rate(after, before) == pytest.approx((0 + 2 / 2) / 5)
    assert win_rate(before, after, "size") == 0.5
    size = paired_gain(before, after, "size")
    assert (size.mean, size.low, size.high) == (0.0, 0.0, 0.0)


def test_other_numbers_of_pictures_are_refused():
    before, _ = three_prompts()
    with pytest.raises(ValueError, match="2 pictures of each prompt and the other 1"):
        win_rate(before, evaluation([[0.0]] * 3))
    with pytest.raises(ValueError, match="different prompts"):
        prompt_gains(before, evaluation([[0.0, 0.0]] * 3, "abd"))


def test_the_table_holds_every_score_and_every_prompt():
    before, after = three_prompts()
    comparison = Comparison(before=before, after=after, reward="taste", noise_seed=7)
    scores, conditions, heading, prompts = comparison.table().split("\n\n")
    # Interval: std 0.2, half width 4.302653 * 0.2 / sqrt(3); means are over valid pictures.
    assert scores.splitlines() == [
        "- taste: gain +0.3000",
        "  - 95 % interval -0.1968 to +0.7968",
        "  - base 0.4400, LoRA 2.1167",
        "  - win rate 0.80",
        "- size: gain +0.0000",
        "  - 95 % interval +0.0000 to +0.0000",
        "  - base 2.0000, LoRA 2.0000",
        "  - win rate 0.50",
    ]
    assert "3 prompts, 2 pictures of each, noise seeds 7 to 9" in conditions
    assert conditions.endswith("pairs without a score: 1.")
    assert heading == "Gain of every prompt (base to LoRA):"
    assert prompts.splitlines() == [
        "- +0.5000 (0.5000 to 1.0000): a",
        "- +0.1000 (0.5000 to 0.6000): b",
        "- +0.3000 (0.2000 to 4.7500): c",
    ]


def test_small_scores_have_as_many_digits_in_the_table_as_in_their_interval():
    before = evaluation([[0.000010], [0.000020]], "ab")
    after = evaluation([[0.000013], [0.000024]], "ab")
    table = Comparison(before=before, after=after, reward="tiny", noise_seed=0).table()
    assert "- tiny: gain +0.0000035" in table and "base 0.0000150, LoRA 0.0000185" in table
    assert "- +0.0000040 (0.0000200 to 0.0000240): b" in table


def test_no_line_of_the_scores_wraps_in_a_narrow_node():
    before, after = three_prompts()
    table = Comparison(before=before, after=after, reward="taste", noise_seed=7).table()
    assert max(map(len, table.split("\n\n")[0].splitlines())) <= 40
    assert "|" not in table  # cells of a Markdown table wrap, each by itself


def test_rows_and_summary_hold_the_numbers_of_the_table():
    before, after = three_prompts()
    comparison = Comparison(before=before, after=after, reward="taste", noise_seed=7)
    rows = comparison.rows()
    lines = comparison.table().split("\n\n")[-1].splitlines()
    assert lines == [
        f"- {r['gain']:+.4f} ({r['base']:.4f} to {r['lora']:.4f}): {r['prompt']}" for r in rows
    ]
    assert [row["parts"] for row in rows] == [{"size": {"base": 2.0, "lora": 2.0, "gain": 0.0}}] * 3
    assert rows[0]["shown"] == [0.0, 1.0]  # of the first picture, not the mean
    summary = comparison.summary()
    assert summary["gain"] == pytest.approx(0.3)
    assert (summary["low"], summary["high"]) == pytest.approx((-0.1968, 0.7968), abs=1e-4)
    assert (summary["wins"], summary["prompts"], summary["pictures"]) == (3, 3, 2)


def test_a_prompt_of_which_no_pair_is_scored_has_no_numbers():
    before, after = evaluation([[0.0], [1.0], [NAN]]), evaluation([[1.0], [1.0], [2.0]])
    table = Comparison(before=before, after=after, reward="r", noise_seed=0).table()
    assert table.endswith("- no pair scored: c")


def test_a_prompt_cannot_break_the_list():
    before, after = (evaluation([[0.0], [1.0]], ["a|b\n- c", "c"]) for _ in range(2))
    table = Comparison(before=before, after=after, reward="r", noise_seed=0).table()
    assert "- +0.0000 (0.0000 to 0.0000): a|b - c\n" in table


@pytest.mark.parametrize("count", [2, 41])
def test_the_plot_shows_gains_losses_and_the_theme(count):
    gains = torch.linspace(-1.0, 2.0, count)[:, None]
    before = evaluation(torch.zeros(count, 1).tolist(), [f"{i} {'x' * 60}" for i in range(count)])
    after = evaluation(gains.tolist(), before.prompts)
    light, dark = (plot_paired_gains(before, after, dark=dark) for dark in (False, True))
    for plot in (light, dark):
        assert plot.ndim == 3 and plot.shape[2] == 3 and min(plot.shape[:2]) > 200
        for colour in ((0x00, 0x9E, 0x73), (0xD5, 0x5E, 0x00)):  # better, worse
            near = (plot - torch.tensor(colour) / 255.0).abs().amax(2) < 0.02
            assert near.any(), colour
    assert float(light.mean()) > 0.8 and float(dark.mean()) < 0.3


def test_prompts_without_a_valid_pair_are_left_out_of_the_plot():
    before = evaluation([[0.0], [NAN], [0.0]])
    after = evaluation([[1.0], [1.0], [2.0]])
    alone = plot_paired_gains(evaluation([[0.0]] * 2, "ac"), evaluation([[1.0], [2.0]], "ac"))
    assert torch.equal(plot_paired_gains(before, after), alone)


def test_pairs_stand_one_above_the_other():
    before, after = (evaluation([[0.0]] * 3) for _ in range(2))
    grid = pair_grid(before, after)
    assert grid.shape[1] > 3 * 8 * 10 and grid.shape[0] > 2 * 8 * 10
    scale = 160 // 8
    top = grid[2 : 2 + 8 * scale : scale, 2 : 2 + 8 * scale : scale]
    torch.testing.assert_close(top, before.images[0], rtol=0, atol=1 / 255)
    half = grid.shape[0] // 2
    below = grid[half + 1 : half + 1 + 8 * scale : scale, 2 : 2 + 8 * scale : scale]
    torch.testing.assert_close(below, after.images[0], rtol=0, atol=1 / 255)


def test_cancel_is_heard_between_the_prompts_that_are_scored():
    policy, reward, grid = ToyPolicy(), Brightness(), shifted_grid(4)
    scored = []

    class Counting:
        name = "counting"
        fingerprint = {}

        def score(self, images, examples):
            scored.append(examples[0].text)
            return reward.score(images, examples)

    def cancel_after_the_first():
        if scored:
            raise Cancelled

    with pytest.raises(Cancelled):
        evaluate(
            policy, Counting(), PROMPTS[:3], grid, seeds=2, check_cancel=cancel_after_the_first
        )
    assert scored == [PROMPTS[0]]


def test_progress_counts_scoring_too_and_is_done_only_when_all_is_scored():
    """Of 4 steps and 1 for scoring, or 4 and 1 + 8 where the reward asks the model."""

    class Judge(Brightness):
        units_per_picture = 8

    grid = shifted_grid(4, shift=3.0)
    for reward, of_drawing in ((Brightness(), 4 / 5), (Judge(), 4 / 13)):
        told = []
        evaluate(ToyPolicy(), reward, PROMPTS[:2], grid, seeds=1, progress=told.append)
        assert told == pytest.approx([of_drawing / 2, of_drawing, (1 + of_drawing) / 2, 1.0])
