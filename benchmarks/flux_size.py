"""FLUX.1 at its true size, with random weights: seconds, memory, share of the matrix peak.

python -m benchmarks.flux_size --json benchmarks/results/flux_size.json    # needs a CUDA device
python -m benchmarks.flux_size --tiny                                       # a try-out, anywhere

For each way to keep the weights: seconds of a rollout step (no gradients) and of an update's
micro-batch (forward, backward, blocks computed again), peak memory of each, and which share of the
bf16 matrix peak that is, measured on this very card by one large product. The floating-point
operations are counted by formula (``operations``); a test compares it with PyTorch's counter.

Speed and memory of kernels do not depend on the values of weights, so nothing is loaded.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from chunk_grpo_core.lora import LoraConfig
from chunk_grpo_core.models.flux import FluxPolicy
from chunk_grpo_core.models.fp8 import Fp8Linear, replace_linears, to_fp8
from chunk_grpo_core.optional import require
from chunk_grpo_core.tiny.model import TRANSFORMER_CONFIG

from .chunk_vs_step.measure import write_json
from .machine import facts

__all__ = ["FLUX", "PRECISIONS", "TINY", "Size", "build", "measure", "operations"]

PRECISIONS = ("bf16", "fp8", "nf4")


@dataclass(frozen=True, kw_only=True)
class Size:
    """A transformer and its input."""

    config: dict[str, Any]
    """Arguments of FluxTransformer2DModel."""
    text: int
    """Text tokens."""

    @property
    def width(self) -> int:
        """d."""
        return self.config["num_attention_heads"] * self.config["attention_head_dim"]

    @property
    def channels(self) -> int:
        """Of the latents."""
        return self.config["in_channels"] // 4


FLUX = Size(
    config={
        "patch_size": 1,
        "in_channels": 64,
        "num_layers": 19,
        "num_single_layers": 38,
        "attention_head_dim": 128,
        "num_attention_heads": 24,
        "joint_attention_dim": 4096,
        "pooled_projection_dim": 768,
        "guidance_embeds": True,
    },
    text=512,
)
TINY = Size(config=TRANSFORMER_CONFIG, text=8)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One measurement."""

    precision: str
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


def operations(size: Size, image: int, *, is_update: bool = False, checkpoints: bool = True) -> int:
    """Floating-point operations of one sample, products alone, a multiplication and an addition
    counting as two.

    Forward, for n tokens of width d: every block has 12 d^2 weights for each token (attention 4,
    MLP 8), and attention is 4 n^2 d. An update adds the gradient of the inputs, the weights being
    frozen (as much again; twice as much for attention), and, with checkpoints, the blocks once
    more. A LoRA's own products, 1 % for rank 16, are left out.

    Args:
        size: Model and text.
        image: Image tokens.
        is_update: With the backward pass.
        checkpoints: Blocks are computed again in the backward pass.
    """
    config, d, n = size.config, size.width, image + size.text
    double, single = config["num_layers"], config["num_single_layers"]
    dense = (double + single) * 2 * 12 * d * d * n
    modulation = 2 * d * d * (12 * double + 3 * single + 2)
    ends = 2 * d * (2 * image * config["in_channels"] + size.text * config["joint_attention_dim"])
    embedders = 2 * d * (256 + d) * (1 + config["guidance_embeds"])
    embedders += 2 * d * (config["pooled_projection_dim"] + d)
    attention = (double + single) * 4 * n * n * d
    blocks = dense + attention
    forward = blocks + modulation + ends + embedders
    if not is_update:
        return forward
    return forward + dense + 2 * attention + checkpoints * blocks


def build(size: Size, precision: str, pixels: int, device: torch.device, rank: int) -> FluxPolicy:
    """A policy with random weights.

    Raises:
        ImportError: nf4 is asked for without bitsandbytes.
    """
    diffusers = require("diffusers", "To build FLUX")
    with torch.device("meta"):
        model: Any = diffusers.FluxTransformer2DModel(**size.config)
    dtype = torch.float32 if device.type == "cpu" and precision == "bf16" else torch.bfloat16
    model = model.to(dtype)
    if precision == "fp8":
        replace_linears(model, lambda name: "blocks." in name and "norm" not in name)
    if precision == "nf4":
        _use_nf4(model)
    generator = torch.Generator(device).manual_seed(0)
    _fill(model, dtype, device, generator)
    model.enable_gradient_checkpointing()
    config = size.config
    features = torch.randn(1, size.text, config["joint_attention_dim"], device=device)
    pooled = torch.randn(1, config["pooled_projection_dim"], device=device)
    return FluxPolicy(
        name=precision,
        transformer=model,
        encode=lambda text: (features, pooled),
        decode=lambda latents: latents,
        latent_shape=(size.channels, pixels // 8, pixels // 8),
        lora=LoraConfig(rank=rank, alpha=2.0 * rank),
        guidance=3.5 if config["guidance_embeds"] else None,
        device=device,
    )


def _use_nf4(model: nn.Module) -> None:
    bnb = require("bitsandbytes", "To keep weights as nf4")
    for name, child in list(model.named_modules()):
        if isinstance(child, nn.Linear) and "blocks." in name:
            parent, _, leaf = name.rpartition(".")
            layer = bnb.nn.Linear4bit(
                child.in_features,
                child.out_features,
                bias=child.bias is not None,
                compute_dtype=torch.bfloat16,
                quant_type="nf4",
                device="meta",
            )
            setattr(model.get_submodule(parent), leaf, layer)


@torch.no_grad()
def _fill(
    model: nn.Module, dtype: torch.dtype, device: torch.device, generator: torch.Generator
) -> None:
    """Give every tensor of an empty model values, one layer at a time."""

    def random(tensor: Tensor) -> Tensor:
        values = torch.randn(tensor.shape, device=device, generator=generator, dtype=dtype)
        return values * 0.02 if tensor.ndim > 1 else values * 0.02 + 1.0

    for module in model.modules():
        if isinstance(module, Fp8Linear):
            weight, scale = to_fp8(random(module.weight))
            module.weight = nn.Parameter(weight, requires_grad=False)
            module.scale_weight = scale
        for name, parameter in list(module.named_parameters(recurse=False)):
            if not parameter.is_meta:
                continue
            values = random(parameter)
            if type(parameter).__name__ == "Params4bit":
                kind: Any = type(parameter)
                new = kind(values.cpu(), requires_grad=False, quant_type="nf4").to(device)
            else:
                new = nn.Parameter(values, requires_grad=False)
            setattr(module, name, new)


def matrix_peak(device: torch.device) -> float:
    """Operations a second of one large product: bf16 on an accelerator, float32 on the CPU."""
    side, dtype = (8192, torch.bfloat16) if device.type == "cuda" else (1024, torch.float32)
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    return 2 * side**3 / _seconds(lambda: a @ b, device, 10)


def _seconds(work: Callable[[], object], device: torch.device, times: int) -> float:
    work()
    _wait(device)
    start = time.perf_counter()
    for _ in range(times):
        work()
    _wait(device)
    return (time.perf_counter() - start) / times


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(
    size: Size,
    precision: str,
    pixels: int,
    batch: int,
    device: torch.device,
    rank: int,
    peak: float,
) -> list[Case]:
    """Time and memory of both kinds of call, with one way to keep the weights."""
    policy = build(size, precision, pixels, device, rank)
    x_t = torch.randn(batch, *policy.latent_shape, device=device)
    velocity: Any = policy.run(lambda velocity: velocity)

    def rollout_step() -> None:
        with torch.no_grad():
            velocity(x_t, 0.5, "")

    def update() -> None:
        velocity(x_t, 0.5, "").square().mean().backward()

    cases = []
    for what, work in (("rollout step", rollout_step), ("update micro-batch", update)):
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        seconds = _seconds(work, device, 5)
        count = batch * operations(size, (pixels // 16) ** 2, is_update=work is update)
        cuda = device.type == "cuda"
        cases.append(
            Case(
                precision="float32" if device.type == "cpu" and precision == "bf16" else precision,
                what=what,
                pixels=pixels,
                batch=batch,
                seconds=seconds,
                peak_gib=torch.cuda.max_memory_allocated(device) / 2**30 if cuda else None,
                operations=count,
                share_of_peak=count / seconds / peak,
            )
        )
    return cases


def table(cases: list[Case]) -> str:
    """One line for each case."""
    head = "| weights | what | pixels | samples | s | peak GiB | TFLOP | of the peak |"
    rows = [
        f"| {c.precision} | {c.what} | {c.pixels} | {c.batch} | {c.seconds:.3g} | "
        f"{'-' if c.peak_gib is None else f'{c.peak_gib:.1f}'} | {c.operations / 1e12:.3g} | "
        f"{c.share_of_peak:.0%} |"
        for c in cases
    ]
    return "\n".join([head, "|---" * 8 + "|", *rows])


def main() -> None:
    """Measure every way to keep the weights."""
    parser = argparse.ArgumentParser(prog="benchmarks.flux_size", description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="the tiny FLUX's size, on the CPU")
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--pixels", type=int, default=512, help="width and height")
    parser.add_argument("--batch", type=int, default=1, help="samples in a call")
    parser.add_argument("--rank", type=int, default=16, help="of the LoRA")
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    options = parser.parse_args()
    if options.tiny:
        torch.set_num_threads(1)
        size, device, pixels = TINY, torch.device("cpu"), 64
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
    for precision in precisions:
        cases += measure(size, precision, pixels, options.batch, device, options.rank, peak)
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    print(table(cases))
    if options.json:
        found = {"machine": facts(), "matrix_peak": peak, "cases": [asdict(case) for case in cases]}
        write_json(options.json, found)
        print(json.dumps({"json": str(options.json)}))


if __name__ == "__main__":
    main()
