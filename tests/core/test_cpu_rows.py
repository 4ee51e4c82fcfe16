"""A sample's numbers do not depend on the batch it is in."""

import subprocess
import sys

import pytest
import torch

from chunk_grpo_core.method.micro_batches import SMALLEST_BATCH
from chunk_grpo_core.train.cpu_rows import ask_for_equal_rows


@pytest.mark.parametrize(
    ("text", "before", "after"),
    [
        ("vendor_id\t: GenuineIntel\n", {}, {"MKL_CBWR": "AUTO,STRICT"}),
        ("vendor_id\t: GenuineIntel\n", {"MKL_CBWR": "AVX2"}, {"MKL_CBWR": "AVX2"}),
        ("vendor_id\t: AuthenticAMD\n", {}, {}),
    ],
)
def test_intel_cpus_are_asked_and_a_users_choice_stays(tmp_path, text, before, after):
    (tmp_path / "cpuinfo").write_text(text)
    ask_for_equal_rows(before, tmp_path / "cpuinfo")
    assert before == after


def test_a_system_without_cpu_information_is_left_alone(tmp_path):
    environment = {}
    ask_for_equal_rows(environment, tmp_path / "none")
    assert environment == {}


@pytest.mark.parametrize(("width", "out"), [(64, 64), (128, 512), (256, 64)])
def test_a_row_of_a_product_does_not_depend_on_the_others(width, out):
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(1024, width, generator=generator)
    weight = torch.randn(out, width, generator=generator)
    whole = rows @ weight.T
    sizes = range(SMALLEST_BATCH * 64, 1024, 64)  # 64 tokens a picture, 4 pictures or more
    assert [n for n in sizes if not torch.equal(rows[:n] @ weight.T, whole[:n])] == []


@pytest.mark.slow
def test_the_command_line_asks_before_the_first_product():
    code = (
        "import os, sys; sys.argv = ['chunk-grpo', '--version']\n"
        "import chunk_grpo_core.__main__ as command\n"
        "command.ask_for_equal_rows = lambda environment: print(environment is os.environ)\n"
        "command.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.split()[:1] == ["True"], done.stderr
