"""The speed benchmarks: the reference loop gives the trainer's results, operations are counted
rightly, and what cannot run here says so."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import flux_size, gpu_suite, iteration, iteration_loops, random_flux, scaling, sizes
from benchmarks.random_flux import TINY
from benchmarks.reference_loop import check_restated
from chunk_grpo_core.lora.adapter import LoraConfig
from chunk_grpo_core.lora.targets import target_pattern
from chunk_grpo_core.method.chunks import ChunkPlan
from chunk_grpo_core.method.schedule import shifted_grid
from chunk_grpo_core.models.tiny.model import load_tiny_flux

ROOT = Path(__file__).resolve().parents[2]


def small(**changes):
    values = {
        "grid": shifted_grid(6, 3.0),
        "plan": ChunkPlan((2, 3)),
        "group_size": 4,
        "update_batch_size": 3,
        "lora.rank": 4,
        **changes,
    }
    return iteration_loops.config_of(**values)


@pytest.mark.slow
@pytest.mark.parametrize("learning_rate", [1e-5, 1e-3])
def test_the_reference_loop_and_the_trainer_agree(learning_rate):
    config = small(**{"optimizer.learning_rate": learning_rate})
    with iteration_loops.Ours(config) as ours:
        theirs = iteration_loops.Theirs(config)
        for _ in range(2):
            ours.start_from(theirs.state_dict())
            ours.iterate()
            theirs.iterate()
        found = iteration_loops.compare(ours, theirs)
    assert len(ours.losses) == len(ours.gradients) == 4 and len(ours.scores) == 2
    assert max(found.values()) < 1e-3
    # 1e-3 moves the policy out of the clip range before the second update.
    assert (theirs.clipped > 0) == (learning_rate > 1e-4)


def test_the_reference_loop_refuses_what_it_does_not_restate():
    with pytest.raises(ValueError, match=r"does not restate objective.ratio, optimizer.epochs"):
        check_restated(small(**{"objective.ratio": "step", "optimizer.epochs": 2}))


def result(**changes):
    good = {"speedup": 2.6, "memory_ratio": 1.0, "difference": {"gradient": 1e-6}}
    return {**good, **changes}


def test_a_limit_that_is_not_kept_is_reported():
    assert iteration.failures(result()) == []
    slow = iteration.failures(result(speedup=2.2, memory_ratio=1.2))
    assert slow == [
        "only 2.20 times as fast as the reference loop",
        "1.20 times the memory of the reference loop",
    ]
    assert iteration.failures(result(difference={"gradient": float("nan")}))


def test_operations_are_those_that_pytorch_counts():
    policy = random_flux.build(TINY, "bf16", 64, torch.device("cpu"), LoraConfig(rank=1))
    policy.transformer.set_attention_backend("native")  # the last one chosen is the default
    x_t = torch.randn(1, *policy.latent_shape)
    with policy.adapter.disabled(), torch.no_grad(), FlopCounterMode(display=False) as counter:
        policy.run(lambda velocity: velocity(x_t, 0.5, ""))
    attention = 5 * 4 * (16 + 8) ** 2 * 160  # the counter does not know the CPU's kernel
    assert counter.get_total_flops() + attention == random_flux.operations(TINY, 16)


@pytest.mark.slow
def test_flux_at_its_true_size_has_twelve_billion_weights_and_is_refused_without_cuda():
    assert 11.8e9 < sizes.parameters() < 11.95e9
    if torch.cuda.is_available():
        return
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.flux_size"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "needs a CUDA device" in done.stderr and "--tiny" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16", "fp8"])
def test_the_tiny_size_is_measured_on_the_cpu(precision):
    policy = random_flux.build(TINY, precision, 64, torch.device("cpu"), LoraConfig(rank=2))
    cases = flux_size.measure(policy, TINY, (precision, ""), [64], [1, 2], peak=1e11)
    assert [case.what for case in cases] == ["rollout step", "update micro-batch"] * 2
    assert [case.batch for case in cases] == [1, 1, 2, 2]
    assert all(case.seconds > 0 and case.share_of_peak > 0 for case in cases)


def test_memory_of_quantised_weights_is_smaller_and_grows_with_size_and_batch():
    def of(precision, pixels=512, batch=1):
        return sizes.memory(precision, pixels, batch, LoraConfig(rank=16)).total

    assert of("bf16") > of("fp8") > of("nf4") > 7
    assert of("bf16", 1024) > of("bf16", 512) and of("bf16", batch=4) > of("bf16")


def test_the_lora_is_counted_as_it_is_put_on():
    policy = random_flux.build(TINY, "bf16", 64, torch.device("cpu"), LoraConfig(rank=3))
    pattern = target_pattern("attention+mlp")
    found = sum(
        3 * (child.in_features + child.out_features)
        for name, child in load_tiny_flux().transformer.named_modules()
        if isinstance(child, torch.nn.Linear) and pattern.fullmatch(name)
    )
    assert found == sum(p.numel() for p in policy.adapter.parameters())


def test_scaling_measures_a_setting():
    setting = scaling.Setting(group=2, steps=3, plan="whole")
    case = scaling.measure("group size", setting, 1)
    assert case.rollout > 0 and case.update > 0
    assert case.trained == 2 * 2 * 2  # prompts, samples, steps
    assert scaling.table([case]).splitlines()[-1].startswith("| group size 2 | ")


@pytest.mark.parametrize("phase", gpu_suite.PHASES, ids=lambda phase: phase.name)
def test_every_phase_for_a_card_is_a_command_that_exists(phase, monkeypatch):
    module = importlib.import_module(phase.words[0])
    if phase.writes:
        monkeypatch.setattr(sys, "argv", ["it", *phase.words[1:], "--json", "f", "--tiny"])
        assert module._arguments().tiny


def test_a_phase_that_fails_or_takes_too_long_says_so_in_its_file(tmp_path):
    slow = gpu_suite.Phase("slow", 1, ("timeit", "-s", "import time", "time.sleep(60)"), False)
    wrong = gpu_suite.Phase("wrong", 1, ("benchmarks.nothing",), False)
    for phase, seconds, status in ((slow, 1.0, "out of time"), (wrong, 60.0, "failed")):
        file = tmp_path / f"{phase.name}.json"
        assert gpu_suite.run(phase, file, seconds, tiny=True)["status"] == status
        assert json.loads(file.read_text())["status"] == status
        assert not gpu_suite._is_measured(file)
    assert "nothing" in json.loads((tmp_path / "wrong.json").read_text())["end"]


def test_the_random_decoder_makes_pictures():
    latents = torch.randn(2, TINY.channels, 8, 8)
    pictures = random_flux.random_decoder(TINY, torch.device("cpu"))(latents)
    assert pictures.shape == (2, 64, 64, 3) and bool(pictures.isfinite().all())
