"""Atomic file writes, checksums, and locks on folders and work."""

import hashlib
import os
import platform
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import filelock

from pyrovae.errors import InputError

#: File in the folder of a study that names the process that has locked it.
_HOLDER = ".holder"
_MARK = b"\npyrovae sha256 "


def write(path: Path, content: bytes | memoryview) -> None:
    """Writes a file atomically: to a temporary file in the same folder, synced to disk and renamed.

    Raises:
        OSError: the file cannot be written; an earlier file of this name is unchanged.
    """
    partial = partial_path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(content)
        move_into_place(partial, path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise OSError(
            f"{path}: expected to write it, got: {error.strerror or error}; an earlier version is unchanged"
        ) from error


def partial_path(path: Path) -> Path:
    """The temporary file in which the content of `path` is written."""
    return path.with_name(f".{path.name}.part")


def move_into_place(partial: Path, path: Path) -> None:
    """Syncs a complete file to disk and renames it."""
    _sync(partial, os.O_RDWR)
    os.replace(partial, path)
    if os.name == "posix":  # elsewhere, folders cannot be opened
        _sync(path.parent, os.O_RDONLY)


def with_checksum(content: bytes | memoryview) -> bytes:
    """Appends a SHA-256 checksum, where readers of netCDF do not look."""
    return b"".join([content, _MARK, hashlib.sha256(content).hexdigest().encode()])


def without_checksum(content: bytes) -> bytes:
    """Verifies and removes the checksum that `with_checksum` appended.

    Raises:
        ValueError: the checksum is missing or wrong.

    Example:
        >>> without_checksum(with_checksum(b"numbers"))
        b'numbers'
        >>> without_checksum(with_checksum(b"numbers").replace(b"n", b"m"))
        Traceback (most recent call last):
        ValueError: it was truncated or changed after it was written
    """
    inside, _, _ = content.rpartition(_MARK)
    if with_checksum(inside) != content:
        raise ValueError("it was truncated or changed after it was written")
    return inside


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Locks a folder against other processes, and removes the partial files of a killed one.

    The operating system releases the lock when the process ends, however it ends.

    Raises:
        InputError: another process has locked the folder, it is not writable, or it contains links.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        check_no_links(folder)
        lock = filelock.FileLock(folder / ".lock").acquire(blocking=False)
        holder_file = folder / _HOLDER
        holder_file.write_text(f"{os.getpid()} {platform.node()}", encoding="utf-8")
        for partial in folder.rglob(partial_path(Path("*")).name):
            if partial.is_file() and not partial.parent.name.startswith("."):  # a diagnosis may be writing there
                partial.unlink()
    except filelock.Timeout:
        raise InputError(f"{folder}: expected a free folder, but it is in use by {_describe_holder(folder)}") from None
    except OSError as error:
        raise InputError(f"{folder}: expected a writable folder, got: {error.strerror}") from error
    with lock:
        try:
            yield
        finally:
            holder_file.unlink(missing_ok=True)


@contextmanager
def exclusive(lock: Path, wait: Callable[[], bool]) -> Iterator[bool]:
    """Waits for a lock that is shared by all processes on this machine and on others that see the folder.

    Args:
        lock: the lock file.
        wait: polled while another process has the lock; False stops waiting.

    Yields:
        Whether this process has the lock.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    try:
        acquired = filelock.FileLock(lock).acquire(poll_interval=0.2, cancel_check=lambda: not wait())
    except filelock.Timeout:
        yield False
        return
    with acquired:
        yield True


def holder(folder: Path) -> str:
    """The process that has locked a folder, as it identifies itself; empty where none is found.

    Two machines that read the same text see the same folder.
    """
    try:
        return (folder / _HOLDER).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def check_no_links(folder: Path) -> None:
    """Raises InputError if a folder contains links, pipes or devices: they lead out of it."""
    for path in folder.rglob("*"):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            got = f"a link to {path.readlink()}" if path.is_symlink() else "a special file"
            raise InputError(f"{path}: expected only files and folders in the folder of a study, got {got}")


def _describe_holder(folder: Path) -> str:
    """The holder for a message; text of another form is not quoted."""
    try:
        with (folder / _HOLDER).open(encoding="utf-8") as file:
            match = re.fullmatch(r"(\d{1,9}) ([\w.-]{1,64})", file.read(100))
    except (OSError, UnicodeDecodeError):
        match = None
    return "another process" if match is None else f"process {match[1]} on {match[2]}"


def _sync(path: Path, flags: int) -> None:
    """Flushes a file or folder to disk."""
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
