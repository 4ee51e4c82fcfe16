"""The study of distilled models: the student's lines, the roads, and what counts as damage."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from benchmarks.distilled import distil as distillation
from benchmarks.distilled.arms import ARMS, config_of
from benchmarks.distilled.distil import PIECES, DistilSettings, distil
from benchmarks.distilled.report import damage, verdict
from benchmarks.distilled.run import Run, measures, perform
from benchmarks.race.judge import TESTING, Judge
from chunk_grpo_core.algorithms import algorithm_of
from chunk_grpo_core.method.schedule import shifted_grid
from chunk_grpo_core.models.tiny.model import SHIFT, load_tiny_flux, sample_latents
from chunk_grpo_core.models.tiny.reward import TinyWorldReward

SMALLEST = DistilSettings(paths=8, teacher_steps=8, steps=6, batch=6, on_lines=2)


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    path = tmp_path_factory.mktemp("student") / "student.safetensors"
    distil(path, SMALLEST)
    return path


def test_the_students_noise_levels_are_among_the_teachers():
    teacher = shifted_grid(DistilSettings.teacher_steps, SHIFT).sigmas
    every = DistilSettings.teacher_steps // PIECES
    assert teacher[::every] == pytest.approx(shifted_grid(PIECES, SHIFT).sigmas, abs=1e-7)


def test_paths_end_where_the_teacher_ends():
    states, captions = distillation._paths(SMALLEST)
    assert states.shape[:2] == (PIECES + 1, 8)
    pictures = sample_latents(load_tiny_flux(), states[0], captions, SMALLEST.teacher_steps)
    assert torch.allclose(states[-1], pictures, atol=1e-5)


@pytest.mark.slow
def test_distilling_brings_four_steps_nearer_to_the_teacher(student):
    states, captions = distillation._paths(SMALLEST)

    def distance(flux):
        return float((sample_latents(flux, states[0], captions, PIECES) - states[-1]).norm())

    assert distance(load_tiny_flux(student)) < 0.95 * distance(load_tiny_flux())


def test_every_road_is_one_that_the_library_takes():
    for arm in ARMS.values():
        algorithm_of(config_of(arm, seed=0))


@pytest.mark.slow
def test_a_run_starts_from_the_student_and_measures_four_and_many_steps(
    student, tmp_path, monkeypatch
):
    small = {"prompts_per_iteration": 2, "group_size": 2, "self_test": False}
    arm = dataclasses.replace(ARMS["forward"], settings={**ARMS["forward"].settings, **small})
    monkeypatch.setitem(ARMS, "forward", arm)
    run, judge = Run("forward", seed=1, units=1), Judge(TinyWorldReward(), TESTING[:2])
    first, last = perform(run, student, tmp_path, judge)
    assert first["settings"]["grid"] == list(shifted_grid(PIECES, SHIFT).sigmas)
    # 4 samples: 4 steps, the reference at 2 times, 2 trained times; and what velocity_norm takes.
    assert last["units"] == 4 * (4 + 2 + 2 * 3) + 8 and last["iterations"] == 1
    assert perform(run, student, tmp_path, judge) == [first, last]

    untrained = load_tiny_flux(student)
    pictures = [judge.pictures(untrained, steps) for steps in (4, 17)]
    before = measures(judge, *pictures)
    assert 0 < abs(last["gap"] - before["gap"]) < 0.02


def test_damage_is_the_part_of_the_distillation_that_is_gone():
    assert damage(0.02, student=0.02, base=0.08) == 0.0
    assert damage(0.05, student=0.02, base=0.08) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [([0.01, -0.01, 0.0], "kept"), ([0.01, 0.011, 0.012], "worse"), ([-0.02, -0.021], "better")],
)
def test_few_step_quality_is_kept_where_the_interval_contains_no_change(changes, expected):
    assert verdict(changes, lambda mean: mean < 0) == expected
