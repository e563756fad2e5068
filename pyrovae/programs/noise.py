"""Keyed random numbers: generators whose seeds are derived from the seed of a run."""

from collections.abc import Iterator
from contextlib import contextmanager
from zlib import crc32

import numpy as np
import torch

CPU = torch.device("cpu")


def derive_seed(seed: int, stream: str, block: int = 0) -> int:
    """The 63-bit seed of one block of one random stream.

    Example:
        >>> derive_seed(0, "noise", 1) == derive_seed(0, "noise", 1) != derive_seed(0, "noise", 2)
        True
    """
    state = np.random.SeedSequence(seed, spawn_key=(crc32(stream.encode()), block)).generate_state(1, np.uint64)
    return int(state[0] >> np.uint64(1))


def generator(seed: int, stream: str, block: int = 0, device: torch.device = CPU) -> torch.Generator:
    """A generator at the start of one block of one random stream."""
    return torch.Generator(device).manual_seed(derive_seed(seed, stream, block))


@contextmanager
def fork_seed(seed: int) -> Iterator[None]:
    """Seeds torch's global generators inside the block, and restores them afterwards."""
    cuda = torch.cuda.is_initialized()
    with torch.random.fork_rng([torch.cuda.current_device()] if cuda else []):  # by default it warns of several GPUs
        # Where no GPU is in use, torch.manual_seed is slow: it keeps the seed for one, with a traceback.
        torch.default_generator.manual_seed(seed)
        if cuda:
            torch.cuda.manual_seed(seed)
        yield
