"""Files that a kill, a full disk or a power failure leaves whole, and folders that one process has at a time."""

import hashlib
import os
import platform
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import filelock

from pyrovae.errors import InputError

#: In the folder of a study, who is at work there.
_HOLDER = ".holder"
_MARK = b"\npyrovae sha256 "


def write(path: Path, content: bytes | memoryview) -> None:
    """Puts a file in its place all at once: written beside it, safe on disk, and renamed.

    Raises:
        OSError: it cannot be written; what was there before is whole.
    """
    beside = part(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_bytes(content)
        put(beside, path)
    except OSError as error:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
        raise OSError(
            f"{path}: expected to write it, got: {error.strerror or error}; what was there before is whole"
        ) from error


def part(path: Path) -> Path:
    """Where a file is written that is not yet whole."""
    return path.with_name(f".{path.name}.part")


def put(beside: Path, path: Path) -> None:
    """Gives a file that is whole its name, once it is safe on disk."""
    _sync(beside, os.O_RDWR)
    os.replace(beside, path)
    if os.name == "posix":  # where a folder can be opened
        _sync(path.parent, os.O_RDONLY)


def with_checksum(content: bytes | memoryview) -> bytes:
    """Content with its checksum at the end, where readers of netCDF do not look."""
    return b"".join([content, _MARK, hashlib.sha256(content).hexdigest().encode()])


def without_checksum(content: bytes) -> bytes:
    """What `sealed` was given.

    Raises:
        ValueError: it is not what `sealed` gave.

    Example:
        >>> unsealed(sealed(b"numbers"))
        b'numbers'
        >>> unsealed(sealed(b"numbers").replace(b"n", b"m"))
        Traceback (most recent call last):
        ValueError: it was cut or changed since it was written
    """
    inside, _, _ = content.rpartition(_MARK)
    if with_checksum(inside) != content:
        raise ValueError("it was cut or changed since it was written")
    return inside


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps other processes out of a folder; the lock goes with the process, however it ends.

    What a killed process left half-written is removed.

    Raises:
        InputError: another process has the folder, it cannot be written to, or something in it leads out of it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        check_plain(folder)
        lock = filelock.FileLock(folder / ".lock").acquire(blocking=False)
        holder = folder / _HOLDER
        holder.write_text(f"{os.getpid()} {platform.node()}", encoding="utf-8")
        for left in folder.rglob(part(Path("*")).name):
            if left.is_file() and not left.parent.name.startswith("."):  # there a diagnosis may be under way
                left.unlink()
    except filelock.Timeout:
        raise InputError(f"{folder}: expected a free folder, but {_holder(folder)}") from None
    except OSError as error:
        raise InputError(f"{folder}: expected a folder that can be written to, got: {error.strerror}") from error
    with lock:
        try:
            yield
        finally:
            holder.unlink(missing_ok=True)


@contextmanager
def held(lock: Path, wait: Callable[[], bool]) -> Iterator[bool]:
    """Keeps other processes from the same work, on this machine and on those that share a folder.

    Args:
        lock: a file that stands for the work.
        wait: is asked again and again while another process is at it, and says whether to go on waiting.

    Yields:
        Whether this process may do it now.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    try:
        taken = filelock.FileLock(lock).acquire(poll_interval=0.2, cancel_check=lambda: not wait())
    except filelock.Timeout:
        yield False
        return
    with taken:
        yield True


def holder(folder: Path) -> str:
    """What the process that has a folder wrote there of itself; empty where there is none to be seen.

    A process on another machine that reads the same sees the same folder.
    """
    try:
        return (folder / _HOLDER).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def check_plain(folder: Path) -> None:
    """Raises InputError if there are other things in a folder than files and folders: a link leads out of it."""
    for path in folder.rglob("*"):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            got = f"a link to {path.readlink()}" if path.is_symlink() else "something else"
            raise InputError(f"{path}: expected nothing but files and folders in the folder of a study, got {got}")


def _holder(folder: Path) -> str:
    """What is known of the process that has a folder."""
    try:
        with (folder / _HOLDER).open(encoding="utf-8") as file:
            told = re.fullmatch(r"(\d{1,9}) ([\w.-]{1,64})", file.read(100))
    except (OSError, UnicodeDecodeError):
        told = None
    return f"{'another process' if told is None else f'process {told[1]} on {told[2]}'} is at work in it"


def _sync(path: Path, flags: int) -> None:
    """Returns once a file or a folder is safe on disk."""
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
