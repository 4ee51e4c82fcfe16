"""Which chunks an iteration trains, which steps take noise, and training under each choice.

Legend: G samples in a group, K chunks, N steps.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import pytest
import torch
from fakes import CancelAfter, ToyPolicy, toy_config
from hypothesis import given
from hypothesis import strategies as st
from trainings import trained as run_of

from chunk_grpo_core.algorithms import algorithm_of
from chunk_grpo_core.method.cancel import Cancelled
from chunk_grpo_core.method.chunks import ChunkPlan, draw_chunks, per_step_plan
from chunk_grpo_core.method.windows import (
    NOISE,
    WindowConfig,
    noisy_steps,
    window_chunks,
    window_positions,
)
from chunk_grpo_core.train.checkpoint import Checkpoints, content_digest
from chunk_grpo_core.train.config import OptimizerConfig, TrainConfig

PLAN = ChunkPlan((1, 2, 2, 3))
SLIDING = WindowConfig(kind="sliding", chunks=2, every=3)


@st.composite
def moving_windows(draw):
    """A window with room to move, and its plan."""
    count = draw(st.integers(2, 20))
    chunks = draw(st.integers(1, count - 1))
    window = WindowConfig(
        kind=draw(st.sampled_from(["sliding", "random"])),
        chunks=chunks,
        start=draw(st.integers(0, count - chunks - 1)),
        stride=draw(st.integers(1, chunks)),
        every=draw(st.integers(1, 30)),
    )
    return window, per_step_plan(count)


@given(moving_windows(), st.integers(0, 10_000), st.integers(0, 2**40))
def test_a_window_has_its_size_and_lies_inside_the_plan(case, iteration, seed):
    window, plan = case
    chunks = window_chunks(window, plan, iteration, seed)
    assert len(chunks) == window.chunks and chunks in window_positions(window, plan)
    assert 0 <= chunks.start and chunks.stop <= plan.count


@given(moving_windows())
def test_a_sliding_window_passes_over_every_chunk_and_starts_again(case):
    window, plan = case
    window = replace(window, kind="sliding")
    seen, previous = set(), window.start
    round_trip = window.every * len(window_positions(window, plan))
    for iteration in range(round_trip):
        chunks = window_chunks(window, plan, iteration, 0)
        assert 0 <= chunks.start - previous <= window.stride
        if iteration % window.every:
            assert chunks.start == previous
        seen, previous = seen | set(chunks), chunks.start
    assert seen == set(range(window.start, plan.count))
    assert window_chunks(window, plan, round_trip, 0).start == window.start


def test_one_step_per_chunk_gives_the_window_of_mixgrpo():
    """25 steps, the last one without noise; 4 of them, moved by 1 every 25 iterations."""
    window, plan = WindowConfig(kind="sliding"), per_step_plan(24)
    starts = [window_chunks(window, plan, i, 0).start for i in (0, 24, 25, 499, 500, 524, 525)]
    assert starts == [0, 0, 1, 19, 20, 20, 0]


def test_a_random_window_depends_on_seed_and_iteration_and_is_everywhere_alike():
    window = WindowConfig(kind="random", chunks=2)
    starts = Counter(window_chunks(window, PLAN, i, 7).start for i in range(3000))
    assert sorted(starts) == [0, 1, 2] and min(starts.values()) > 900
    for seed in (7, 8):
        again = [window_chunks(window, PLAN, i, seed).start for i in range(50)]
        assert (again == [window_chunks(window, PLAN, i, 7).start for i in range(50)]) == (
            seed == 7
        )


@pytest.mark.parametrize(
    ("settings", "chunks"),
    [({}, range(4)), ({"kind": "fixed", "chunks": 2, "start": 1}, range(1, 3))],
)
def test_the_other_windows_stay(settings, chunks):
    assert {window_chunks(WindowConfig(**settings), PLAN, i, i) for i in range(60)} == {chunks}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "slide"}, "window.kind is 'slide'; it must be one of all, fixed, sliding, ra"),
        ({"chunks": 0}, "window.chunks is 0; it must be a whole number from 1 to 1000"),
        ({"start": -1}, "window.start is -1; it must be a whole number from 0 to 999"),
        ({"every": 0}, "window.every is 0; it must be a whole number from 1 to 1000000"),
        ({"chunks": 2, "stride": 3}, r"window.stride is 3; it must be in 1..2 .* passed over"),
        ({"stride": 0}, "window.stride is 0; it must be a whole number from 1 to 1000"),
    ],
)
def test_bad_windows_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        WindowConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "fixed", "chunks": 5}, "5 chunks that starts at chunk 0 does not fit .* of 4"),
        ({"kind": "fixed", "chunks": 2, "start": 3}, "starts at chunk 3 does not fit"),
        ({"kind": "random", "chunks": 5}, "5 chunks .* does not fit"),
        ({"kind": "random"}, "random window of 4 chunks .* has no room to move in a plan of 4"),
        ({"kind": "sliding", "chunks": 2, "start": 2}, "sliding window .* has no room to move"),
    ],
)
def test_windows_that_do_not_fit_the_plan_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        window_positions(WindowConfig(**settings), PLAN)


def test_the_sliding_window_of_25_steps_ends_whole_and_starts_again_at_iteration_525():
    """MixGRPO's code does the same up to iteration 499; then its window shrinks."""
    plan, window = per_step_plan(24), WindowConfig(kind="sliding")
    places = {i: window_chunks(window, plan, i, seed=0) for i in (0, 24, 25, 499, 500, 524, 525)}
    assert places == {
        0: range(4),
        24: range(4),
        25: range(1, 5),
        499: range(19, 23),
        500: range(20, 24),
        524: range(20, 24),
        525: range(4),
    }


# The draw, and the noise


@given(moving_windows(), st.floats(0.01, 1.0), st.integers(0, 2**40))
def test_chunks_are_drawn_inside_the_window_and_the_fraction_counts_those(case, fraction, seed):
    window, plan = case
    chunks = window_chunks(window, plan, seed % 1000, seed)
    drawn = draw_chunks(plan, fraction, 5, seed, chunks)
    assert drawn.sum(1).tolist() == [max(1, int(len(chunks) * fraction))] * 5
    assert {int(chunk) for chunk in drawn.nonzero()[:, 1]} <= set(chunks)


@pytest.mark.parametrize("weights", [None, (0.1, 0.2, 0.3, 0.4)])
def test_a_window_over_everything_changes_no_draw(weights):
    plan = ChunkPlan((1, 2, 2, 3), weights)
    assert torch.equal(draw_chunks(plan, 0.5, 64, 3, range(4)), draw_chunks(plan, 0.5, 64, 3))


def test_weights_count_inside_the_window():
    plan = ChunkPlan((1, 2, 2, 3), (0.9, 0.1, 0.3, 0.0))
    drawn = draw_chunks(plan, 0.4, 20_000, 0, range(1, 4))
    expected = torch.tensor([0.0, 0.25, 0.75, 0.0])
    assert torch.allclose(drawn.float().mean(0), expected, atol=0.015)
    with pytest.raises(ValueError, match=r"draws 3 of 3 chunks \(of the window \[1, 2, 3\]\), but"):
        draw_chunks(plan, 1.0, 4, 0, range(1, 4))


def test_steps_take_noise_everywhere_in_the_window_or_where_they_are_trained():
    drawn = torch.tensor([[False, True, False, False], [False, False, True, False]])
    window = range(1, 3)
    found = {noise: noisy_steps(noise, PLAN, window, drawn).int().tolist() for noise in NOISE}
    assert found == {
        "all": [[1] * 8] * 2,
        "window": [[0, 1, 1, 1, 1, 0, 0, 0]] * 2,
        "drawn": [[0, 1, 1, 0, 0, 0, 0, 0], [0, 0, 0, 1, 1, 0, 0, 0]],
    }


# Settings


def test_window_settings_survive_json():
    config = toy_config(
        window=replace(SLIDING, chunks=1), noise="drawn", ode_solver="dpm2", chunk_fraction=1.0
    )
    assert TrainConfig.of(json.loads(json.dumps(config.flat()))) == config
    data = config.flat()
    data["window.stide"] = 1
    with pytest.raises(ValueError, match=r"setting window.stide; did you mean window.stride\?"):
        TrainConfig.of(data)


def test_runs_from_before_there_were_windows_go_on(tmp_path):
    checkpoints, config = Checkpoints(tmp_path), toy_config(iterations=1)
    run_of(config, checkpoints=checkpoints)
    (state,) = tmp_path.glob("*/state.json")
    before = json.loads(state.read_text())
    names = ("window.", "noise", "ode_solver")
    for key in [key for key in before["trained_with"] if key.startswith(names)]:
        del before["trained_with"][key]
    content = {key: value for key, value in before.items() if key != "sha256"}
    before["sha256"]["state.json"] = content_digest(content)
    state.write_text(json.dumps(before))
    assert Checkpoints(tmp_path).newest_state()
    run_of(config, checkpoints=checkpoints)
    message = 'noise = "drawn", but iterations 1 to 1 were trained with "all"'
    with pytest.raises(ValueError, match=message):
        run_of(replace(config, noise="drawn"), checkpoints=checkpoints)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"noise": "some"}, "noise is 'some'; it must be one of all, window, drawn"),
        ({"ode_solver": "heun"}, "ode_solver is 'heun'; it must be one of euler, dpm2"),
        ({"noise": "window"}, "noise is 'window', but window.kind is 'all'.* choose a window"),
        ({"ode_solver": "dpm2"}, "ode_solver is 'dpm2', but with noise 'all' no step follows"),
        ({"window": WindowConfig(kind="sliding", chunks=3)}, "has no room to move"),
        ({"plan": ChunkPlan((1, 2, 2), (1, 1, 0)), "chunk_fraction": 1.0}, "but only 2 have a we"),
        (
            {
                "plan": ChunkPlan((1, 2, 2), (1, 1, 0)),
                "window": WindowConfig(kind="sliding", chunks=1),
            },
            r"of the window \[2\]\), but only 0 have a weight",
        ),
    ],
)
def test_settings_that_contradict_each_other_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        algorithm_of(toy_config(**changes))


# Training


def assert_same(one, two):
    assert one[0] == two[0] and one[1].keys() == two[1].keys()
    assert all(torch.equal(one[1][name], two[1][name]) for name in one[1])


def test_noise_where_all_is_drawn_is_noise_everywhere():
    everything = toy_config(iterations=3, chunk_fraction=1.0)
    assert_same(run_of(everything), run_of(replace(everything, noise="drawn", ode_solver="dpm2")))


WINDOWS = [
    WindowConfig(),
    WindowConfig(kind="fixed", chunks=2),
    WindowConfig(kind="sliding", chunks=2, every=1),
    WindowConfig(kind="random", chunks=1),
]
CHOICES = [(window, noise) for window in WINDOWS for noise in NOISE
           if noise != "window" or window.kind != "all"]  # fmt: skip


@pytest.mark.parametrize("batch_size", [None, 3])
@pytest.mark.parametrize(
    ("window", "noise"), CHOICES, ids=lambda value: getattr(value, "kind", value)
)
def test_first_update_sees_a_ratio_of_exactly_one_wherever_the_noise_is(window, noise, batch_size):
    config = toy_config(iterations=3, window=window, noise=noise, batch_size=batch_size)
    config = replace(config, ode_solver="euler" if noise == "all" else "dpm2")
    rows, _ = run_of(config)
    assert [row["ratio_error_first_update"] for row in rows] == [0.0] * 3
    for iteration, row in enumerate(rows):
        chunks = window_chunks(window, config.plan, iteration, config.seed)
        trained = [k for k, ratio in enumerate(row["ratio_mean"]) if ratio is not None]
        assert trained and set(trained) <= set(chunks)
        assert row["grad_norm"] > 0
        assert max(row["ratio_max_deviation"][k] for k in trained) > 0.0  # the second update


class Watched(ToyPolicy):
    """Remembers whether the samples of each call differ from each other."""

    def __init__(self):
        super().__init__()
        self.differs = []

    def velocity(self, x_t, t, example):
        self.differs.append(not torch.equal(x_t, x_t[:1].expand_as(x_t)))
        return super().velocity(x_t, t, example)


@pytest.mark.parametrize(
    ("noise", "differs"),
    [("all", [False] + [True] * 5), ("window", [False] * 4 + [True] * 2)],
)
def test_samples_with_a_shared_start_part_where_the_noise_begins(noise, differs):
    policy, window = Watched(), WindowConfig(kind="fixed", chunks=1, start=2)
    run_of(toy_config(iterations=1, noise=noise, window=window), policy)
    assert policy.differs[:12] == differs * 2  # two groups of 6 steps; the window holds 3 and 4


def test_each_choice_of_noise_and_solver_makes_other_pictures():
    window = WindowConfig(kind="fixed", chunks=1, start=1)
    choices = [("all", "euler"), ("window", "euler"), ("window", "dpm2"), ("drawn", "euler")]
    found = set()
    for noise, solver in choices:
        settings = {"noise": noise, "ode_solver": solver, "chunk_fraction": 0.3}
        if noise == "window":
            settings["window"] = window
        config = toy_config(iterations=1, **settings)
        found.add(run_of(config)[0][0]["reward_mean"])
    assert len(found) == len(choices)


@pytest.mark.parametrize("recompute", [True, False])
def test_training_on_drawn_noise_does_not_depend_on_the_batch_size(recompute):
    settings = OptimizerConfig(learning_rate=5e-2, recompute_log_p=recompute)
    config = toy_config(iterations=3, noise="drawn", ode_solver="dpm2", optimizer=settings)
    whole, _ = run_of(config)
    for batch_size in (1, 3):
        parts, _ = run_of(replace(config, batch_size=batch_size))
        for key in ("reward_mean", "grad_norm", "trained_passes"):
            assert [r[key] for r in parts] == pytest.approx([r[key] for r in whole], rel=1e-5)


def test_a_killed_run_finds_its_window_again(tmp_path):
    config = toy_config(
        iterations=7, noise="window", window=replace(SLIDING, chunks=1), ode_solver="dpm2"
    )
    whole = run_of(config)
    with pytest.raises(Cancelled):
        run_of(config, checkpoints=Checkpoints(tmp_path), check_cancel=CancelAfter(90))
    rows, adapter = run_of(config, checkpoints=Checkpoints(tmp_path))
    assert rows[0]["iteration"] > 0
    assert_same((rows, adapter), (whole[0][-len(rows) :], whole[1]))
