"""Everything that only a card can tell, in the order of its value, in as many minutes as there are.

python -m benchmarks.gpu_suite --minutes 12    # needs CUDA
python -m benchmarks.gpu_suite --tiny          # tries all phases out on the CPU

Each phase is one command with a time limit and writes its own file to ``results/gpu_suite/``. What
is there is not measured again (``--again`` does), so the suite goes on where it stopped; a phase
that fails or runs out of time leaves the end of what it said, and the next one begins. Nothing is
downloaded: weights are random and made on the card. ComfyUI is found like in the tests
(``COMFYUI_PATH``).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .chunk_vs_step.measure import write_json
from .machine import facts

__all__ = ["PHASES", "Phase", "run"]

RESULTS = Path(__file__).resolve().parent / "results" / "gpu_suite"
_NATIVE = ("benchmarks.native_size", "--model")
_ITERATION = ("benchmarks.flux_iteration", "--pixels")
_FOUR = ("--batch", "4", "--update-batch", "4")


@dataclass(frozen=True)
class Phase:
    """One command."""

    name: str
    minutes: float
    """It is stopped after these."""
    words: tuple[str, ...]
    """Module and arguments."""
    writes: bool = True
    """It takes ``--json FILE``, and ``--tiny``."""


PHASES = (
    Phase("gpu_tests", 3, ("pytest", "-q", "-m", "gpu", "tests"), writes=False),
    Phase("native_fp8_24", 3, (*_NATIVE, "flux1-dev", "--precision", "fp8", "--memory", "24")),
    Phase("native_fp8_16", 3, (*_NATIVE, "flux1-dev", "--precision", "fp8", "--memory", "16")),
    Phase(
        "native_fp8_24_safe_lora",
        3,
        (*_NATIVE, "flux1-dev", "--precision", "fp8", "--memory", "24", "--recipe", "safe-lora"),
    ),
    Phase(
        "against_reference",
        4,
        (*_ITERATION, "512", "--against-reference", "--preset", "gcpo-script"),
    ),
    Phase("compiled_bf16_512", 3, (*_ITERATION, "512", *_FOUR, "--compile", "--fused")),
    Phase("compiled_bf16_1024", 3, (*_ITERATION, "1024", "--compile", "--fused")),
    Phase("compiled_fp8_512", 3, (*_ITERATION, "512", *_FOUR, "--compile", "--precision", "fp8")),
    Phase(
        "native_klein_16",
        2,
        (*_NATIVE, "flux2-klein-4b", "--precision", "bf16", "--memory", "16"),
    ),
    Phase("native_z_image_16", 2, (*_NATIVE, "z-image", "--precision", "fp8", "--memory", "16")),
    Phase("native_z_image_24", 2, (*_NATIVE, "z-image", "--precision", "bf16", "--memory", "24")),
)  # fmt: skip
"""In the order in which they are worth their minutes."""


def run(phase: Phase, file: Path, seconds: float, *, tiny: bool) -> dict[str, Any]:
    """Run one phase and leave its file; returns what became of it."""
    command = [sys.executable, "-m", *phase.words]
    if phase.writes:
        command += ["--json", str(file), *(["--tiny"] if tiny else [])]
    began = time.monotonic()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
        said, status = done.stdout + done.stderr, done.returncode
    except subprocess.TimeoutExpired as error:
        said, status = _text(error.stdout) + _text(error.stderr), None
    outcome = {
        "phase": phase.name,
        "status": "out of time" if status is None else "done" if status == 0 else "failed",
        "seconds": round(time.monotonic() - began, 1),
    }
    if status != 0 or not phase.writes:
        outcome["end"] = said[-2000:]
        write_json(file, {"machine": facts(), **outcome})
    return outcome


def _text(output: bytes | str | None) -> str:
    return output.decode(errors="replace") if isinstance(output, bytes) else output or ""


def _is_measured(file: Path) -> bool:
    if not file.exists():
        return False
    return json.loads(file.read_text(encoding="utf-8")).get("status", "done") == "done"


def main() -> None:
    """Run what is missing, as long as there is time."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.gpu_suite",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = [phase.name for phase in PHASES]
    parser.add_argument("--minutes", type=float, default=12.0, help="time in all")
    parser.add_argument("--only", nargs="+", choices=names, help="these phases")
    parser.add_argument("--again", action="store_true", help="also what was measured")
    parser.add_argument("--tiny", action="store_true", help="very small models on the CPU")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the files")
    options = parser.parse_args()
    if not (options.tiny or torch.cuda.is_available()):
        raise SystemExit("this needs a CUDA device, and torch finds none; try it out with --tiny")
    end = time.monotonic() + 60 * options.minutes
    failed = False
    for phase in PHASES:
        file = options.out / f"{phase.name}.json"
        if options.only and phase.name not in options.only:
            continue
        if not options.again and _is_measured(file):
            print(f"{phase.name}: is there", flush=True)
            continue
        left = end - time.monotonic()
        if left < 20:
            print(f"{phase.name}: no time is left", flush=True)
            continue
        outcome = run(phase, file, min(60 * phase.minutes, left), tiny=options.tiny)
        failed |= outcome["status"] != "done"
        print(json.dumps(outcome), flush=True)
    raise SystemExit(int(failed))


if __name__ == "__main__":
    main()
