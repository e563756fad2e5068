"""Reading HDF5 (and so netCDF) files from untrusted sources."""

from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from pyrovae.errors import InputError
from pyrovae.system import atomic, memory

#: Smallest size of any object in the file, in bytes; it bounds the walk through a cycle of groups.
_MIN_OBJECT_SIZE = 40


@contextmanager
def reading(file: Path, what: str) -> Iterator[h5py.File]:
    """Opens a file with a checksum, after reading it into memory and checking its extent.

    Args:
        what: the expected content, for the message.

    Raises:
        InputError: the file is damaged, or the block failed to read it.
    """
    memory.check_memory(2 * file.stat().st_size, f"{file}: the {what}")
    try:
        content = atomic.without_checksum(file.read_bytes())
        with h5py.File(BytesIO(content)) as opened:
            _check_extent(opened, content)
            yield opened
    except (FileNotFoundError, InputError):
        raise
    except Exception as error:  # h5py raises many types of error on damaged files
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"{file}: expected {what}, but the file is damaged ({reason[:200]}); delete it, and 'pyrovae run' "
            "measures the trained runs again"
        ) from error


def text(value: Any, lines: bool = False) -> str:
    """Returns a printable string, or raises ValueError.

    Args:
        lines: whether line breaks are allowed.
    """
    if not isinstance(value, str) or not "".join(value.splitlines() if lines else [value]).isprintable():
        raise ValueError(f"expected text, got {value!r:.60}")
    return value


def _check_extent(file: h5py.File, content: bytes) -> None:
    """Raises ValueError if a file declares more data than it contains, or has links or external data."""
    groups, extent = [file], 0
    while groups:
        group = groups.pop()
        for name in group:
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise ValueError(f"'{name}' is a link")
            item = group[name]
            extent += _MIN_OBJECT_SIZE
            if isinstance(item, h5py.Group):
                groups.append(item)
            elif isinstance(item, h5py.Dataset):
                if item.is_virtual or item.external:
                    raise ValueError(f"'{name}' is stored outside the file")
                extent += item.nbytes + _string_bytes(item, content)
            if extent > len(content):
                raise ValueError("it declares more data than it contains")


def _string_bytes(dataset: h5py.Dataset, content: bytes) -> int:
    """Total length of the strings of a dataset, which holds a length and an address for each."""
    if dataset.dtype.kind != "O" or not dataset.size:
        return 0
    offset = dataset.id.get_offset()
    if offset is None or h5py.check_string_dtype(dataset.dtype) is None:
        raise ValueError(f"'{dataset.name}' has an unexpected type")
    references = np.frombuffer(content, [("length", "<u4"), ("address", "V12")], dataset.size, offset)
    return int(references["length"].sum(dtype=np.int64))
