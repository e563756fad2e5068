"""HDF5 files from anywhere, of which netCDF files are some: believed only as far as they were checked."""

from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from pyrovae.errors import InputError
from pyrovae.system import atomic, memory


@contextmanager
def reading(file: Path, what: str) -> Iterator[h5py.File]:
    """A file with its checksum, read into memory, for what is done with it in the block.

    Args:
        what: it is to be, for the message.

    Raises:
        InputError: it is damaged, or the block could not do with it what it wanted.
    """
    memory.check_memory(2 * file.stat().st_size, f"{file}: the {what}")
    try:
        content = atomic.without_checksum(file.read_bytes())
        with h5py.File(BytesIO(content)) as found:
            _check_extent(found, content)
            yield found
    except (FileNotFoundError, InputError):
        raise
    except Exception as error:  # the readers of a damaged file raise errors of many kinds
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"{file}: expected {what}, but the file is damaged ({reason[:200]}); delete it, and 'pyrovae run' "
            "measures the trained runs again"
        ) from error


def text(value: Any, lines: bool = False) -> str:
    """Text that a terminal and a page can show."""
    if not isinstance(value, str) or not "".join(value.splitlines() if lines else [value]).isprintable():
        raise ValueError(f"expected text, got {value!r:.60}")
    return value


def _check_extent(file: h5py.File, content: bytes) -> None:
    """Raises ValueError if an HDF5 file says that it holds more than it does, or has parts in other places."""
    groups, extent = [file], 0
    while groups:
        group = groups.pop()
        for name in group:
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise ValueError(f"'{name}' is a link")
            part = group[name]
            extent += 40  # bytes that any part takes at the least, so that a circle of groups ends
            if isinstance(part, h5py.Group):
                groups.append(part)
            elif isinstance(part, h5py.Dataset):
                if part.is_virtual or part.external:
                    raise ValueError(f"'{name}' is in another place")
                extent += part.nbytes + _lengths(part, content)
            if extent > len(content):
                raise ValueError("it says that it holds more than it does")


def _lengths(part: h5py.Dataset, content: bytes) -> int:
    """Bytes of the texts of a dataset, which lie apart from it: it has the length and the place of each."""
    if part.dtype.kind != "O" or not part.size:
        return 0
    place = part.id.get_offset()
    if place is None or h5py.check_string_dtype(part.dtype) is None:
        raise ValueError(f"'{part.name}' is of a kind that is not expected")
    told = np.frombuffer(content, [("length", "<u4"), ("place", "V12")], part.size, place)
    return int(told["length"].sum(dtype=np.int64))
