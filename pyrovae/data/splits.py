"""Splits into training and test images, which set the difficulty of the generalization problem.

A split is a function of a `Source` and its settings that returns whether each image is a training image, bool
``[size]``.
"""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from pyrovae.data import Source
from pyrovae.errors import InputError

#: Share of the images that are training images.
Ratio = Annotated[float, Field(gt=0, lt=1)]


def random(source: Source, train_ratio: Ratio = 0.5) -> Tensor:
    """A random share of the images is train: test images interpolate between training images."""
    shuffled = torch.randperm(source.size, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(source.size, dtype=torch.bool)
    mask[shuffled[: round(train_ratio * source.size)]] = True
    return mask


#: Splits in which any image that is not test could be a training image.
INTERCHANGEABLE = (random,)


def published(source: Source) -> Tensor:
    """The published split of the data set into training and test images.

    Raises:
        InputError: the data set has no published split.
    """
    if source.published is None:
        raise InputError(f"split: 'published' needs a data set with a published split, and '{source.name}' has none")
    return source.published


def held_out(source: Source, held_out: str | None = None) -> Tensor:
    """All images of the held-out classes are test, all others train (Bozkurt et al. 2018 hold out the digit 9).

    Raises:
        InputError: ``held_out`` is not a comma-separated list of classes of the data set.
    """
    if source.labels is None:
        raise InputError(f"split: 'held_out' needs classes, and '{source.name}' has none; give them by labels=")
    known = source.labels.unique().tolist()
    classes = [int(part) for part in (held_out or "").split(",") if part.strip().isdecimal()]
    if not classes or len(classes) < (held_out or "").count(",") + 1 or not set(classes) <= set(known):
        raise InputError(
            f"held_out: expected one or more of the {len(known)} classes, {', '.join(map(str, known[:20]))}, "
            f"as in {known[-1]} or {known[0]},{known[-1]}, got {held_out}"
        )
    return ~torch.isin(source.labels, torch.tensor(classes))


def checkerboard(source: Source) -> Tensor:
    """Each factor's range is halved, and images whose half-indices have an even sum are train.

    Raises:
        InputError: the data set has no known factors of variation.
    """
    return (_factors(source, "checkerboard") >= 0.5).sum(1) % 2 == 0


def cropped(source: Source, train_ratio: Ratio = 0.5) -> Tensor:
    """Images within the central part of each factor's range are train: test images extrapolate.

    Raises:
        InputError: the data set has no known factors of variation.
    """
    factors = _factors(source, "cropped")
    side = train_ratio ** (1 / factors.shape[1])
    return ((factors - 0.5).abs() <= side / 2).all(1)


def _factors(source: Source, split: str) -> Tensor:
    if source.factors is None:
        raise InputError(f"split: '{split}' needs known factors of variation, and '{source.name}' has none")
    return source.factors
