"""Data sets: `Source` (before the split), `Dataset` (the images of a run), and how one becomes the other."""

from collections.abc import Callable
from dataclasses import dataclass
from zlib import crc32

import torch
from torch import Tensor

from pyrovae.errors import InputError


@dataclass(frozen=True)
class Source:
    """A data set before it is split: its size, how to load images, and what is known about them.

    Attributes:
        name: for messages and results.
        size: number of images.
        images: rows ``[n]`` → images ``[n, *event_shape]``, uint8 in [0, 255] or float32, which is used unscaled.
        factors: known factors of variation, each scaled to [0, 1], float ``[size, factors]``, or None.
        labels: class of each image, integers ≥ 0, ``[size]``, or None.
        published: whether an image is in the published training set, bool ``[size]``, or None.

    Raises:
        InputError: factors, labels or published have another type, or another length than ``size``.
    """

    name: str
    size: int
    images: Callable[[Tensor], Tensor]
    factors: Tensor | None = None
    labels: Tensor | None = None
    published: Tensor | None = None

    def __post_init__(self) -> None:
        for name, kind in (("factors", "float"), ("labels", "int"), ("published", "bool")):
            column = getattr(self, name)
            if column is not None and (len(column) != self.size or not str(column.dtype).startswith(f"torch.{kind}")):
                raise InputError(
                    f"{self.name}: expected {name} of type {kind} for {self.size} images, got {_describe(column)}"
                )

    def load(self, rows: Tensor) -> Tensor:
        """The images at some rows, checked.

        Raises:
            InputError: they are not a uint8 or float32 tensor of one image per row, or not finite.
        """
        images = self.images(rows)
        dtypes = (torch.uint8, torch.float32)
        if not isinstance(images, Tensor) or images.dtype not in dtypes or len(images) != len(rows):
            raise InputError(
                f"{self.name}: expected {len(rows)} images as a uint8 or float32 tensor, got {_describe(images)}"
            )
        if images.is_floating_point() and not (finite := images.flatten(1).isfinite().all(1)).all():
            raise InputError(
                f"{self.name}: expected finite pixels, got NaN or ∞ in {int((~finite).sum())} of {len(images)} images"
            )
        return images


@dataclass(frozen=True)
class Dataset:
    """The images of a run in memory, in random order.

    Attributes:
        train, test: images ``[n, *event_shape]``, uint8 or float32.
        grey: under dynamic binarisation, the grey training images, uint8 in the order of ``train``; each step binarises
            them afresh, and ``train`` is one fixed binarisation for measuring. None otherwise.
        factors: known factors of variation of train and test, ``[n, factors]`` each, or None.
    """

    train: Tensor
    test: Tensor
    grey: Tensor | None = None
    factors: tuple[Tensor, Tensor] | None = None

    @property
    def event_shape(self) -> torch.Size:
        return self.train.shape[1:]

    def mean(self) -> Tensor:
        """Mean training image, ``[*event_shape]``, scaled by `as_input`."""
        images = self.train if self.grey is None else self.grey
        totals = [as_input(chunk).sum(0, dtype=torch.float64) for chunk in images.split(4096)]
        return (torch.stack(totals).sum(0) / len(images)).float()

    def checksum(self) -> int:
        """CRC-32 of all images."""
        number = 0
        for images in (self.train, self.test, *([] if self.grey is None else [self.grey])):
            for chunk in images.split(4096):
                number = crc32(chunk.cpu().contiguous().numpy(), number)
        return number

    def splits(self) -> tuple[tuple[str, Tensor], tuple[str, Tensor]]:
        """The images of each split, by name."""
        return ("train", self.train), ("test", self.test)

    def to(self, device: torch.device) -> "Dataset":
        grey = None if self.grey is None else self.grey.to(device)
        factors = None if self.factors is None else (self.factors[0].to(device), self.factors[1].to(device))
        return Dataset(self.train.to(device), self.test.to(device), grey, factors)


def as_input(images: Tensor, thresholds: Tensor | None = None) -> Tensor:
    """Images as the input of a program: uint8 is scaled to [0, 1], or binarised; floats are unchanged.

    Args:
        images: ``[..., *event_shape]``.
        thresholds: uint8 in [0, 254], in the shape of the images. A pixel becomes 1 where it exceeds its threshold, so
            that under uniform thresholds a grey value x is lit with probability x / 255.

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
    """Rows of the training and the test images, each in random order; deterministic.

    Args:
        source: the data set.
        train: whether an image may be used for training, bool ``[size]``.
        train_images, test_images: number of images to use of either split; None for all.
        images_per_class: number of training images to use of each class; None for all.

    Raises:
        InputError: ``train`` is not such a mask, or a split has fewer images than requested, or fewer than two.
    """
    if not isinstance(train, Tensor) or train.dtype != torch.bool or train.shape != (source.size,):
        raise InputError(
            f"split: expected which images are train, torch.bool of shape [{source.size}], got {_describe(train)}"
        )
    order = torch.randperm(source.size, generator=torch.Generator().manual_seed(1))
    rows, unseen = order[train[order]], order[~train[order]]
    if images_per_class is not None:
        rows = _first_of_each_class(rows, source, images_per_class)
    return _first(rows, train_images, "train"), _first(unseen, test_images, "test")


def class_counts(source: Source, rows: Tensor) -> dict[int, int] | None:
    """Number of images of each class among some rows; None for a data set without classes."""
    if source.labels is None:
        return None
    classes, class_index = source.labels.unique(return_inverse=True)
    counts = class_index[rows].bincount(minlength=len(classes))
    return dict(zip(classes.tolist(), counts.tolist(), strict=True))


def _describe(value: object) -> str:
    """Type of a value and shape of a tensor, for messages."""
    return f"{value.dtype} of shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def _first_of_each_class(rows: Tensor, source: Source, number: int) -> Tensor:
    if source.labels is None:
        raise InputError(f"images_per_class: expected a data set with classes, and '{source.name}' has none")
    _, class_index, counts = source.labels[rows].unique(return_inverse=True, return_counts=True)
    if counts.min() < number:
        raise InputError(
            f"images_per_class: expected at most the {counts.min()} training images of the smallest class, got {number}"
        )
    # In a stable sort by class, an image's rank within its class is its position minus the start of the class.
    by_class = class_index.argsort(stable=True)
    rank = torch.arange(len(rows)) - (counts.cumsum(0) - counts)[class_index[by_class]]
    return rows[by_class[rank < number].sort().values]


def _first(rows: Tensor, limit: int | None, side: str) -> Tensor:
    if len(rows) < max(2, limit or 0):
        raise InputError(
            f"{side}_images: expected at least 2 and at most the {len(rows)} {side} images of the split, got "
            f"{limit or 'null (all)'}; {side}_images=null uses all of them"
        )
    return rows[:limit]
