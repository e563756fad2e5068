"""The machine that a study runs on: its device, its versions, and folders that one process may have at a time."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from platform import python_version

import filelock
import torch

from pyrovae.errors import InputError


def device(name: str) -> torch.device:
    """The device by name; "auto" is CUDA where there is any.

    Raises:
        InputError: there is no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name not in ("cpu", "cuda"):
        raise InputError(f"unknown device '{name}'; valid: auto, cpu, cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("device: expected a CUDA device, but torch finds none; use --device cpu")
    return torch.device(name)


def versions() -> str:
    """The versions that numbers depend on."""
    packages = ("pyrovae", "torch", "pyro-ppl")
    return ", ".join([*(f"{name} {metadata.version(name)}" for name in packages), f"python {python_version()}"])


@contextmanager
def one_thread() -> Iterator[None]:
    """Computes on one thread inside the block, which is faster where each operation is small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps other processes out of the folder; the lock goes with the process, however it ends."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: expected a folder that can be written to, got: {error.strerror}") from error
    lock = filelock.FileLock(folder / ".lock")
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout:
        raise InputError(f"{folder}: expected a free folder, but another process is running a study in it") from None
    except OSError as error:
        raise InputError(f"{folder}: expected a folder that can be written to, got: {error.strerror}") from error
    try:
        yield
    finally:
        lock.release()
