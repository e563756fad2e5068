"""Ways to divide a data set, which set how hard the generalization problem is."""

import torch
from torch import Tensor

from pyrovae.data import Source
from pyrovae.errors import InputError


def random(source: Source, train_ratio: float) -> Tensor:
    """Any image may be train: test images lie between training images."""
    shuffled = torch.randperm(source.size, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(source.size, dtype=torch.bool)
    mask[shuffled[: round(train_ratio * source.size)]] = True
    return mask


def checkerboard(source: Source, train_ratio: float) -> Tensor:
    """Each factor's range is halved; images whose half-indices sum to an even number are train.

    Raises:
        InputError: the factors are not known, or a ratio other than 0.5 is asked for.
    """
    if train_ratio != 0.5:
        raise InputError(f"train_ratio: a checkerboard split has ratio 0.5, got {train_ratio}")
    return (_factors(source, "checkerboard") >= 0.5).sum(1) % 2 == 0


def cropped(source: Source, train_ratio: float) -> Tensor:
    """Each factor's range is shrunk about its middle; what lies inside is train: test images extrapolate."""
    factors = _factors(source, "cropped")
    side = train_ratio ** (1 / factors.shape[1])
    return ((factors - 0.5).abs() <= side / 2).all(1)


def _factors(source: Source, split: str) -> Tensor:
    if source.factors is None:
        raise InputError(f"split: '{split}' needs known factors, and '{source.name}' has none; valid: random")
    return source.factors
