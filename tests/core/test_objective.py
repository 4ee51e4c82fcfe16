"""The objective as a pure function: hand-made numbers, and formulas re-derived from the papers.

Legend: G samples in a group, K chunks, N - 1 trainable steps.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from chunk_grpo_core.method.chunk_statistics import chunk_statistics
from chunk_grpo_core.method.chunks import ChunkPlan
from chunk_grpo_core.method.objective import (
    GroupFacts,
    ObjectiveConfig,
    StepTerms,
    group_loss,
    is_held_back,
    log_ratios,
    step_weights,
)
from chunk_grpo_core.method.rules import SdeConfig
from chunk_grpo_core.method.schedule import shifted_grid

WIDE = ObjectiveConfig(clip_low=0.15, clip_high=0.15)


def group(ratio, advantages, plan, drawn=None, **facts):
    """Terms and facts of a group with the given step ratios (G, N - 1)."""
    ratio = torch.as_tensor(ratio)
    steps = ratio.shape[1]
    zero = torch.zeros_like(ratio)
    known = {
        "std": torch.ones(steps),
        "dt": -torch.ones(steps),
        "v_factor": torch.ones(steps),
        "noise_level": torch.ones(steps),
        "old_log_p": zero,
        "drawn": torch.ones(len(ratio), plan.count, dtype=torch.bool) if drawn is None else drawn,
        **facts,
    }
    terms = StepTerms(ratio.log().requires_grad_(True), zero.clone(), zero.clone())
    return terms, GroupFacts(plan=plan, advantages=torch.as_tensor(advantages), **known)


@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_descending_the_loss_follows_the_sign_of_the_advantage(advantage):
    terms, facts = group([[1.0, 1.0]], [advantage], ChunkPlan((1, 1)))
    group_loss(terms, facts, WIDE).backward()
    assert torch.allclose(terms.log_p.grad, torch.full((1, 2), -advantage / 2))


def test_chunk_ratio_is_the_geometric_mean_of_its_steps():
    terms, facts = group([[2.0, 4.0, 1.0, 0.5]], [1.0], ChunkPlan((1, 2, 1)))
    assert torch.allclose(log_ratios(terms, facts, WIDE).exp(), torch.tensor([[2.0, 2.0, 0.5]]))


def test_loss_averages_drawn_chunks_then_samples():
    drawn = torch.tensor([[True, False], [True, True]])
    terms, facts = group([[1.1, 5.0], [0.9, 0.8]], [2.0, -1.0], ChunkPlan((1, 1)), drawn)
    # Gains: 1.1 * 2 alone; then the mean of -0.9 and min(-0.8, -0.85).
    expected = -(2.2 + (-0.9 - 0.85) / 2) / 2
    assert group_loss(terms, facts, WIDE).item() == pytest.approx(expected, rel=1e-6)


def test_step_ratios_inside_chunks_are_clipped_one_by_one():
    config = replace(WIDE, ratio="step")
    terms, facts = group([[1.0, 1.5, 0.9]], [1.0], ChunkPlan((1, 2)))
    assert group_loss(terms, facts, config).item() == pytest.approx(-(1.0 + (1.15 + 0.9) / 2) / 2)
    stats = chunk_statistics(terms, facts, facts.drawn, config, 64)
    assert stats.clipped.tolist() == [0.0, 0.5]
    assert stats.ratio.tolist() == pytest.approx([1.0, 1.2])
    assert stats.deviation.tolist() == pytest.approx([0.0, 0.5])


def test_statistics_of_known_ratios():
    ratio = torch.tensor([[1.1, 5.0], [0.8, 1.3]])
    drawn = torch.tensor([[True, False], [True, True]])
    config = ObjectiveConfig(clip_low=0.15, clip_high=0.05)
    terms, facts = group(ratio, [1.0, -1.0], ChunkPlan((1, 1)), drawn)
    stats = chunk_statistics(terms, facts, drawn, config, 64)
    assert stats.count.tolist() == [2, 1] and stats.clipped.tolist() == [2, 0]
    assert stats.ratio.tolist() == pytest.approx([1.9, 1.3])
    assert stats.deviation.tolist() == pytest.approx([0.2, 0.3])
    square = ratio.log().square()
    square = torch.stack([square[:, 0].mean(), square[1, 1]])
    kl = ((1 + 64**2 * square).sqrt() - 1) / 64
    assert stats.kl.tolist() == pytest.approx([2 * float(kl[0]), float(kl[1])], rel=1e-4)
    both = stats + stats
    assert both.count.tolist() == [4, 2] and both.deviation.tolist() == stats.deviation.tolist()


@pytest.mark.parametrize("ratio", ["chunk", "step"])
@pytest.mark.parametrize("kl", [1e-7, 1e-4, 0.01])
def test_the_kl_that_is_shown_is_the_kl_of_the_gaussians(ratio, kl):
    """Per dimension and step, whatever the length of the chunks; far below and above 1 / D."""
    size, plan = 400, ChunkPlan((1, 3))
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(500, 4, size, generator=generator)
    shift = torch.full((size,), math.sqrt(2 * kl))
    log_ratio = ((noise.square() - (noise - shift).square()) / 2).mean(2)
    terms, facts = group(log_ratio.exp(), [1.0] * 500, plan)
    terms = terms._replace(log_p=facts.old_log_p + log_ratio)
    config = ObjectiveConfig(ratio=ratio)
    stats = chunk_statistics(terms, facts, facts.drawn, config, size)
    assert (stats.kl / stats.count).tolist() == pytest.approx([kl, kl], rel=0.15)
    exact = terms._replace(kl_old=torch.full((500, 4), kl))
    stats = chunk_statistics(exact, facts, facts.drawn, replace(config, kl_old=1.0), size)
    assert (stats.kl / stats.count).tolist() == pytest.approx([kl, kl], rel=1e-5)


def test_normalised_ratio_is_the_projection_of_the_shift_on_the_noise():
    """GRPO-Guard: std (log r + KL) = <mean_new - mean_old, x_s - mean_old> / (D std)."""
    generator = torch.Generator().manual_seed(3)
    shape, std = (5, 3, 40), torch.tensor([0.5, 0.2, 0.05])
    old = torch.randn(shape, generator=generator, dtype=torch.float64)
    new = old + 0.01 * torch.randn(shape, generator=generator, dtype=torch.float64)
    noise = torch.randn(shape, generator=generator, dtype=torch.float64)
    x_s = old + std[:, None] * noise
    log_p, old_log_p = (
        Normal(mean, std[:, None].double()).log_prob(x_s).mean(2) for mean in (new, old)
    )
    kl = kl_divergence(Normal(old, std[:, None].double()), Normal(new, std[:, None].double()))
    plan = ChunkPlan((1, 1, 1))
    _, facts = group(torch.ones(5, 3), torch.ones(5), plan, std=std.double(), old_log_p=old_log_p)
    terms = StepTerms(log_p, kl.mean(2), torch.zeros(5, 3))
    expected = ((new - old) * (x_s - old)).mean(2) / std
    found = log_ratios(terms, facts, ObjectiveConfig(ratio_norm=True))
    assert torch.allclose(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("steps", "shift", "eta", "factor"),
    [(10, 3.0, 0.7, 2.25), (10, math.exp(1.15), 0.9, 1.73)],
    ids=["SD3", "FLUX"],
)
def test_tempflow_weights_have_the_factor_of_the_official_code(steps, shift, eta, factor):
    """train_sd3_pr.py multiplies the noise std by 2.25, train_flux_pr.py by 1.73."""
    grid, sde = shifted_grid(steps, shift), SdeConfig(eta=eta)
    pairs = grid.pairs()[:-1]
    std = torch.tensor([sde.std(t, s) for t, s in pairs])
    plan = ChunkPlan((1,) * len(pairs))
    _, facts = group(torch.ones(1, len(pairs)), [1.0], plan, std=std)
    weights = step_weights(facts, ObjectiveConfig(step_weights="tempflow"))
    assert torch.allclose(weights, std * factor, rtol=5e-3)


def test_guard_weights_are_inverse_step_lengths_of_mean_one():
    dt = -torch.tensor([0.1, 0.2, 0.4])
    _, facts = group(torch.ones(1, 3), [1.0], ChunkPlan((1, 2)), dt=dt)
    weights = step_weights(facts, ObjectiveConfig(step_weights="guard"))
    assert torch.allclose(weights * dt.abs(), (weights * dt.abs())[0].expand(3))
    assert float(weights.mean()) == pytest.approx(1.0)


@pytest.mark.parametrize("ratio", ["chunk", "step"])
def test_weights_multiply_gains_and_a_chunk_takes_the_mean(ratio):
    config = replace(WIDE, ratio=ratio, step_weights="guard")
    terms, facts = group(
        [[1.0, 1.0, 1.0]], [1.0], ChunkPlan((1, 2)), dt=-torch.tensor([1.0, 0.5, 0.25])
    )
    weights = torch.tensor([1.0, 2.0, 4.0]) * 3 / 7
    expected = -float((weights[0] + weights[1:].mean()) / 2)
    assert group_loss(terms, facts, config).item() == pytest.approx(expected)


def test_kl_mask_holds_back_what_moves_on_and_is_far():
    """Flow-DPPO: drop if KL > tau and (r > 1, A > 0 or r < 1, A < 0)."""
    config = ObjectiveConfig(trust_region="kl-mask", kl_threshold=1e-3)
    ratios = [[1.5, 0.5], [1.5, 0.5], [1.5, 0.5]]
    terms, facts = group(ratios, [1.0, -1.0, 1.0], ChunkPlan((1, 1)))
    terms = terms._replace(kl_old=torch.tensor([[1e-2, 1e-2], [1e-2, 1e-2], [1e-4, 1e-4]]))
    held = is_held_back(terms, facts, config)
    assert held.tolist() == [[True, False], [False, True], [False, False]]
    group_loss(terms, facts, config).backward()
    assert (terms.log_p.grad == 0).tolist() == held.tolist()


def test_penalties_add_their_mean_over_drawn_chunks():
    drawn = torch.tensor([[True, False], [True, True]])
    terms, facts = group([[1.1, 5.0], [0.9, 0.8]], [0.0, 0.0], ChunkPlan((1, 1)), drawn)
    step = {"v_factor": torch.tensor([3.0, -2.0]), "std": torch.tensor([0.5, 0.2])}
    facts = replace(facts, **step, noise_level=torch.tensor([1.0, 0.8]))
    terms = terms._replace(
        kl_old=torch.tensor([[0.1, 0.2], [0.3, 0.4]]), gap=torch.tensor([[1.0, 9.0], [2.0, 4.0]])
    )
    mean = lambda values: (values[0, 0] + (values[1, 0] + values[1, 1]) / 2) / 2  # noqa: E731
    cases = {
        ("kl_old", "velocity"): terms.kl_old,
        ("kl_ref", "velocity"): terms.gap,
        ("kl_ref", "flow-grpo"): terms.gap * torch.tensor([9 / 2, 4 / (2 * 0.64)]),
        ("kl_ref", "exact"): terms.gap * torch.tensor([9 / (2 * 0.25), 4 / (2 * 0.04)]),
    }
    for (name, kind), values in cases.items():
        loss = group_loss(terms, facts, replace(WIDE, **{name: 0.3}, kl_type=kind))
        assert loss.item() == pytest.approx(0.3 * float(mean(values)), rel=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"clip_low": 0.0}, "objective.clip_low is 0.0; it must be a number from 1e-07 to 0.99"),
        ({"clip_low": 1.0}, "objective.clip_low is 1.0"),
        ({"ratio": "word"}, "objective.ratio is 'word'; it must be one of chunk, step"),
        ({"trust_region": "none"}, "objective.trust_region is 'none'; it must be one of clip"),
        ({"step_weights": "x"}, "objective.step_weights is 'x'; it must be one of equal, guard"),
        ({"clip_high": 0.0}, "objective.clip_high is 0.0; it must be a number from 1e-07 to 10"),
        (
            {"kl_threshold": 0.0},
            "objective.kl_threshold is 0.0; it must be a number from 1e-12 to 100",
        ),
        ({"kl_ref": -1.0}, r"objective.kl_ref is -1.0; it must be a number from 0 to 1e\+06"),
        ({"kl_old": math.nan}, r"objective.kl_old is nan; it must be a number from 0 to 1e\+06"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ObjectiveConfig(**settings)
