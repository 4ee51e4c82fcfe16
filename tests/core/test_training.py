"""Whole runs of a toy policy: golden curve, kill and resume, broken rewards, run folders.

Run as a script, from the repository root, to write the golden curve anew.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from fakes import PROMPTS, Brightness, Broken, CancelAfter, FailsAfter, ToyPolicy, toy_config
from small_runs import without_seconds

from chunk_grpo_core.lora.adapter import LoraConfig
from chunk_grpo_core.method.cancel import Cancelled, never_cancel
from chunk_grpo_core.method.objective import ObjectiveConfig
from chunk_grpo_core.method.reward import NothingScored
from chunk_grpo_core.method.rules import SdeConfig
from chunk_grpo_core.runs.folder import RunFolder
from chunk_grpo_core.train.checkpoint import Checkpoints
from chunk_grpo_core.train.config import OptimizerConfig
from chunk_grpo_core.train.events import IterationEnd, RolloutEnd, broadcast
from chunk_grpo_core.train.trainer import Trainer
from chunk_grpo_core.watch.history import MetricsWriter, read_metrics


class Renamed(ToyPolicy):
    name = "another"


GOLDEN = Path(__file__).parent.parent / "golden" / "toy_run.json"
SHORT = toy_config(iterations=7, self_test=False)


def trainer_of(folder, config, *, policy=None, reward=None, check=never_cancel, listener=None):
    """A trainer that keeps its metrics in ``folder``."""
    listeners = [MetricsWriter(folder.metrics_file)] + ([listener] if listener else [])
    return Trainer(
        policy or ToyPolicy(),
        reward or Brightness(),
        PROMPTS,
        config,
        checkpoints=folder.checkpoints,
        listener=broadcast(*listeners),
        check_cancel=check,
    )


def version():
    """Give the version of PyTorch without the last number and the build: 2.13."""
    return ".".join(torch.__version__.split(".")[:2])


def rows_of(folder):
    """Rows of metrics.jsonl without what depends on the clock."""
    return without_seconds(read_metrics(folder))


@pytest.fixture(scope="module")
def long_run(tmp_path_factory):
    """Metrics of 20 uninterrupted iterations."""
    folder = RunFolder(tmp_path_factory.mktemp("long"))
    trainer_of(folder, toy_config()).train()
    return rows_of(folder.metrics_file)


@pytest.fixture(scope="module")
def short_run(tmp_path_factory):
    """Metrics, adapter and optimiser of 7 uninterrupted iterations."""
    folder = RunFolder(tmp_path_factory.mktemp("short"))
    trainer_of(folder, SHORT).train()
    return rows_of(folder.metrics_file), folder.checkpoints.load()


def test_toy_run_reproduces_the_golden_curve_and_rises(long_run):
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    curve = [row["reward_mean"] for row in long_run]
    norms = [row["grad_norm"] for row in long_run]
    rise = sum(curve[-5:]) / 5 - sum(curve[:5]) / 5
    if version() != golden["torch"]:  # whose torch.multinomial may draw other chunks
        assert rise > 0.01
        return
    assert curve == pytest.approx(golden["reward_mean"], rel=1e-5)
    assert norms == pytest.approx(golden["grad_norm"], rel=1e-3)
    assert rise > 0.015


def test_first_update_of_every_rollout_sees_a_ratio_of_exactly_one(long_run):
    assert [row["ratio_error_first_update"] for row in long_run] == [0.0] * 20
    assert all(max(row["ratio_max_deviation"]) > 0.0 for row in long_run)  # the second one moves


@pytest.mark.parametrize("batch_size", [1, 3, 4])
def test_batch_size_changes_nothing(short_run, batch_size, tmp_path):
    folder = RunFolder(tmp_path)
    trainer_of(folder, toy_config(iterations=3, batch_size=batch_size)).train()
    found, expected = rows_of(folder.metrics_file), short_run[0][:3]
    for key in ("reward_mean", "grad_norm", "trained_passes"):
        assert [r[key] for r in found] == pytest.approx([r[key] for r in expected], rel=1e-5)
    assert all(row["ratio_error_first_update"] == 0.0 for row in found)


def assert_same_run(folder, short_run):
    rows, checkpoint = short_run
    assert rows_of(folder.metrics_file) == rows
    found = folder.checkpoints.load()
    for kind in ("adapter", "optimizer"):
        left, right = getattr(found, kind), getattr(checkpoint, kind)
        assert left.keys() == right.keys()
        assert all(torch.equal(left[name], right[name]) for name in right)


class KilledFolder(RunFolder):
    """What a killed process leaves: the checkpoints of the schedule, and none when it stops."""

    @property
    def checkpoints(self):
        return ScheduledCheckpoints(self.path / "checkpoints")


class ScheduledCheckpoints(Checkpoints):
    def save(self, checkpoint):
        if checkpoint.iteration % SHORT.checkpoint_every == 0:
            super().save(checkpoint)


@pytest.mark.slow
@pytest.mark.parametrize("calls", [1, 60, 107, 133, 151, 170, 180])
def test_killed_run_resumes_to_the_same_numbers(calls, tmp_path, short_run):
    folder = RunFolder(tmp_path)
    with pytest.raises(Cancelled):
        trainer_of(KilledFolder(tmp_path), SHORT, check=CancelAfter(calls)).train()
    again = trainer_of(folder, SHORT)
    assert again.resume() in (0, 3, 6)
    again.train()
    assert_same_run(folder, short_run)


@pytest.mark.slow
@pytest.mark.parametrize("calls", [1, 60, 107, 125, 133, 151, 170, 180])
@pytest.mark.parametrize("reuse", [False, True])
def test_cancelled_run_loses_no_whole_iteration(calls, reuse, tmp_path, short_run):
    folder, policy = RunFolder(tmp_path), ToyPolicy()
    with pytest.raises(Cancelled):
        trainer_of(folder, SHORT, policy=policy, check=CancelAfter(calls)).train()
    again = trainer_of(folder, SHORT, policy=policy if reuse else None)
    assert again.resume() == len(rows_of(folder.metrics_file))
    again.train()
    assert_same_run(folder, short_run)


def test_every_micro_step_can_be_cancelled():
    policy, checks = ToyPolicy(), []
    Trainer(
        policy,
        Brightness(),
        PROMPTS,
        toy_config(iterations=1),
        check_cancel=lambda: checks.append(len(policy.calls)),
    ).train()
    assert checks == list(range(1, len(policy.calls) + 1))


def test_groups_of_one_update_are_averaged():
    totals = []
    for updates in (1, 2):
        policy, total = ToyPolicy(), []
        for factor in policy.adapter.parameters():
            factor.register_hook(lambda gradient, total=total: total.append(gradient.sum()))
        # With no learning both updates are on-policy, so two groups apart are twice their mean.
        still = OptimizerConfig(learning_rate=1e-7, updates_per_rollout=updates)
        Trainer(
            policy,
            Brightness(),
            PROMPTS,
            toy_config(iterations=1, optimizer=still, self_test=False),
        ).train()
        totals.append(float(sum(total)))
    assert totals[1] == pytest.approx(2.0 * totals[0], rel=1e-4) and totals[0] != 0.0


def test_nan_rewards_are_masked_and_counted_and_training_goes_on(tmp_path):
    shown = []
    folder = RunFolder(tmp_path)
    listener = lambda event: shown.append(event) if isinstance(event, RolloutEnd) else None  # noqa: E731
    policy = ToyPolicy()
    config = toy_config(iterations=2)
    trainer_of(folder, config, policy=policy, reward=Broken([1, 4]), listener=listener).train()
    rows = read_metrics(folder.metrics_file)
    assert [row["masked_scores"] for row in rows] == [4, 4]  # 2 in each of 2 groups
    assert all(0.0 < row["reward_mean"] < 1.0 and row["grad_norm"] > 0 for row in rows)
    for event in shown:
        assert event.rewards.isnan().nonzero().flatten().tolist() == [1, 4]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_an_iteration_without_any_valid_reward_trains_nothing_and_ends_the_run(value, tmp_path):
    folder, policy = RunFolder(tmp_path), ToyPolicy()
    before = policy.adapter.state_dict()
    message = "no picture of iteration 1 has a score .reward broken: .* not finite"
    with pytest.raises(NothingScored, match=message):
        trainer_of(folder, SHORT, policy=policy, reward=Broken(range(8), value)).train()
    assert read_metrics(folder.metrics_file) == []
    assert all(torch.equal(policy.adapter.state_dict()[name], before[name]) for name in before)


def test_a_reward_that_begins_to_fail_ends_the_run_which_then_goes_on(tmp_path, short_run):
    folder = RunFolder(tmp_path)
    reward = FailsAfter(2 * SHORT.prompts_per_iteration)
    with pytest.raises(NothingScored, match="iteration 3 .*brightness: no answer from the server"):
        trainer_of(folder, SHORT, reward=reward).train()
    assert folder.checkpoints.load().iteration == 2
    trainer = trainer_of(folder, SHORT)
    assert trainer.resume() == 2
    trainer.train()
    assert rows_of(folder.metrics_file) == short_run[0]
    for part in ("adapter", "optimizer"):
        found, expected = getattr(folder.checkpoints.load(), part), getattr(short_run[1], part)
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_an_iteration_with_one_group_scored_goes_on(tmp_path):
    folder, reward = RunFolder(tmp_path), FailsAfter(1)
    trainer_of(folder, toy_config(iterations=1), reward=reward).train()
    assert [row["masked_scores"] for row in read_metrics(folder.metrics_file)] == [8]


def test_gradient_that_is_not_finite_stops_the_run_and_changes_nothing(tmp_path):
    class Overflowing(ToyPolicy):
        def velocity(self, x_t, t, example):
            v_t = super().velocity(x_t, t, example)
            if v_t.requires_grad:
                v_t.register_hook(lambda gradient: gradient * math.nan)
            return v_t

    policy = Overflowing()
    before = policy.adapter.state_dict()
    with pytest.raises(FloatingPointError, match="gradient of update 0 is nan; lower the"):
        trainer_of(RunFolder(tmp_path), SHORT, policy=policy).train()
    assert all(torch.equal(policy.adapter.state_dict()[name], before[name]) for name in before)


def test_training_needs_prompts():
    with pytest.raises(ValueError, match="no prompts to train on"):
        Trainer(ToyPolicy(), Brightness(), [], SHORT)


def trained_once(folder):
    trainer_of(folder, toy_config(iterations=1)).train()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 8}, "seed = 8, but iterations 1 to 1 were trained with 7; set it back"),
        ({"group_size": 6}, "group_size = 6, .* with 8"),
        ({"sde": SdeConfig(eta=0.5)}, "sde.eta = 0.5, .* with 0.7"),
        ({"lora": LoraConfig(rank=5, alpha=9.0)}, "lora.rank = 5 and lora.alpha = 9.0, .* with "),
    ],
)
def test_resuming_with_other_settings_is_refused_by_name(changes, message, tmp_path):
    folder = RunFolder(tmp_path)
    trained_once(folder)
    with pytest.raises(ValueError, match=message):
        trainer_of(folder, toy_config(**changes)).resume()


@pytest.mark.parametrize(
    ("prompts", "policy", "reward", "message"),
    [
        (PROMPTS[:-1], ToyPolicy(), Brightness(), "prompts = .*4, SHA-256 .* with .*5, SHA-256"),
        (PROMPTS, Renamed(), Brightness(), 'model = "another", .* with "toy"'),
        (PROMPTS, ToyPolicy(), Broken([]), 'reward = "broken", .* with "brightness"'),
    ],
)
def test_checkpoints_of_another_training_are_refused_by_fact(
    prompts, policy, reward, message, tmp_path
):
    folder = RunFolder(tmp_path)
    trained_once(folder)
    other = Trainer(
        policy, reward, prompts, toy_config(iterations=1), checkpoints=folder.checkpoints
    )
    with pytest.raises(ValueError, match=message):
        other.resume()


def test_settings_of_the_table_may_differ_on_resume_and_are_told(tmp_path):
    folder = RunFolder(tmp_path)
    trained_once(folder)
    again = trainer_of(folder, toy_config(iterations=99, checkpoint_every=1, batch_size=2))
    assert again.resume() == 1
    old = toy_config(iterations=1)
    assert {(c.iteration, c.key, c.old, c.new) for c in again.changes} == {
        (1, "iterations", 1, 99),
        (1, "checkpoint_every", old.checkpoint_every, 1),
        (1, "batch_size", old.batch_size, 2),
    }
    again.config = toy_config(iterations=3)
    again.train()
    with pytest.raises(ValueError, match="iterations = 1, but 3 are done already"):
        trainer_of(folder, toy_config(iterations=1)).resume()


def test_unfinished_checkpoints_are_ignored_and_old_ones_deleted(tmp_path):
    folder = RunFolder(tmp_path)
    trainer_of(folder, toy_config(iterations=4, checkpoint_every=1)).train()
    assert [path.name for path in folder.checkpoints.all()] == ["step_000003", "step_000004"]
    partial = tmp_path / "checkpoints" / "step_000009.partial"
    partial.mkdir()
    (partial / "adapter.safetensors").write_bytes(b"half")
    assert folder.checkpoints.load().iteration == 4
    # A run that dies here again finds its own leftovers and replaces them.
    (tmp_path / "checkpoints" / "step_000005.partial").mkdir()
    again = trainer_of(folder, toy_config(iterations=5, checkpoint_every=1))
    again.resume()
    again.train()
    assert folder.checkpoints.load().iteration == 5


def test_checkpoint_gives_back_adapter_and_optimiser(tmp_path):
    folder = RunFolder(tmp_path)
    first = trainer_of(folder, toy_config(iterations=3))
    first.train()
    second = trainer_of(folder, toy_config(iterations=3))
    assert second.resume() == 3
    second.save()
    one, two = (first.policy.adapter.state_dict(), second.policy.adapter.state_dict())
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert {path.suffix for path in folder.checkpoints.all()[-1].iterdir()} == {
        ".safetensors",
        ".json",
    }


def test_metrics_cut_short_by_a_kill_are_readable(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"iteration": 0}\n{"iteration": 1}\n{"itera', encoding="utf-8")
    assert read_metrics(path) == [{"iteration": 0}, {"iteration": 1}]
    assert read_metrics(tmp_path / "none.jsonl") == []
    path.write_text('{"iteration": 0}\n{"itera\n{"iteration": 2}\n', encoding="utf-8")
    with pytest.raises(ValueError, match="metrics.jsonl, line 2: not JSON"):
        read_metrics(path)


def test_resumed_metrics_drop_the_rows_that_are_redone(tmp_path, short_run):
    folder = RunFolder(tmp_path)
    trainer_of(folder, toy_config(iterations=5)).train()
    with open(folder.metrics_file, "a", encoding="utf-8") as file:
        file.write('{"iteration": 5, "rew')
    (tmp_path / "checkpoints" / "step_000005").rename(tmp_path / "checkpoints" / "gone.partial")
    again = trainer_of(folder, SHORT)
    assert again.resume() == 3
    again.train()
    assert_same_run(folder, short_run)


def test_metrics_hold_no_nan(tmp_path):
    path = tmp_path / "metrics.jsonl"
    MetricsWriter(path)(IterationEnd(0, {"a": math.nan, "b": [math.inf, 1.0], "c": {"d": -0.5}}))
    assert json.loads(path.read_text()) == {"a": None, "b": [None, 1.0], "c": {"d": -0.5}}


@pytest.mark.parametrize("recompute", [True, False])
def test_recomputing_log_p_changes_nothing_on_the_cpu(recompute, short_run, tmp_path):
    settings = OptimizerConfig(learning_rate=5e-2, recompute_log_p=recompute)
    folder = RunFolder(tmp_path)
    trainer_of(folder, toy_config(iterations=2, optimizer=settings)).train()
    assert rows_of(folder.metrics_file) == short_run[0][:2]


if __name__ == "__main__":
    import tempfile

    folder = RunFolder(Path(tempfile.mkdtemp()))
    trainer_of(folder, toy_config()).train()
    golden = rows_of(folder.metrics_file)
    body = {key: [row[key] for row in golden] for key in ("reward_mean", "grad_norm")}
    body["torch"] = version()
    GOLDEN.write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize(
    "objective",
    [
        {"trust_region": "kl-mask", "kl_threshold": 1e-6},
        {"ratio_norm": True, "step_weights": "guard"},
        {"ratio": "step", "step_weights": "tempflow"},
        {"kl_ref": 0.1, "kl_type": "exact", "kl_old": 0.1},
    ],
    ids=lambda settings: "+".join(settings),
)
@pytest.mark.parametrize("recompute", [False, True])
def test_every_guard_starts_from_a_ratio_of_exactly_one(objective, recompute):
    rows = []
    config = toy_config(
        objective=ObjectiveConfig(clip_low=1e-3, clip_high=1e-3, **objective),
        optimizer=OptimizerConfig(
            learning_rate=5e-2, updates_per_rollout=2, epochs=2, recompute_log_p=recompute
        ),
    )
    Trainer(
        ToyPolicy(),
        Brightness(),
        PROMPTS,
        config,
        listener=lambda e: rows.append(e.metrics) if isinstance(e, IterationEnd) else None,
    ).train()
    assert all(row["ratio_error_first_update"] == 0.0 for row in rows)
    assert max(max(filter(None, row["ratio_max_deviation"])) for row in rows) > 0.0
    has_gap = [row["reference_gap"] is not None for row in rows]
    assert all(has_gap) if "kl_ref" in objective else not any(has_gap)
    if "kl_ref" in objective:
        assert rows[0]["reference_gap"] < rows[-1]["reference_gap"]


def test_a_first_ratio_away_from_one_is_reported_with_what_to_do(caplog):
    class Rounding(ToyPolicy):
        """Computes a little differently when gradients are wanted, as a bf16 kernel may."""

        def velocity(self, x_t, t, example):
            v_t = super().velocity(x_t, t, example)
            return v_t * 1.2 if torch.is_grad_enabled() else v_t

    rows = []
    Trainer(
        Rounding(),
        Brightness(),
        PROMPTS,
        toy_config(iterations=1, self_test=False),
        listener=lambda e: rows.append(e.metrics) if isinstance(e, IterationEnd) else None,
    ).train()
    assert rows[0]["ratio_error_first_update"] > 1e-3
    assert "ratio self-test failed" in caplog.text and "optimizer.recompute_log_p" in caplog.text
