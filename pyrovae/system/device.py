"""The device that tensors are on, and the threads of the CPU."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from pyrovae.errors import InputError


def find_device(name: str) -> torch.device:
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


def device_name(place: torch.device) -> str:
    """A device as provenance has it: "cpu", or "cuda" with the name of the GPU."""
    return f"cuda ({torch.cuda.get_device_name(place)})" if place.type == "cuda" else place.type


def to_device(tensor: Tensor, place: torch.device) -> Tensor:
    """A tensor on a device, where it arrives before the device needs it; the program does not wait for that."""
    return (tensor.pin_memory() if place.type == "cuda" else tensor).to(place, non_blocking=True)


@contextmanager
def one_thread() -> Iterator[None]:
    """Computes on one thread inside the block, which is faster where each operation is small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
