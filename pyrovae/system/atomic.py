"""Atomic file writes, and locks on folders and work."""

import os
import platform
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import filelock

from pyrovae.errors import InputError

#: End of the name of a file that names the process that has a lock.
_HOLDER = ".holder"


def write(path: Path, content: bytes | memoryview) -> None:
    """Writes a file atomically: to a temporary file in the same folder, synced to disk and renamed.

    Raises:
        OSError: the file cannot be written; an earlier file of this name is unchanged.
    """
    with _replacing(path) as partial, partial.open("xb") as file:
        file.write(content)


def copy(source: Path, path: Path) -> None:
    """Copies a file atomically; errors as in `write`."""
    with _replacing(path) as partial:
        shutil.copyfile(source, partial)


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """The temporary file that replaces a file after the block."""
    partial = partial_path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.unlink(missing_ok=True)  # it may be a link
        yield partial
        move_into_place(partial, path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise OSError(
            f"{path}: expected to write it, got: {error.strerror or error}; an earlier version is unchanged"
        ) from error


def partial_path(path: Path) -> Path:
    """The temporary file in which the content of `path` is written."""
    return path.with_name(f".{path.name}.pyrovae.part")


def move_into_place(partial: Path, path: Path) -> None:
    """Syncs a complete file to disk and renames it."""
    _sync(partial, os.O_RDWR)
    os.replace(partial, path)
    if os.name == "posix":  # elsewhere, folders cannot be opened
        _sync(path.parent, os.O_RDONLY)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Locks a folder against other processes, and removes the partial files of a killed one.

    The operating system releases the lock when the process ends, however it ends.

    Raises:
        InputError: another process has locked the folder, it is not writable, or its name is not UTF-8.
    """
    check_name(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(folder / ".lock").acquire(blocking=False)
        holder_file = folder / _HOLDER
        _name_holder(holder_file)
        for partial in folder.rglob(partial_path(Path("*")).name):
            if not partial.parent.name.startswith("."):  # a diagnosis may be writing there
                remove(partial)
    except filelock.Timeout:
        raise InputError(
            f"{folder}: expected a free folder, but it is in use by {_described(folder / _HOLDER)}"
        ) from None
    except OSError as error:
        raise InputError(f"{folder}: expected a writable folder, got: {error.strerror or error}") from error
    with lock:
        try:
            yield
        finally:
            holder_file.unlink(missing_ok=True)


def remove(path: Path) -> None:
    """Removes a file or a folder, if it exists; of a link, the link alone."""
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)


def check_name(folder: Path) -> None:
    """Raises InputError if the name of a folder is not UTF-8, which reports and results are written in."""
    try:
        folder.resolve().name.encode()
    except UnicodeEncodeError:
        raise InputError(
            f"{folder}: expected the name of a folder in UTF-8, got one in another encoding; choose another name"
        ) from None


@contextmanager
def exclusive(lock: Path, wait: Callable[[str], bool]) -> Iterator[bool]:
    """Waits for a lock that is shared by all processes on this machine and on others that see the folder.

    Args:
        lock: the lock file.
        wait: called with the name of the process that has the lock, again and again until this one has it; False
            stops waiting.

    Yields:
        Whether this process has the lock.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    holder_file = lock.with_name(f"{lock.name}{_HOLDER}")
    try:
        acquired = filelock.FileLock(lock).acquire(
            poll_interval=0.2, cancel_check=lambda: not wait(_described(holder_file))
        )
    except filelock.Timeout:
        yield False
        return
    with acquired:
        _name_holder(holder_file)
        yield True


def holder(folder: Path) -> str:
    """The process that has locked a folder, as it identifies itself; empty where none is found.

    Two machines that read the same text see the same folder.
    """
    try:
        return (folder / _HOLDER).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def _name_holder(file: Path) -> None:
    """Names this process in a file."""
    file.unlink(missing_ok=True)  # it may be a link
    file.write_text(f"{os.getpid()} {platform.node()}", encoding="utf-8")


def _described(holder_file: Path) -> str:
    """The process that a file names, for a message; text of another form is not quoted."""
    try:
        with holder_file.open(encoding="utf-8") as file:
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
