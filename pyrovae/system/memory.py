"""Free memory, and what keeps within it."""

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

#: The C library, where it may be GNU's, and what its mallopt calls its settings.
_LIBRARY: Any = ctypes.CDLL(None) if sys.platform == "linux" else None
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
CONTROL_GROUPS = Path("/sys/fs/cgroup")


def free_memory(place: torch.device | None = None) -> int:
    """Bytes that are free on a device, or in the machine's memory as far as its limits leave it to this process."""
    if place is not None and place.type == "cuda":
        free, _ = torch.cuda.mem_get_info(place)
        return free + torch.cuda.memory_reserved(place) - torch.cuda.memory_allocated(place)
    return min([psutil.virtual_memory().available, *_left_by_limits()])


def _left_by_limits() -> Iterator[int]:
    """What is left by the limits of the process, and of control groups, as batch systems and containers set them."""
    if hasattr(psutil, "RLIMIT_AS"):  # on Linux
        process = psutil.Process()
        most, _ = process.rlimit(psutil.RLIMIT_AS)
        if most != psutil.RLIM_INFINITY:
            yield most - process.memory_info().vms
    own = Path("/proc/self/cgroup")  # as 0::/the/group, where there are control groups of version 2
    groups = re.findall("^0::/(.*)$", own.read_text(encoding="utf-8"), re.MULTILINE) if own.exists() else []
    for group in groups:
        yield from _left_by_groups(CONTROL_GROUPS / group)


def _left_by_groups(group: Path) -> Iterator[int]:
    """What is left by the limits of a control group, and of those that it belongs to."""
    for folder in [group, *group.parents]:
        limit = folder / "memory.max"  # which the outermost has not
        if limit.exists() and (most := limit.read_text(encoding="ascii").strip()) != "max":
            used = int((folder / "memory.current").read_text(encoding="ascii"))
            told = dict(line.split() for line in (folder / "memory.stat").read_text(encoding="ascii").splitlines())
            yield int(most) - used + int(told["inactive_file"])  # files that were read are let go of


def check_memory(size: float, what: str, place: torch.device | None = None, share: float = 1) -> None:
    """Raises OutOfMemoryError if something would take more memory than is free.

    Args:
        size: in bytes.
        what: it is, for the message.
        place: the device; by default the memory of the machine.
        share: of the free memory that may be taken.

    Example:
        >>> check_memory(2.0**70, "weights")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        pyrovae.errors.OutOfMemoryError: weights would take 1,099,511,627,776.0 GB, and ... GB of memory are free
    """
    free = share * free_memory(place)
    if size > free:
        raise OutOfMemoryError(
            f"{what} would take {size / 2**30:,.1f} GB, and {free / 2**30:,.1f} GB of memory are free"
            f"{f' (less a margin of {1 - share:.0%})' if share < 1 else ''}"
        )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory could not be had; torch has a class of its own for devices alone."""
    if isinstance(error, OutOfMemoryError | MemoryError | torch.OutOfMemoryError):
        return True
    if isinstance(error, RuntimeError) and "can't allocate memory" in str(error):
        return True
    # The end of a CUDA graph that is being captured has an error of its own to tell.
    return error.__context__ is not None and is_out_of_memory(error.__context__)


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Keeps memory that is freed inside the block for what comes next there, where the C library can be told to.

    A step frees large tensors, and the next asks for as many. If they are given back to the system in between, they
    return page by page, which can take a fifth of the step.
    """
    if not hasattr(_LIBRARY, "mallopt"):
        yield
        return
    _LIBRARY.mallopt(_MMAP_MAX, 0)
    _LIBRARY.mallopt(_TRIM_THRESHOLD, -1)
    try:
        yield
    finally:  # where the library's own adaptation ends, which is off now
        _LIBRARY.mallopt(_MMAP_MAX, 65_536)
        _LIBRARY.mallopt(_MMAP_THRESHOLD, 2**25)
        _LIBRARY.mallopt(_TRIM_THRESHOLD, 2**26)
        give_back_memory()


def give_back_memory() -> None:
    """Gives memory that was freed back to the system, where the C library can be told to, and to others on the GPU."""
    torch.cuda.empty_cache()  # nothing happens where none was used
    if hasattr(_LIBRARY, "malloc_trim"):
        _LIBRARY.malloc_trim(0)
