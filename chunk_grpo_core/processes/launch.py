"""Join the processes that a launcher (torchrun, accelerate launch) has started.

Launchers say what they did in environment variables. torch.distributed does the talking; nothing of
accelerate is imported, so that it is needed by those alone who launch with it.
"""

from __future__ import annotations

import gc
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

# Its default arguments are the group there is when it is imported: here none, which _leave counts
# on. An optimiser imports it, too, but later.
import torch.distributed.nn.functional as _  # noqa: F401

from .collective import Processes, TorchProcesses
from .environment import is_launched

__all__ = ["TIMEOUT", "PeerLost", "asks_for_sharding", "join_processes"]

TIMEOUT = 1800.0
"""Seconds that a process waits for the others before it gives up."""

#: Variable of accelerate -> values that change nothing here, and where the choice is made instead.
_ACCELERATE = {
    "ACCELERATE_MIXED_PRECISION": ("no", "mixed_precision to no; model.weights decides"),
    "ACCELERATE_USE_DEEPSPEED": ("false", "distributed_type to MULTI_GPU or FSDP"),
    "ACCELERATE_USE_MEGATRON_LM": ("false", "distributed_type to MULTI_GPU or FSDP"),
    "ACCELERATE_DYNAMO_BACKEND": ("no", "dynamo_backend to no; models are not compiled"),
    "FSDP_OFFLOAD_PARAMS": ("false", "fsdp_offload_params to false"),
}


class PeerLost(RuntimeError):
    """Another process of the run has ended or does not answer."""


def asks_for_sharding(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether accelerate's configuration wants FSDP2.

    Raises:
        ValueError: It wants something that is not done here; the message says what to set.
    """
    for name, (neutral, remedy) in _ACCELERATE.items():
        value = environment.get(name, neutral)
        if value.lower() != neutral:
            raise ValueError(f"accelerate has set {name}={value}; set {remedy}")
    wanted = environment.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    version = environment.get("FSDP_VERSION", "1")
    if wanted and version != "2":
        raise ValueError(f"accelerate has set FSDP_VERSION={version}; set fsdp_version to 2")
    return wanted


@contextmanager
def join_processes(*, timeout: float = TIMEOUT, split_groups: bool = False) -> Iterator[Processes]:
    """Meet the other processes, and leave them in the end.

    Args:
        timeout: Seconds that a process waits for the others, above 0.
        split_groups: See :func:`~chunk_grpo_core.processes.collective.divided`.

    Raises:
        ValueError: A setting is out of range, there are more processes than GPUs, or groups are to
            be split and this process is alone.
        PeerLost: Inside the context, another process went away.
    """
    if not timeout > 0:
        raise ValueError(f"the time-out of the processes is {timeout} s; it must be above 0")
    if not is_launched():
        if split_groups:
            raise ValueError(
                "--split-groups has no effect with one process; leave it out, or start several "
                "with torchrun or 'accelerate launch' (docs/distributed.md)"
            )
        yield Processes()
        return
    limit, local_rank = timedelta(seconds=timeout), int(os.environ.get("LOCAL_RANK", "0"))
    device, backend = _device(local_rank)
    with _losses_named():
        dist.init_process_group(backend, timeout=limit)
        processes = TorchProcesses(
            timeout=limit, split_groups=split_groups, local_rank=local_rank, device=device
        )
        yield processes
        _leave(processes)  # not after an error: it might wait for those that are gone


def _leave(processes: TorchProcesses) -> None:
    """End the groups and their threads.

    A thread of gloo that is still letting go of its last message when Python ends aborts the
    process (it asks for the lock of an interpreter that is gone), and the launcher calls a finished
    run failed. The threads end with the last reference to their group, so those in cycles are
    collected. FSDP keeps what it has spread, and the first group with it, whose threads have been
    idle since the last gradient.
    """
    dist.destroy_process_group()
    processes.leave()
    gc.collect()


def _device(local_rank: int) -> tuple[torch.device, str]:
    """Where this process computes, and what its tensors travel by."""
    if not torch.cuda.is_available():
        return torch.device("cpu"), "gloo"
    if local_rank >= torch.cuda.device_count():
        raise ValueError(
            f"process {local_rank} of this machine has no GPU; there are "
            f"{torch.cuda.device_count()}, so start that many processes at most"
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank), "cpu:gloo,cuda:nccl"


@contextmanager
def _losses_named() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        # gloo has no exception of its own, but puts the place in its source into the text.
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        raise PeerLost(
            f"another process of this run has ended or does not answer ({_reason(error)})"
        ) from error


def _reason(error: Exception) -> str:
    """The first sentence, without the place in the source of gloo."""
    text = re.sub(r"^\[\S+\]\s*", "", str(error).strip())
    return re.split(r"\.\s|\n", text)[0].rstrip(".")
