"""Free memory, checks of sizes against it, and the return of freed memory to the system."""

import ctypes
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch

from pyrovae.errors import OutOfMemoryError

#: The C library, which may be GNU's, and the numbers of the parameters of its mallopt.
_LIBRARY: Any = ctypes.CDLL(None) if sys.platform == "linux" else None
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
CONTROL_GROUPS = Path("/sys/fs/cgroup")


def free_memory(device: torch.device | None = None) -> int:
    """Free bytes on a device, by default in main memory within the limits of this process."""
    if device is not None and device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return min([psutil.virtual_memory().available, *_left_by_limits()])


def _left_by_limits() -> Iterator[int]:
    """Bytes left by the limits of the process and of its control groups, which batch systems and containers set."""
    if hasattr(psutil, "RLIMIT_AS"):  # on Linux
        process = psutil.Process()
        limit, _ = process.rlimit(psutil.RLIMIT_AS)
        if limit != psutil.RLIM_INFINITY:
            yield limit - process.memory_info().vms
    own = Path("/proc/self/cgroup")  # a line 0::/the/group for control groups of version 2
    groups = re.findall("^0::/(.*)$", own.read_text(encoding="utf-8"), re.MULTILINE) if own.exists() else []
    for group in groups:
        yield from _left_by_groups(CONTROL_GROUPS / group)


def _left_by_groups(group: Path) -> Iterator[int]:
    """Bytes left by the limits of a control group and of its parents."""
    for folder in [group, *group.parents]:
        file = folder / "memory.max"  # missing in the root group
        if file.exists() and (limit := file.read_text(encoding="ascii").strip()) != "max":
            used = int((folder / "memory.current").read_text(encoding="ascii"))
            stat = dict(line.split() for line in (folder / "memory.stat").read_text(encoding="ascii").splitlines())
            yield int(limit) - used + int(stat["inactive_file"])  # the cache of files is given up on demand


def check_memory(size: float, what: str, device: torch.device | None = None, share: float = 1) -> None:
    """Raises OutOfMemoryError if something needs more memory than is free.

    Args:
        size: in bytes.
        what: its name in the message.
        device: by default main memory.
        share: share of the free memory that it may take.

    Example:
        >>> check_memory(2.0**70, "weights")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        pyrovae.errors.OutOfMemoryError: weights would take 1,099,511,627,776.0 GB, and ... GB of memory are free
    """
    free = share * free_memory(device)
    if size > free:
        raise OutOfMemoryError(
            f"{what} would take {size / 2**30:,.1f} GB, and {free / 2**30:,.1f} GB of memory are free"
            f"{f' (less a margin of {1 - share:.0%})' if share < 1 else ''}"
        )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out, on the CPU or on a GPU."""
    if isinstance(error, OutOfMemoryError | MemoryError | torch.OutOfMemoryError):
        return True
    if isinstance(error, RuntimeError) and "can't allocate memory" in str(error):
        return True
    # Ending the capture of a CUDA graph raises another error, which hides this one.
    return error.__context__ is not None and is_out_of_memory(error.__context__)


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Keeps memory that is freed inside the block in the process, if the C library supports it.

    A step frees large tensors, and the next one allocates as many. Returning them to the system in between costs page
    faults, which can take a fifth of the step.
    """
    if not hasattr(_LIBRARY, "mallopt"):
        yield
        return
    _LIBRARY.mallopt(_MMAP_MAX, 0)
    _LIBRARY.mallopt(_TRIM_THRESHOLD, -1)
    try:
        yield
    finally:  # the values at which the library's own adaptation, which is off now, ends
        _LIBRARY.mallopt(_MMAP_MAX, 65_536)
        _LIBRARY.mallopt(_MMAP_THRESHOLD, 2**25)
        _LIBRARY.mallopt(_TRIM_THRESHOLD, 2**26)
        give_back_memory()


def give_back_memory() -> None:
    """Returns freed memory to the system, if the C library supports it, and to other processes on the GPU."""
    torch.cuda.empty_cache()  # does nothing if no GPU was used
    if hasattr(_LIBRARY, "malloc_trim"):
        _LIBRARY.malloc_trim(0)
