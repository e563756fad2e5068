"""Data sets, one file each, and what they have in common."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pyrovae.errors import InputError


@dataclass(frozen=True)
class Source:
    """A data set before it is divided: how many images, what is known of them, and how to get some of them.

    Attributes:
        size: number of images.
        images: rows [n] → images ``[n, *event_shape]``: uint8, or floats that are taken as they are.
        factors: known factors of variation, each scaled to [0, 1], ``[size, factors]``; None if there are none.
        labels: class of each image, integers ``[size]``; None if there are none.
        published: which images the set's authors put into training, ``[size]`` of bool; None if they did not say.
    """

    name: str
    size: int
    images: Callable[[Tensor], Tensor]
    factors: Tensor | None = None
    labels: Tensor | None = None
    published: Tensor | None = None


#: A split tells which images are train: (source, train ratio) → mask ``[size]``.
Split = Callable[[Source, float], Tensor]


@dataclass(frozen=True)
class Dataset:
    """Images in memory, uint8 or float, in random order: ``[n, *event_shape]`` for train and test."""

    train: Tensor
    test: Tensor

    @property
    def event_shape(self) -> torch.Size:
        return self.train.shape[1:]

    def mean(self) -> Tensor:
        """Mean training image, as `as_input` sees it."""
        totals = [as_input(chunk).sum(0, dtype=torch.float64) for chunk in self.train.split(4096)]
        return (torch.stack(totals).sum(0) / len(self.train)).float()

    def splits(self) -> tuple[tuple[str, Tensor], tuple[str, Tensor]]:
        """Both sides by name."""
        return ("train", self.train), ("test", self.test)

    def to(self, device: torch.device) -> "Dataset":
        return Dataset(self.train.to(device), self.test.to(device))


def as_input(images: Tensor) -> Tensor:
    """Images as a program takes them: uint8 as floats in [0, 1], floats as they are."""
    return images.float() / 255 if images.dtype == torch.uint8 else images


def divide(
    source: Source, split: Split, train_ratio: float, train_images: int | None, test_images: int | None
) -> tuple[Tensor, Tensor]:
    """Rows of the training and of the test images, each in random order, the same at every call.

    Raises:
        InputError: a side is empty, or has fewer images than asked for.
    """
    mask = split(source, train_ratio)
    order = torch.randperm(source.size, generator=torch.Generator().manual_seed(1))
    train, test = order[mask[order]], order[~mask[order]]
    return _first(train, train_images, "train"), _first(test, test_images, "test")


def _first(rows: Tensor, limit: int | None, side: str) -> Tensor:
    if len(rows) == 0 or (limit is not None and limit > len(rows)):
        raise InputError(
            f"{side}_images: expected at most the {len(rows)} images that the split leaves on the {side} side, "
            f"got {limit or 'an empty side'}; see split and train_ratio"
        )
    return rows[:limit]
