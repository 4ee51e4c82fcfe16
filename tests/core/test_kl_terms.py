"""What the KL terms and the clip range measure: expectations against the true KL.

Two policies whose velocities differ by a constant, such that every step is ``KL`` apart for each of
the D latent dimensions. The tables of ``docs/units.md`` hold the same numbers.
"""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from fakes import PROMPTS
from torch.distributions import Normal, kl_divergence

from chunk_grpo_core.method.chunks import ChunkPlan
from chunk_grpo_core.method.group_task import GroupTask
from chunk_grpo_core.method.noise import Noise
from chunk_grpo_core.method.objective import (
    KL_TYPES,
    ObjectiveConfig,
    StepTerms,
    group_loss,
    reference_distance,
)
from chunk_grpo_core.method.replay import replay_step
from chunk_grpo_core.method.rollout import rollout
from chunk_grpo_core.method.rules import SdeConfig, Transition, gaussian_log_p
from chunk_grpo_core.method.schedule import TimeGrid

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "units.md").read_text(encoding="utf-8")
KL = 1e-5
"""Of a step, for each latent dimension."""
GRID = TimeGrid((1.0, 0.8, 0.7, 0.0))
SDE = SdeConfig(eta=0.7)
SIZES = {1_024: (16, 8, 8), 129_600: (16, 90, 90)}


def gap(t, s):
    """The difference of two velocities whose steps are KL apart."""
    step = SDE.coefficients(t, s)
    return math.sqrt(2 * KL) * step.std / abs(step.b)


def old(x_t, t, example):
    return torch.zeros_like(x_t)


def new(x_t, t, example):
    """``old``, moved by the gap in every dimension."""
    return torch.full_like(x_t, gap(*next(pair for pair in GRID.pairs() if pair[0] == t)))


@pytest.fixture(scope="module", params=SIZES, ids=lambda size: f"D{size}")
def size(request):
    return request.param


def terms_and_true_kl(shape):
    """Of two samples: the terms, the group's facts, and the KL of whole latents, (2, 2)."""
    group = rollout(old, PROMPTS[0], GRID, SDE, Noise(False, 0, 2), shape, keep_means=True)
    drawn = torch.ones(2, 2, dtype=torch.bool)
    task = GroupTask(group, ChunkPlan((1, 1)), torch.zeros(2), drawn)
    rows, true_kl = [], []
    for step in range(2):
        moved = replay_step(new, group, step)
        mean, std = moved.transition
        pair = (Normal(at.double(), std) for at in (mean, group.means[step]))
        true_kl.append(kl_divergence(*pair).flatten(1).sum(1))
        kl_old = 0.5 * ((mean - group.means[step]) / std).square().flatten(1).mean(1)
        velocities = (moved.v_t - old(moved.v_t, 0, None)).square().flatten(1).mean(1)
        rows.append((moved.log_p, kl_old, velocities))
    terms = StepTerms(*(torch.stack(term, 1) for term in zip(*rows, strict=True)))
    return terms, task.facts(), torch.stack(true_kl, 1)


@pytest.fixture(scope="module")
def log_ratio(size):
    """New minus old log p of 256 samples of the old policy, float64."""
    std, generator, found = 0.3, torch.Generator().manual_seed(4), []
    moved = torch.full((1,), math.sqrt(2 * KL) * std)
    for _ in range(16):
        x_s = std * torch.randn(16, size, generator=generator)
        before = gaussian_log_p(x_s, Transition(torch.zeros(1), std))
        found.append(gaussian_log_p(x_s, Transition(moved, std)) - before)
    return torch.cat(found).double()


def test_the_kl_terms_are_what_their_names_say(size):
    """The true KL for each dimension; times the length of the step; the velocities' distance."""
    terms, facts, true_kl = terms_and_true_kl(SIZES[size])
    assert true_kl.flatten().tolist() == pytest.approx([size * KL] * 4, rel=1e-3)
    pairs = GRID.pairs()[:2]
    expected = {
        "exact": [KL, KL],
        "flow-grpo": [KL * (t - s) for t, s in pairs],
        "velocity": [gap(t, s) ** 2 for t, s in pairs],
    }
    assert set(expected) == set(KL_TYPES)
    for kind, values in expected.items():
        config = ObjectiveConfig(kl_ref=1.0, kl_type=kind)
        for sample in reference_distance(terms, facts, config):
            assert sample.tolist() == pytest.approx(values, rel=1e-3), kind
        assert f"| {size:,} | {kind} | {values[1]:.2g} |" in PAGE
    kl_old = group_loss(terms, facts, ObjectiveConfig(kl_old=1.0))
    assert kl_old.item() == pytest.approx(KL, rel=1e-3)
    assert f"| {size:,} | kl_old | {KL:.2g} |" in PAGE


def test_k3_of_the_ratio_is_about_the_square_of_the_kl(size, log_ratio):
    """Why it is no penalty here: at 720 x 720 it is 1.3e-5 of the KL."""
    expected = KL / size + KL**2 / 2
    k3 = log_ratio.expm1() - log_ratio
    assert float(k3.mean()) == pytest.approx(expected, rel=0.2)
    assert f"| {size:,} | k3 of the ratio | {expected:.2g} |" in PAGE


def test_the_noise_level_of_flow_grpo_is_that_of_its_sde_and_under_cps_the_step_s():
    cps = SdeConfig(rule="cps", eta=0.8)
    assert cps.noise_level(0.8, 0.7) == cps.std(0.8, 0.7)
    assert SDE.noise_level(0.8, 0.7) == pytest.approx(0.7 * math.sqrt(0.8 / 0.2))
    assert SdeConfig(rule="dance", eta=0.3).noise_level(0.8, 0.7) == pytest.approx(0.3)


# The clip range


def test_a_log_ratio_drifts_by_the_kl_and_spreads_with_the_size(size, log_ratio):
    """Of a policy that moved without regard to the sample's noise: N(-KL, 2 KL / D)."""
    spread = math.sqrt(2 * KL / size)
    assert float(log_ratio.std()) == pytest.approx(spread, rel=0.12)
    mean = float(log_ratio.mean())
    assert mean == pytest.approx(-KL, abs=3 * spread / math.sqrt(len(log_ratio)))


LATENTS = {"tiny": 16 * 8**2, "512": 16 * 64**2, "720": 16 * 90**2, "1024": 16 * 128**2}


@pytest.mark.parametrize("clip", [5e-5, 1e-4])
@pytest.mark.parametrize("name", LATENTS)
def test_the_clip_binds_at_the_kl_of_the_table(name, clip):
    """By its spread at D clip^2 / 2, by its drift at the clip; whichever is less."""
    size = LATENTS[name]
    spread, drift = size * clip**2 / 2, clip
    binds = min(spread, drift)
    best = 0.5 * math.erfc(math.sqrt(size * clip))  # P(log r > clip) at KL = clip, its maximum
    shares = [
        0.5 * math.erfc((clip + kl) / math.sqrt(2 * kl / size) / math.sqrt(2))
        for kl in (clip * 1.1**i for i in range(-50, 51))
    ]
    assert max(shares) == pytest.approx(best)
    row = f"| {size:,} | {clip:g} | {spread:.2g} | {binds:.2g} | {binds * size:.2g} | {best:.1g} |"
    assert row in PAGE, row
