"""Data sets, one file each, and what they have in common."""

from collections.abc import Callable
from dataclasses import dataclass
from zlib import crc32

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
        labels: class of each image, integers from 0 up, ``[size]``; None if there are none.
        published: which images the set's authors put into training, ``[size]`` of bool; None if they did not say.
    """

    name: str
    size: int
    images: Callable[[Tensor], Tensor]
    factors: Tensor | None = None
    labels: Tensor | None = None
    published: Tensor | None = None

    def __post_init__(self) -> None:
        """Raises InputError if what is known of the images is not known of each, in the type that is told above."""
        for name, kind in (("factors", "float"), ("labels", "int"), ("published", "bool")):
            known = getattr(self, name)
            if known is not None and (len(known) != self.size or not str(known.dtype).startswith(f"torch.{kind}")):
                raise InputError(
                    f"{self.name}: expected {name} of type {kind} for {self.size} images, got {_told(known)}"
                )

    def chosen(self, rows: Tensor) -> Tensor:
        """The images at some rows.

        Raises:
            InputError: what the data set gives are no images.
        """
        images = self.images(rows)
        kinds = (torch.uint8, torch.float32)
        if not isinstance(images, Tensor) or images.dtype not in kinds or len(images) != len(rows):
            raise InputError(
                f"{self.name}: expected {len(rows)} images as a uint8 or float32 tensor, got {_told(images)}"
            )
        if images.is_floating_point() and not (finite := images.flatten(1).isfinite().all(1)).all():
            raise InputError(
                f"{self.name}: expected finite numbers, got others in {int((~finite).sum())} of {len(images)} images"
            )
        return images


@dataclass(frozen=True)
class Dataset:
    """Images in memory, uint8 or float, in random order: ``[n, *event_shape]`` for train and test.

    Attributes:
        grey: where training images are binarised anew at every step, what they are binarised from: uint8, in the
            order of ``train``, which is then one binarisation to measure on.
        factors: known factors of variation of both sides, ``[n, factors]`` each; None if there are none.
    """

    train: Tensor
    test: Tensor
    grey: Tensor | None = None
    factors: tuple[Tensor, Tensor] | None = None

    @property
    def event_shape(self) -> torch.Size:
        return self.train.shape[1:]

    def mean(self) -> Tensor:
        """Mean training image, as `as_input` sees it."""
        images = self.train if self.grey is None else self.grey
        totals = [as_input(chunk).sum(0, dtype=torch.float64) for chunk in images.split(4096)]
        return (torch.stack(totals).sum(0) / len(images)).float()

    def checksum(self) -> int:
        """A number that tells other images from these."""
        number = 0
        for images in (self.train, self.test, *([] if self.grey is None else [self.grey])):
            for chunk in images.split(4096):
                number = crc32(chunk.cpu().contiguous().numpy(), number)
        return number

    def splits(self) -> tuple[tuple[str, Tensor], tuple[str, Tensor]]:
        """Both sides by name."""
        return ("train", self.train), ("test", self.test)

    def to(self, device: torch.device) -> "Dataset":
        grey = None if self.grey is None else self.grey.to(device)
        factors = None if self.factors is None else (self.factors[0].to(device), self.factors[1].to(device))
        return Dataset(self.train.to(device), self.test.to(device), grey, factors)


def as_input(images: Tensor, thresholds: Tensor | None = None) -> Tensor:
    """Images as a program takes them: uint8 as floats in [0, 1], floats as they are.

    Args:
        thresholds: where there are any, uint8 from 0 to 254, pixels are binarised: 1 where the threshold is below the
            pixel. Under uniform thresholds a pixel is lit with the probability that its grey value x / 255 names.

    Example:
        >>> as_input(torch.tensor([0, 51, 255], dtype=torch.uint8))
        tensor([0.0000, 0.2000, 1.0000])
        >>> as_input(torch.tensor([0, 51, 255], dtype=torch.uint8), torch.tensor([0, 50, 254], dtype=torch.uint8))
        tensor([0., 1., 1.])
    """
    if thresholds is not None:
        return (thresholds < images).float()
    return images.float() / 255 if images.dtype == torch.uint8 else images


def divide(
    source: Source,
    train: Tensor,
    train_images: int | None = None,
    test_images: int | None = None,
    images_per_class: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Rows of the training and of the test images, each in random order, the same at every call.

    Args:
        train: which images are train, bool ``[size]``.
        train_images, test_images: the most to use of either side.
        images_per_class: training images to use of each class that the training side has.

    Raises:
        InputError: the mask is none, or a side has fewer images than asked for, or than two.
    """
    if not isinstance(train, Tensor) or train.dtype != torch.bool or train.shape != (source.size,):
        raise InputError(
            f"split: expected which images are train, torch.bool of shape [{source.size}], got {_told(train)}"
        )
    order = torch.randperm(source.size, generator=torch.Generator().manual_seed(1))
    rows, unseen = order[train[order]], order[~train[order]]
    if images_per_class is not None:
        rows = _first_of_each_class(rows, source, images_per_class)
    return _first(rows, train_images, "train"), _first(unseen, test_images, "test")


def class_counts(source: Source, rows: Tensor) -> dict[int, int] | None:
    """Images of each class of the set among some rows; None where classes are not known."""
    if source.labels is None:
        return None
    classes, place = source.labels.unique(return_inverse=True)
    counts = place[rows].bincount(minlength=len(classes))
    return dict(zip(classes.tolist(), counts.tolist(), strict=True))


def _told(value: object) -> str:
    """What came, for a message."""
    return f"{value.dtype} of shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def _first_of_each_class(rows: Tensor, source: Source, number: int) -> Tensor:
    if source.labels is None:
        raise InputError(f"images_per_class: expected a data set with classes, and '{source.name}' has none")
    _, place, counts = source.labels[rows].unique(return_inverse=True, return_counts=True)
    if counts.min() < number:
        raise InputError(
            f"images_per_class: expected at most the {counts.min()} training images of the smallest class, got {number}"
        )
    # Sorted by class, stably, each class begins where those before it end.
    by_class = place.argsort(stable=True)
    rank = torch.arange(len(rows)) - (counts.cumsum(0) - counts)[place[by_class]]
    return rows[by_class[rank < number].sort().values]


def _first(rows: Tensor, limit: int | None, side: str) -> Tensor:
    if len(rows) < max(2, limit or 0):
        raise InputError(
            f"{side}_images: expected at most the {len(rows)} images that the split leaves on the {side} side, and two "
            f"at the least, got {limit or 'null, for all'}; {side}_images=null takes all there are"
        )
    return rows[:limit]
