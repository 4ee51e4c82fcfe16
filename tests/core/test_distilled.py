"""The study of distilled models: the student's lines, the roads, and what counts as damage."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from benchmarks.chunk_vs_step.measure import write_json
from benchmarks.distilled.arms import ARMS, config_of
from benchmarks.distilled.distil import PIECES, DistilSettings, distil, piece_end
from benchmarks.distilled.report import COLUMNS, damage, gate, verdict, write_report
from benchmarks.distilled.run import Run, measures, perform, save_strip, write_rows
from benchmarks.race.judge import TESTING, TRAINING, Judge
from chunk_grpo_core.algorithms import algorithm_of
from chunk_grpo_core.method.schedule import shifted_grid
from chunk_grpo_core.models.tiny.model import LATENT_SHAPE, SHIFT, load_tiny_flux, sample_latents
from chunk_grpo_core.models.tiny.reward import TinyWorldReward

SMALLEST = DistilSettings(teacher_steps=8, steps=8, batch=6, on_lines=2)


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    path = tmp_path_factory.mktemp("student") / "student.safetensors"
    distil(path, SMALLEST)
    return path


def test_the_students_noise_levels_are_among_the_teachers():
    teacher = shifted_grid(DistilSettings.teacher_steps, SHIFT).sigmas
    every = DistilSettings.teacher_steps // PIECES
    assert teacher[::every] == pytest.approx(shifted_grid(PIECES, SHIFT).sigmas, abs=1e-7)


@torch.no_grad()
def test_the_teachers_pieces_together_are_its_whole_path():
    teacher, noise, captions = _two_pictures()
    conditioning = teacher.text.encode(captions)
    pairs, x_t = shifted_grid(8, SHIFT).pairs(), noise
    for piece in range(PIECES):
        x_t = piece_end(teacher, conditioning, x_t, pairs[2 * piece : 2 * piece + 2])
    assert torch.allclose(x_t, sample_latents(teacher, noise, captions, 8), atol=1e-5)


@pytest.mark.slow
def test_distilling_brings_four_steps_nearer_to_the_teacher(student):
    teacher, noise, captions = _two_pictures()
    goal = sample_latents(teacher, noise, captions, SMALLEST.teacher_steps)

    def distance(flux):
        return float((sample_latents(flux, noise, captions, PIECES) - goal).norm())

    assert distance(load_tiny_flux(student)) < distance(teacher)


def _two_pictures():
    generator = torch.Generator().manual_seed(5)
    return load_tiny_flux(), torch.randn(2, *LATENT_SHAPE, generator=generator), TRAINING[:2]


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


@pytest.mark.parametrize(
    ("student", "fault"),
    [
        ({"to_teacher": 0.03, "clean_4": 0.5}, None),
        ({"to_teacher": 0.08, "clean_4": 0.5}, "to_teacher is 0.08"),
        ({"to_teacher": 0.03, "clean_4": 0.4}, "clean_4 is 0.4"),
    ],
)
def test_a_student_that_is_no_better_with_four_steps_is_not_trained(student, fault):
    found = gate({"to_teacher": 0.07, "clean_4": 0.44}, student)
    assert found is None if fault is None else fault in found


def test_the_report_shows_changes_against_the_student_with_intervals_over_seeds(tmp_path):
    student = dict.fromkeys((*COLUMNS, "strict_17", "to_teacher"), 0.5) | {"gap": 0.02}
    write_json(tmp_path / "untrained.json", {"base": student | {"gap": 0.07}, "student": student})
    for seed, gap in enumerate((0.031, 0.03, 0.029)):
        measured = student | {"reward_4": 0.6, "gap": gap, "units": 6_000, "seconds": 9.0}
        write_rows([{"arm": "forward"}, measured], tmp_path / f"runs/forward-{seed}.jsonl")
    strip = torch.zeros(2, 8, 8, 3)
    for name in ("base", "student", "runs/forward-0"):
        save_strip(strip, strip, tmp_path / f"{name}.png")
    write_report(tmp_path)
    row = next(
        line.split(" | ")
        for line in (tmp_path / "REPORT.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("| forward")
    )
    assert row[1:5] == ["3", "6,000", "9", "+0.100 ± 0.000"]
    assert row[-2:] == ["+0.200 ± 0.050", "worse |"]
    assert (tmp_path / "pictures.png").exists()
    write_report(tmp_path)  # again, between the marks of the page that is there
