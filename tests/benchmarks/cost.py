"""Time and memory of this process."""

import resource
import time
from collections.abc import Callable

import torch


def seconds(work: Callable[[], object]) -> float:
    """Duration of one call, including what it leaves to a GPU."""
    start = time.perf_counter()
    work()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def peak_memory() -> int:
    """Peak resident memory, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
