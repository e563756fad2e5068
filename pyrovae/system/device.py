"""The device that tensors are on, their default type, and the threads of the CPU."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from pyrovae.errors import InputError


def find_device(name: str) -> torch.device:
    """The device with this name; "auto" is CUDA if available, else the CPU.

    Raises:
        InputError: the name is unknown, or torch finds no CUDA device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name not in ("cpu", "cuda"):
        raise InputError(f"unknown device '{name}'; valid: auto, cpu, cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("device: expected a CUDA device, but torch finds none; use --device cpu")
    return torch.device(name)


def device_name(device: torch.device) -> str:
    """The device as recorded in the provenance: "cpu", or "cuda" and the name of the GPU."""
    return f"cuda ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else device.type


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copies a tensor to a device without waiting for the copy."""
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)


@contextmanager
def float32_by_default() -> Iterator[None]:
    """New tensors are float32 inside the block, whatever default the user's script has set."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def one_thread() -> Iterator[None]:
    """Computes on one thread inside the block, which is faster if each operation is small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
