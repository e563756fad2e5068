"""Ways to divide a data set, which set how hard the generalization problem is.

A split takes a data set, and those settings of a run that its signature names; it returns which images are train,
bool ``[size]``.
"""

import torch
from torch import Tensor

from pyrovae.data import Source
from pyrovae.errors import InputError


def random(source: Source, train_ratio: float | None = None) -> Tensor:
    """Any image may be train, half of them by default: test images lie between training images."""
    shuffled = torch.randperm(source.size, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(source.size, dtype=torch.bool)
    mask[shuffled[: round((train_ratio or 0.5) * source.size)]] = True
    return mask


def published(source: Source) -> Tensor:
    """Training and test images as the authors of the data set divided them.

    Raises:
        InputError: they did not.
    """
    if source.published is None:
        raise InputError(f"split: 'published' needs a set that its authors divided, and '{source.name}' is not")
    return source.published


def held_out(source: Source, held_out: str | None = None) -> Tensor:
    """All images of some classes are test, those of the others train (Bozkurt et al. 2018, their digit 9).

    Raises:
        InputError: no class is named, or one that the data set does not have.
    """
    if source.labels is None:
        raise InputError(f"split: 'held_out' needs classes, and '{source.name}' has none")
    known = source.labels.unique().tolist()
    classes = [int(part) for part in (held_out or "").split(",") if part.strip().isdecimal()]
    if not classes or len(classes) < (held_out or "").count(",") + 1 or not set(classes) <= set(known):
        raise InputError(
            f"held_out: expected one or more of the {len(known)} classes, {', '.join(map(str, known[:20]))}, "
            f"as in {known[-1]} or {known[0]},{known[-1]}, got {held_out}"
        )
    return ~torch.isin(source.labels, torch.tensor(classes))


def checkerboard(source: Source) -> Tensor:
    """Each factor's range is halved; images whose half-indices sum to an even number are train.

    Raises:
        InputError: the factors are not known.
    """
    return (_factors(source, "checkerboard") >= 0.5).sum(1) % 2 == 0


def cropped(source: Source, train_ratio: float | None = None) -> Tensor:
    """Each factor's range is shrunk about its middle; what lies inside is train: test images extrapolate.

    Raises:
        InputError: the factors are not known.
    """
    factors = _factors(source, "cropped")
    side = (train_ratio or 0.5) ** (1 / factors.shape[1])
    return ((factors - 0.5).abs() <= side / 2).all(1)


def _factors(source: Source, split: str) -> Tensor:
    if source.factors is None:
        raise InputError(f"split: '{split}' needs known factors of variation, and '{source.name}' has none")
    return source.factors
