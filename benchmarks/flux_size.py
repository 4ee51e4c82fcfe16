"""FLUX.1 at its true size, with random weights: seconds, memory, share of the matrix peak.

python -m benchmarks.flux_size --json benchmarks/results/flux_size.json    # needs a CUDA device
python -m benchmarks.flux_size --compile --pixels 512 1024 --batch 1 4
python -m benchmarks.flux_size --tiny                                       # a try-out, anywhere

For each way to keep the weights: seconds of a rollout step (no gradients) and of an update's
micro-batch (forward, backward, blocks computed again), peak memory of each, and which share of the
bf16 matrix peak that is, measured on this very card by one large product. The floating-point
operations are counted by formula (``random_flux.operations``); a test compares it with PyTorch's
counter.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from chunk_grpo_core.lora.adapter import LoraConfig
from chunk_grpo_core.method.policy import Velocity
from chunk_grpo_core.models.attention import ATTENTION
from chunk_grpo_core.models.flux.config import FluxModel
from chunk_grpo_core.models.flux.policy import FluxPolicy
from chunk_grpo_core.train.cost import peak_gib

from .chunk_vs_step.measure import write_json
from .machine import facts
from .random_flux import FLUX, PRECISIONS, TINY, Size, build, operations

__all__ = ["Case", "forget_peak", "matrix_peak", "measure", "table", "wait"]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One measurement."""

    precision: str
    options: str
    """Attention kernel and compilation, where they were chosen."""
    what: str
    """rollout step or update micro-batch."""
    pixels: int
    batch: int
    seconds: float
    peak_gib: float | None
    """Of the accelerator; None on the CPU."""
    operations: float
    share_of_peak: float
    """Operations a second, in parts of the matrix peak."""


def matrix_peak(device: torch.device) -> float:
    """Operations a second of one large product: bf16 on an accelerator, float32 on the CPU."""
    side, dtype = (8192, torch.bfloat16) if device.type == "cuda" else (1024, torch.float32)
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    return 2 * side**3 / _seconds(lambda: a @ b, device, 10)


def _seconds(work: Callable[[], object], device: torch.device, times: int) -> float:
    work()
    wait(device)
    start = time.perf_counter()
    for _ in range(times):
        work()
    wait(device)
    return (time.perf_counter() - start) / times


def wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def forget_peak(device: torch.device) -> None:
    """Begin to look for the largest memory anew."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def measure(
    policy: FluxPolicy,
    size: Size,
    label: tuple[str, str],
    pixels: list[int],
    batches: list[int],
    peak: float,
) -> list[Case]:
    """Time and memory of both kinds of call.

    Args:
        policy: A model from :func:`.random_flux.build`.
        size: Its size.
        label: How weights are kept, and options.
        pixels: Widths of pictures.
        batches: Samples in a call.
        peak: Operations a second of one large product.
    """
    return policy.run(
        lambda velocity: [
            case
            for side in pixels
            for batch in batches
            for case in _both(velocity, policy, size, label, side, batch, peak)
        ]
    )


def _both(
    velocity: Velocity,
    policy: FluxPolicy,
    size: Size,
    label: tuple[str, str],
    side: int,
    batch: int,
    peak: float,
) -> Iterator[Case]:
    device = policy.device
    x_t = torch.randn(batch, size.channels, side // 8, side // 8, device=device)

    def rollout_step() -> None:
        with torch.no_grad():
            velocity(x_t, 0.5, "")

    def update() -> None:
        velocity(x_t, 0.5, "").square().mean().backward()

    for what, work in (("rollout step", rollout_step), ("update micro-batch", update)):
        forget_peak(device)
        seconds = _seconds(work, device, 5)
        count = batch * operations(size, (side // 16) ** 2, is_update=work is update)
        yield Case(
            precision=label[0],
            options=label[1],
            what=what,
            pixels=side,
            batch=batch,
            seconds=seconds,
            peak_gib=peak_gib(device),
            operations=count,
            share_of_peak=count / seconds / peak,
        )


def _named(options: FluxModel) -> str:
    return ", ".join(filter(None, (options.attention, "compiled" * options.compile)))


def table(cases: list[Case]) -> str:
    """One line for each case."""
    head = "| weights | options | what | pixels | samples | s | peak GiB | TFLOP | of the peak |"
    rows = [
        f"| {c.precision} | {c.options} | {c.what} | {c.pixels} | {c.batch} | {c.seconds:.3g} | "
        f"{'-' if c.peak_gib is None else f'{c.peak_gib:.1f}'} | {c.operations / 1e12:.3g} | "
        f"{c.share_of_peak:.0%} |"
        for c in cases
    ]
    return "\n".join([head, "|---" * 9 + "|", *rows])


def main() -> None:
    """Measure every way to keep the weights."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.flux_size",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--tiny", action="store_true", help="the tiny FLUX's size, on the CPU")
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--pixels", nargs="+", type=int, default=[512], help="width and height")
    parser.add_argument("--batch", nargs="+", type=int, default=[1], help="samples in a call")
    parser.add_argument("--attention", choices=sorted(ATTENTION), default="", help="the kernel")
    parser.add_argument("--compile", action="store_true", help="compile the blocks")
    parser.add_argument("--rank", type=int, default=16, help="of the LoRA")
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    options = parser.parse_args()
    if options.tiny:
        torch.set_num_threads(1)
        size, device, pixels = TINY, torch.device("cpu"), [64]
        precisions = [precision for precision in options.precision if precision != "nf4"]
    elif not torch.cuda.is_available():
        raise SystemExit(
            "FLUX.1 at its true size (12 billion parameters) needs a CUDA device, and torch finds "
            "none; --tiny runs the same measurement on a very small model"
        )
    else:
        size, device, pixels = FLUX, torch.device("cuda"), options.pixels
        precisions = options.precision
    peak, cases = matrix_peak(device), []
    print(f"matrix peak: {peak / 1e12:.3g} TFLOP/s")
    chosen = FluxModel(attention=options.attention, compile=options.compile)
    lora = LoraConfig(rank=options.rank, alpha=2.0 * options.rank)
    for precision in precisions:
        policy = build(size, precision, pixels[0], device, lora, chosen)
        kept = "float32" if device.type == "cpu" and precision == "bf16" else precision
        cases += measure(policy, size, (kept, _named(chosen)), pixels, options.batch, peak)
        del policy
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    print(table(cases))
    if options.json:
        report = {
            "machine": facts(),
            "matrix_peak": peak,
            "cases": [asdict(case) for case in cases],
        }
        write_json(options.json, report)
        print(json.dumps({"json": str(options.json)}))


if __name__ == "__main__":
    main()
