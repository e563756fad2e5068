"""The library that multiplies float32 matrices on a CPU.

torch uses BLAS, usually MKL, which knows the widest vectors of Intel's CPUs only. oneDNN, also part of torch, knows
those of every x86 CPU. torch hands products to oneDNN if it may round their factors to bfloat16. oneDNN does that only
on CPUs that multiply such numbers faster, as those with AMX.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from pyrovae.errors import InputError
from pyrovae.system.execution import Library, Matmul
from pyrovae.system.measured import Measured

#: How many times as fast oneDNN must be to be chosen: above what noise does to two that are equal.
MARGIN = 1.2
#: Rounds in which both are timed; the fastest counts.
ROUNDS = 5
#: Largest error of a product, as a share of its largest element. That of bfloat16 is a hundred times as large.
EXACT = 1e-5


@contextmanager
def multiplied_by(matmul: Matmul) -> Iterator[None]:
    """Multiplies float32 matrices by one library inside the block.

    Args:
        matmul: "blas", "onednn", or "auto": the faster one on this machine, measured once, among those that do not
            round.

    Raises:
        InputError: oneDNN is not available, or would round.

    Example:
        >>> with multiplied_by("blas"):
        ...     library_in_use()
        'blas'
    """
    if matmul == "onednn" and not onednn_is_exact():
        raise InputError(
            "matmul: expected auto or blas, got onednn, which is missing here, or would round float32 numbers on this "
            "CPU; to train in bfloat16, take --set precision=bfloat16"
        )
    with using(_faster() if matmul == "auto" else matmul):
        yield


@contextmanager
def using(library: Library) -> Iterator[None]:
    """Multiplies by a library inside the block, whether or not it rounds."""
    settings = _settings()
    before = settings.fp32_precision
    settings.fp32_precision = "bf16" if library == "onednn" else "ieee"
    try:
        yield
    finally:
        settings.fp32_precision = before


def library_in_use() -> Library:
    """The library that multiplies matrices now."""
    return "onednn" if _settings().fp32_precision == "bf16" else "blas"


def onednn_is_exact() -> bool:
    """Whether oneDNN is there and multiplies float32 numbers without rounding them."""
    left, right = _factors()
    with using("onednn"):
        product = torch.bmm(left, right)
    exact = torch.bmm(left.double(), right.double())
    return torch.backends.mkldnn.is_available() and bool((product - exact).abs().max() < EXACT * exact.abs().max())


def _settings() -> Any:
    return torch.backends.mkldnn.matmul  # type: ignore[attr-defined]


def _faster() -> Library:
    """The faster library, as it was measured or, the first time, by measuring it."""
    kept = Measured("matmul", torch.__version__)
    seconds: dict[Library, float] = {"blas": torch.inf, "onednn": torch.inf}
    found = kept.load()
    for library in seconds:
        if library == found:
            return library
    left, right = _factors()
    for _ in range(ROUNDS):
        for library in seconds:
            with using(library):
                begun = time.perf_counter()
                torch.bmm(left, right)
                seconds[library] = min(seconds[library], time.perf_counter() - begun)
    faster: Library = "onednn" if seconds["blas"] > MARGIN * seconds["onednn"] and onednn_is_exact() else "blas"
    kept.save(faster)
    return faster


def _factors() -> tuple[Tensor, Tensor]:
    """Factors of a product as in training: eight batches of 128, and as many layers."""
    draws = torch.Generator().manual_seed(0)
    left, right = (torch.randn(8, rows, 512, generator=draws, dtype=torch.float32, device="cpu") for rows in (128, 512))
    return left, right
