"""What users and listeners see: command line, optional packages, events, pictures, evaluation."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy
import pytest
import torch
from fakes import PROMPTS, Brightness, Broken, FailsAfter, ToyPolicy, toy_config
from PIL import Image

from chunk_grpo_core.measure.evaluate import Evaluation, evaluate, paired_gain, paired_means
from chunk_grpo_core.measure.sampling import draw
from chunk_grpo_core.method.chunks import ChunkPlan
from chunk_grpo_core.method.dynamics import dynamics_curve
from chunk_grpo_core.method.noise import Noise
from chunk_grpo_core.method.reward import NothingScored, RewardBatch, checked_inputs
from chunk_grpo_core.method.rollout import rollout
from chunk_grpo_core.method.rules import SdeConfig
from chunk_grpo_core.method.schedule import shifted_grid
from chunk_grpo_core.method.walk import sample_ode
from chunk_grpo_core.optional import require
from chunk_grpo_core.prompts.example import Example
from chunk_grpo_core.rewards import REWARDS, load_reward
from chunk_grpo_core.runs.experiment import run_experiment
from chunk_grpo_core.runs.folder import RunFolder
from chunk_grpo_core.train.batch_limit import BatchLimit
from chunk_grpo_core.train.events import (
    AdvantagesEnd,
    IterationEnd,
    PhaseProgress,
    RolloutEnd,
    RunStart,
    broadcast,
)
from chunk_grpo_core.train.trainer import Trainer
from chunk_grpo_core.version import __version__
from chunk_grpo_core.watch.pictures import SampleWriter, image_grid, save_png
from chunk_grpo_core.watch.plots import plot_dynamics, plot_plan, plot_training

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.mark.slow
def test_module_runs_as_a_command():
    command = [sys.executable, "-m", "chunk_grpo_core", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "demo" in done.stdout and "Chunk-GRPO" in done.stdout and "Traceback" not in done.stderr


def invoke(*words):
    from typer.testing import CliRunner

    from chunk_grpo_core.cli.app import app

    return CliRunner().invoke(app, list(words), terminal_width=200)


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["--version"], 0, __version__),
        (["demo", "--help"], 0, "iterations"),
        (["demo", "--algorithm", "sequence"], 2, "algorithm"),
        (["demo", "--iterations", "0"], 2, "iterations"),
        (["demo", "--iterations", "many"], 2, "integer"),
        (["demo", "--threads", "0"], 2, "threads"),
        (["train"], 2, "CONFIG.toml"),
        (["teach"], 2, "No such command"),
    ],
)
def test_command_line_answers_with_the_right_exit_code(words, code, text):
    result = invoke(*words)
    assert result.exit_code == code, result.output
    assert text in result.output


def test_missing_package_is_named_with_its_pip_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)  # what Python itself does for a blocked import
    with pytest.raises(ImportError) as caught:
        require("peft", "To train a LoRA on a diffusers model")
    message = str(caught.value)
    assert message.startswith("To train a LoRA on a diffusers model, the package 'peft' is needed")
    assert 'pip install "chunk-grpo-core[train]"' in message


def test_unknown_package_gets_a_plain_pip_line():
    with pytest.raises(ImportError, match="Run: pip install no_such_package_here"):
        require("no_such_package_here.part", "To fly")


def test_broken_package_is_not_called_missing(tmp_path, monkeypatch):
    (tmp_path / "half_installed.py").write_text("import not_there_either")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModuleNotFoundError, match="not_there_either") as caught:
        require("half_installed", "To fly")
    assert "pip install" not in str(caught.value)


def test_broadcast_tells_every_listener_in_order():
    heard = []
    listen = broadcast(*(lambda event, who=who: heard.append((who, event)) for who in "ab"))
    first, second = RunStart(0, 2), PhaseProgress(0, "rollout", 0.5)
    listen(first), listen(second)
    assert heard == [("a", first), ("b", first), ("a", second), ("b", second)]


def test_trainer_tells_its_story_in_order():
    events = []
    config = toy_config(iterations=2)
    Trainer(ToyPolicy(), Brightness(), PROMPTS, config, listener=events.append).train()
    drawn, trained = ["PhaseProgress"] * 3, ["PhaseProgress"] * 3
    scored = ["PhaseProgress", *["PhaseProgress", "RolloutEnd"] * 2, "AdvantagesEnd"]
    one = [*drawn, *scored, *trained, "IterationEnd"]
    assert [type(event).__name__ for event in events] == ["RunStart", *one, *one]
    for iteration in (0, 1):
        own = [e for e in events[1:] if e.iteration == iteration]
        steps = [e for e in own if isinstance(e, PhaseProgress)]
        assert [e.phase for e in steps] == ["rollout"] * 3 + ["score"] * 3 + ["update"] * 3
        fractions = [0.0, 0.2, 0.4, 0.4, 0.5, 0.6, 0.6, 0.8, 1.0]
        assert [e.fraction for e in steps] == pytest.approx(fractions)
        groups = [e for e in own if isinstance(e, RolloutEnd)]
        assert all(e.images.shape == (8, 4, 4, 3) and e.rewards.shape == (8,) for e in groups)
        (compared,) = (e.advantages for e in own if isinstance(e, AdvantagesEnd))
        for group, advantages in zip(groups, compared, strict=True):
            assert torch.equal(advantages.argsort(), group.rewards.argsort())


def is_picture(picture, width=None, height=None):
    assert picture.dtype == torch.float32 and picture.ndim == 3 and picture.shape[2] == 3
    assert 0.0 <= float(picture.min()) and float(picture.max()) <= 1.0
    assert width is None or picture.shape[:2] == (height, width)
    return True


@pytest.fixture(scope="module")
def rows():
    """Metrics of a run; the last two rows as earlier versions wrote them without any score."""
    found = []
    listener = lambda e: found.append(e.metrics) if isinstance(e, IterationEnd) else None  # noqa: E731
    Trainer(ToyPolicy(), Brightness(), PROMPTS, toy_config(iterations=4), listener=listener).train()
    names = ("reward_mean", "reward_std", "reward_min", "reward_max")
    unknown = {name: None for name in names if name in found[0]}
    assert "reward_mean" in unknown
    return [*found[:2], *({**row, **unknown} for row in found[2:])]


@pytest.mark.parametrize("dark", [False, True])
def test_plots_are_pictures_in_light_and_dark(dark, rows):
    policy, noise = ToyPolicy(), Noise(True, 0, 4)
    grid, sde = shifted_grid(6), SdeConfig()
    group = rollout(policy.velocity, "a", grid, sde, noise, policy.latent_shape)
    plan = ChunkPlan((2, 3), (0.7, 0.3))
    measured = [
        {"iterations": 0, "mean": 0.4, "low": 0.4, "high": 0.4},
        {"iterations": 4, "mean": 0.6, "low": 0.5, "high": 0.7},
    ]
    plots = [
        plot_dynamics(dynamics_curve([group], "toy"), plan, dark=dark),
        plot_plan(plan, dark=dark),
        plot_training(rows, held_out=measured, dark=dark),
    ]
    for plot in plots:
        assert is_picture(plot) and float(plot.std()) > 0.01
        assert (float(plot.median()) < 0.5) == dark
    assert plots[0].shape == (456, 864, 3)


def test_plots_of_nothing_or_of_another_plan_are_refused():
    with pytest.raises(ValueError, match="nothing to plot"):
        plot_training([])
    states = rollout(
        ToyPolicy().velocity, "a", shifted_grid(6), SdeConfig(), Noise(True, 0, 2), (4, 4, 4)
    )
    with pytest.raises(ValueError, match="cover 4 steps, but there are 5"):
        plot_dynamics(dynamics_curve([states]), ChunkPlan((4,)))


@pytest.mark.parametrize(
    ("count", "settings", "width", "height"),
    [
        (1, {}, 10 + 4, 6 + 4),
        (5, {}, 3 * 12 + 2, 2 * 8 + 2),
        (5, {"columns": 2}, 2 * 12 + 2, 3 * 8 + 2),
        (3, {"columns": 9, "scale": 4}, 3 * 42 + 2, 26 + 2),
        (4, {"captions": list("abcd")}, 2 * 12 + 2, 2 * (8 + 13) + 2),
    ],
)
def test_image_grid_has_room_for_every_picture(count, settings, width, height):
    assert is_picture(image_grid(torch.rand(count, 6, 10, 3), **settings), width, height)


def test_a_grid_of_large_pictures_stays_a_picture_that_can_be_looked_at():
    images = torch.linspace(0, 1, 9)[:, None, None, None].expand(9, 1000, 1500, 3)
    grid = image_grid(images, captions=["0.5"] * 9)
    assert max(grid.shape) < 4096 + 9 * 2
    assert is_picture(grid) and float(grid[200, 10, 0]) == 0.0
    assert float(grid[200, 3000, 0]) == pytest.approx(2 / 8, abs=1 / 255)


def test_image_grid_shows_the_pictures_in_order():
    levels = torch.tensor([0.0, 0.2, 0.4, 0.6]).view(4, 1, 1, 1).expand(4, 6, 10, 3)
    grid = image_grid(levels, columns=2)
    corners = [grid[2, 2], grid[2, 14], grid[10, 2], grid[10, 14]]
    assert torch.allclose(torch.stack(corners)[:, 0], levels[:, 0, 0, 0])


def test_saved_picture_is_read_back_with_8_bits(tmp_path):
    picture = torch.rand(4, 6, 3)
    path = save_png(picture, tmp_path / "new" / "a.png")
    with Image.open(path) as found:
        pixels = torch.from_numpy(numpy.array(found)).long()
    assert torch.equal(pixels, (picture * 255).round().long())


def test_sample_writer_keeps_one_group_of_every_few_iterations(tmp_path):
    writer = SampleWriter(tmp_path, every=2)
    for iteration in range(4):
        for prompt in "ab":
            rewards = torch.tensor([0.1, math.nan, 0.9])
            writer(RolloutEnd(iteration, Example(prompt), torch.rand(3, 8, 8, 3), rewards))
        writer(IterationEnd(iteration, {}))
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["iteration_00001.png", "iteration_00003.png"]


def test_pictures_are_sampled_in_one_phase_and_decoded_when_asked_for():
    policy, checks = ToyPolicy(), []
    decoded = []
    policy.decode = lambda x_0: decoded.append(len(x_0)) or x_0
    options = {"count": 2, "seed": 0, "check_cancel": lambda: checks.append(len(decoded))}
    pictures = draw(policy, PROMPTS[:3], shifted_grid(4), **options)
    assert len(policy.calls) == len(checks) == 3 * 4 and not decoded
    assert len(list(pictures)) == 3 and decoded == [2, 2, 2]
    assert checks[12:] == [0, 1, 2]  # before each prompt's pictures
    with pytest.raises(ValueError, match="count is 0; it must be 1 or more"):
        draw(policy, PROMPTS[:3], shifted_grid(4), count=0, seed=0)


def test_sample_writer_puts_the_best_first_and_invalid_ones_last(tmp_path):
    levels = torch.tensor([0.2, 0.6, 1.0]).view(3, 1, 1, 1).expand(3, 128, 128, 3)
    event = RolloutEnd(0, Example("a"), levels, torch.tensor([0.5, math.nan, 0.9]))
    SampleWriter(tmp_path)(event)
    with Image.open(tmp_path / "iteration_00001.png") as sheet:
        shown = [sheet.getpixel(at)[0] for at in ((60, 60), (190, 60), (60, 200))]
    assert shown == [255, 51, 153]


def test_evaluation_noise_is_that_of_comfyui():
    policy, grid = ToyPolicy(), shifted_grid(4)
    found = evaluate(policy, Brightness(), PROMPTS[:3], grid, seeds=4, seed=50)
    assert found.rewards.shape == (3, 4) and found.images.shape == (3, 4, 4, 3)
    for index, prompt in enumerate(PROMPTS[:3]):
        noise = torch.randn(4, 4, 4, 4, generator=torch.manual_seed(50 + index))
        pictures = policy.decode(sample_ode(policy.velocity, prompt, grid, noise))
        assert torch.equal(found.rewards[index], pictures.mean((1, 2, 3)))
        assert torch.equal(found.images[index], pictures[0])
        drawn = list(draw(policy, PROMPTS[:3], grid, count=4, seed=50))[index]
        assert torch.equal(drawn, pictures)
    limit = BatchLimit(size=3)
    parts = evaluate(policy, Brightness(), PROMPTS[:3], grid, seeds=4, seed=50, limit=limit)
    assert torch.equal(parts.rewards, found.rewards)
    assert found.extra_mean("spread") == pytest.approx(float(found.extras["spread"].mean()))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_evaluation_leaves_out_scores_that_are_not_finite(value):
    policy, grid = ToyPolicy(), shifted_grid(4)
    whole = evaluate(policy, Brightness(), PROMPTS[:2], grid, seeds=3)
    found = evaluate(policy, Broken([1], value), PROMPTS[:2], grid, seeds=3)
    assert found.rewards.isnan().tolist() == [[False, True, False]] * 2
    assert found.mean == pytest.approx(float(whole.rewards[:, [0, 2]].mean()))


@pytest.mark.parametrize(
    ("error", "message"), [("no answer", "no answer"), (None, "missing or not finite")]
)
def test_an_evaluation_without_any_score_says_so(error, message):
    with pytest.raises(NothingScored, match=f"no picture of the evaluation has a score.*{message}"):
        evaluate(ToyPolicy(), FailsAfter(0, error), PROMPTS[:2], shifted_grid(4), seeds=3)
    found = evaluate(ToyPolicy(), FailsAfter(1, error), PROMPTS[:2], shifted_grid(4), seeds=3)
    assert found.rewards.isnan().all(1).tolist() == [False, True]


def evaluation_of(rewards, prompts="abc"):
    rewards = torch.tensor(rewards)
    return Evaluation(tuple(prompts), rewards, {}, torch.zeros(len(rewards), 2, 2, 3))


def test_means_are_of_the_pictures_that_the_paired_gain_is_of():
    lost = float("nan")
    before = evaluation_of([[0.0, 0.2], [1.0, 1.0], [lost, 0.4]])
    after = evaluation_of([[0.5, 0.3], [lost, 1.2], [9.0, 0.6]])
    base, mean = paired_means(before, after)
    assert (base, mean) == pytest.approx(((0.1 + 1.0 + 0.4) / 3, (0.4 + 1.2 + 0.6) / 3))
    assert mean - base == pytest.approx(paired_gain(before, after).mean)
    assert paired_means(after, after) != (after.mean, after.mean)  # prompts count alike
    whole = evaluation_of([[0.1, 0.2], [0.3, 0.4], [0.5, 0.7]])
    assert paired_means(whole, whole) == (whole.mean, whole.mean)


def test_paired_gain_is_the_interval_computed_by_hand():
    before = evaluation_of([[0.0, 1.0], [0.5, 0.5], [0.2, math.nan]])
    after = evaluation_of([[1.0, 1.0], [0.5, 0.7], [0.5, 9.0]])
    # Gains of the prompts: 0.5, 0.1, 0.3; mean 0.3, std 0.2, half width 4.302653 * 0.2 / sqrt(3).
    gain = paired_gain(before, after)
    assert (gain.mean, gain.low, gain.high) == pytest.approx((0.3, -0.1968275, 0.7968275), abs=1e-6)


def test_evaluations_without_a_common_score_have_no_gain():
    one = evaluation_of([[0.5], [math.nan]], "ab")
    other = replace(evaluation_of([[math.nan], [0.5]], "ab"), error="no answer")
    with pytest.raises(NothingScored, match="in both evaluations.*no answer"):
        paired_gain(one, other)


def test_evaluations_that_cannot_be_paired_are_refused():
    one = evaluation_of([[0.0]], "a")
    with pytest.raises(ValueError, match="different prompts"):
        paired_gain(one, evaluation_of([[0.0]], "b"))
    with pytest.raises(ValueError, match="at least 2 prompts"):
        paired_gain(one, one)


def test_experiment_measures_around_training_and_resumes(tmp_path):
    config = toy_config(iterations=3)

    def run(resume, folder=tmp_path, held_out=("new", "newer")):
        return run_experiment(
            ToyPolicy(),
            Brightness(),
            PROMPTS,
            held_out,
            config,
            RunFolder(folder),
            resume=resume,
        )

    first = run(False)
    assert first.ratio_error_first_update == 0.0 and len(first.rows) == 3
    assert is_picture(first.before_after_grid())
    assert first.gain.mean == pytest.approx(first.after.mean - first.before.mean, abs=1e-6)
    plain = evaluate(ToyPolicy(), Brightness(), ["new", "newer"], config.grid, seeds=4, seed=20_000)
    assert torch.equal(first.before.rewards, plain.rewards)
    again = run(True)
    assert torch.equal(again.before.rewards, first.before.rewards)
    assert torch.equal(again.after.rewards, first.after.rewards)
    with pytest.raises(FileExistsError):
        run(False)
    with pytest.raises(FileNotFoundError):
        run(True, tmp_path / "other")
    with pytest.raises(ValueError, match="prompts held out: 1; a measurement needs at least 2"):
        run(False, tmp_path / "other", ["one"])
    kept = {path.name for path in tmp_path.iterdir()}
    assert {"run.toml", "metrics.jsonl", "samples", "checkpoints"} <= kept
    assert not [name for name in kept if name.endswith(".partial")]


def test_rewards_are_loaded_by_name():
    assert set(REWARDS) >= {"tiny_world", "target_colour"}
    with pytest.raises(ValueError, match="reward is 'beauty'; it must be one of tiny_world"):
        load_reward("beauty")
    with pytest.raises(ValueError, match="colour is 'red'; write six hexadecimal digits"):
        load_reward("target_colour", colour="red")


@pytest.mark.parametrize(
    ("colour", "score"), [("#ff0000", 1.0), ("00ffff", 0.0), ("#ffff00", 2 / 3)]
)
def test_target_colour_is_the_mean_distance_to_one_colour(colour, score):
    red = torch.tensor([1.0, 0.0, 0.0]).expand(2, 4, 4, 3)
    batch = load_reward("target_colour", colour=colour).score(red, ["a", "b"])
    assert batch.values.tolist() == pytest.approx([score] * 2) and batch.valid.all()


def test_scores_that_are_not_finite_are_invalid():
    assert RewardBatch.of(torch.tensor([1.0, math.nan, math.inf])).valid.tolist() == [
        True,
        False,
        False,
    ]
    with pytest.raises(ValueError, match=r"\(3,\) and \(2,\)"):
        RewardBatch(torch.zeros(3), torch.ones(2, dtype=torch.bool))


@pytest.mark.parametrize(
    ("shape", "prompts", "message"),
    [
        ((2, 3, 4, 4), ["a", "b"], r"\(B, H, W, 3\), got \(2, 3, 4, 4\)"),
        ((4, 4, 3), ["a"], r"got \(4, 4, 3\)"),
        ((2, 4, 4, 3), ["a"], "2 images need 2 prompts, got 1"),
        ((2, 4, 4, 3), "ab", "2 images need 2 prompts, got 1"),
    ],
)
def test_pictures_without_their_prompts_are_refused(shape, prompts, message):
    with pytest.raises(ValueError, match=message):
        checked_inputs(torch.zeros(shape), prompts)
