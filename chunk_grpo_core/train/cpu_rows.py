"""Make a CPU round a sample's numbers alike, whichever samples are in the batch with it.

The ratio of the first update is exactly 1 only if a sample-step gets the same last bits in the
batch of the rollout and in that of the update. On Intel CPUs the matrix products of MKL, which
PyTorch uses, round by the number of rows unless MKL is asked not to. It costs no measurable time.

References:
    Intel oneMKL Developer Guide: Conditional Numerical Reproducibility, strict mode.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from pathlib import Path

__all__ = ["ask_for_equal_rows"]

_CPU_INFO = Path("/proc/cpuinfo")


def ask_for_equal_rows(environment: MutableMapping[str, str], cpu_info: Path = _CPU_INFO) -> None:
    """Ask MKL for equal rows, on Linux and Intel CPUs; what the user has set stays.

    Args:
        environment: Of this process, before PyTorch's first matrix product, or of one to start.
        cpu_info: What the kernel says of the CPU.
    """
    if cpu_info.is_file() and "GenuineIntel" in cpu_info.read_text(errors="replace"):
        environment.setdefault("MKL_CBWR", "AUTO,STRICT")
