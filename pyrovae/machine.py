"""The machine that a study runs on: its device, its memory, and the code and the versions that numbers depend on."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module, metadata
from pathlib import Path
from platform import python_version

import psutil
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


@cache
def versions() -> str:
    """The versions that numbers depend on, and a checksum of pyrovae's own source."""
    pyrovae = f"pyrovae {metadata.version('pyrovae')} (source {_checksum_of_source()})"
    packages = ("torch", "pyro-ppl", "numpy", "zuko")
    return ", ".join(
        [pyrovae, *(f"{name} {metadata.version(name)}" for name in packages), f"python {python_version()}"]
    )


def _checksum_of_source() -> str:
    """Tells other code from this; what reads results and draws them makes no numbers."""
    digest = hashlib.sha256()
    apart = ("analysis", "guides", "models")  # which may or may not lie inside pyrovae's folder
    for package in ("pyrovae", "pyrovae.guides", "pyrovae.models"):
        (folder,) = map(Path, import_module(package).__path__)
        for file in sorted(folder.rglob("*.py")):
            if package != "pyrovae" or file.relative_to(folder).parts[0] not in apart:
                digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def check_memory(size: float, what: str) -> None:
    """Raises InputError if something would take more memory than is free.

    Args:
        size: in bytes.
        what: it is, for the message.

    Example:
        >>> check_memory(2.0**70, "weights")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        pyrovae.errors.InputError: weights would take 1,099,511,627,776 GB, and ... GB of memory are free
    """
    free = psutil.virtual_memory().available
    if size > free:
        raise InputError(f"{what} would take {size / 2**30:,.0f} GB, and {free / 2**30:,.0f} GB of memory are free")


@contextmanager
def one_thread() -> Iterator[None]:
    """Computes on one thread inside the block, which is faster where each operation is small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
