"""Data sets: `Source` (before the split), `Dataset` (the images of a run), `CohortData` (those of several runs)."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from zlib import crc32

import torch
from torch import Tensor

from pyrovae.errors import InputError
from pyrovae.programs.noise import generator
from pyrovae.study import EVERY_SPLIT
from pyrovae.system.device import float32_by_default


@dataclass(frozen=True)
class Source:
    """A data set before it is split: its size, how to load images, and what is known about them.

    Attributes:
        name: for messages and results.
        size: number of images.
        images: rows ``[n]`` → images ``[n, *event_shape]``, uint8 in [0, 255] or float32, which is used unscaled.
        factors: known factors of variation, each scaled to [0, 1], float ``[size, factors]``, or None.
        labels: class of each image, integers ≥ 0, ``[size]``, or None.
        classes: names of the classes, if they have any: ``classes[label]``.
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
    classes: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        for name, kind in (("factors", "float"), ("labels", "int"), ("published", "bool")):
            column = getattr(self, name)
            if column is not None and (len(column) != self.size or not str(column.dtype).startswith(f"torch.{kind}")):
                raise InputError(
                    f"{self.name}: expected {name} of type {kind} for {self.size} images, got {_describe(column)}"
                )

    @float32_by_default()
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

    The order of the splits is that of all results, in which runs without validation images have two.

    Attributes:
        train, test: images ``[n, *event_shape]``, uint8 or float32; a single pair may be trained without test images.
        grey: under dynamic binarisation, the grey training images, uint8 in the order of ``train``; each step binarises
            them with new noise, and ``train`` is one fixed binarisation for measuring. None otherwise.
        factors: known factors of variation of train and test, ``[n, factors]`` each, or None.
        rows: rows of train and test in the source, ``[n]`` each, or None.
        labels: classes of train and test, ``[n]`` each, or None.
        validation: images of the training distribution that no run trains on; none by default.
    """

    train: Tensor
    test: Tensor
    grey: Tensor | None = None
    factors: tuple[Tensor, Tensor] | None = None
    rows: tuple[Tensor, Tensor] | None = None
    labels: tuple[Tensor, Tensor] | None = None
    validation: Tensor | None = None

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
        for images in (each for each in (self.train, self.test, self.grey, self.validation) if each is not None):
            for chunk in images.split(4096):
                number = crc32(chunk.cpu().contiguous().numpy(), number)
        return number

    def splits(self) -> tuple[tuple[str, Tensor], ...]:
        """The images of each split that has any, by name: train, test and validation."""
        every = zip(EVERY_SPLIT, (self.train, self.test, self.validation), strict=True)
        return tuple((name, images) for name, images in every if images is not None and len(images))

    def with_train(self, chosen: Tensor | slice) -> "Dataset":
        """The same test images with some of the training images, in this order."""

        def first(pair: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor] | None:
            return None if pair is None else (pair[0][chosen], pair[1])

        grey = None if self.grey is None else self.grey[chosen]
        factors, rows, labels = map(first, (self.factors, self.rows, self.labels))
        return replace(self, train=self.train[chosen], grey=grey, factors=factors, rows=rows, labels=labels)

    def to(self, device: torch.device) -> "Dataset":
        def moved(pair: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor] | None:
            return None if pair is None else (pair[0].to(device), pair[1].to(device))

        grey = None if self.grey is None else self.grey.to(device)
        factors, rows, labels = map(moved, (self.factors, self.rows, self.labels))
        validation = None if self.validation is None else self.validation.to(device)
        return Dataset(self.train.to(device), self.test.to(device), grey, factors, rows, labels, validation)


@dataclass(frozen=True)
class CohortData:
    """The images of the runs of a cohort, each of them in memory once.

    Attributes:
        images: the test images, which all runs share, and the training images of all runs.
        rows: for each run, which of these training images are its own, ``[runs, n]``; None if all runs share them.
    """

    images: Dataset
    rows: Tensor | None = None

    @property
    def size(self) -> int:
        """Number of training images of a run."""
        return len(self.images.train) if self.rows is None else self.rows.shape[1]

    @property
    def device(self) -> torch.device:
        return self.images.train.device

    def of(self, run: int) -> Dataset:
        """The images of one run; a copy if its training images are not those of all."""
        return self.images if self.rows is None else self.images.with_train(self.rows[run])

    def batch(self, split: str, index: Tensor) -> tuple[Tensor, bool]:
        """Some images of a split as input, ``[n, *event_shape]``; and whether they are ``[runs, n, *event_shape]``."""
        if split != "train":
            return as_input(dict(self.images.splits())[split][index]), False
        if self.rows is None:
            return as_input(self.images.train[index]), False
        return as_input(self.images.train[self.rows[:, index]]), True

    def gathered(self, index: Tensor) -> Tensor:
        """Rows of `images` of some training images of each run, ``[runs, n] → [runs, n]``."""
        return index if self.rows is None else self.rows.gather(1, index)

    def to(self, device: torch.device) -> "CohortData":
        return CohortData(self.images.to(device), None if self.rows is None else self.rows.to(device))


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
    return images.float().div_(255) if images.dtype == torch.uint8 else images


def divide(
    source: Source,
    train: Tensor,
    train_images: int | None = None,
    test_images: int | None = None,
    images_per_class: int | None = None,
    data_seed: int = 0,
    drawable: Tensor | None = None,
    validation: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Rows of the training and the test images, each in random order; deterministic.

    Another ``data_seed`` draws other training images, and leaves the test images as they are.

    Args:
        source: the data set.
        train: whether an image may be used for training, bool ``[size]``.
        train_images, test_images: number of images to use of either split; None for all.
        images_per_class: number of training images to use of each class; None for all.
        data_seed: which training images are drawn.
        drawable: the images, bool ``[size]``, from which another ``data_seed`` draws, unless they are test; None for
            those of ``train``.
        validation: rows of images that are neither.

    Raises:
        InputError: ``train`` is not such a mask, a split has fewer images than requested, or fewer than two, or
            ``data_seed`` is not 0 and all images that could be drawn are used.
    """
    if not isinstance(train, Tensor) or train.dtype != torch.bool or train.shape != (source.size,):
        raise InputError(
            f"split: expected which images are train, torch.bool of shape [{source.size}], got {_describe(train)}"
        )
    order = _order(source)
    apart = torch.zeros_like(train) if validation is None else torch.zeros_like(train).index_fill(0, validation, True)
    rows, test = order[(train & ~apart)[order]], _first(order[~train[order]], test_images, "test")
    number = len(rows)
    if data_seed:
        rows = _redrawn((train if drawable is None else drawable) & ~apart, test, data_seed)
    drawn = len(rows)
    if images_per_class is not None:
        rows = _first_of_each_class(rows, source, images_per_class)
    rows = _first(rows[:number], train_images, "train")
    if data_seed and len(rows) == drawn:
        raise InputError(
            f"data_seed: expected a study in which it draws other training images, but all {drawn:,} of them are used; "
            "set train_images, or data_seed=0"
        )
    return rows, test


def for_validation(source: Source, train: Tensor, number: int | None) -> Tensor:
    """Rows that are set apart for validation: the last ones of the training images in random order, for all seeds.

    A study that uses fewer training images than are left has the same ones as without.

    Raises:
        InputError: fewer than two images would be left for training.
    """
    order = _order(source)
    rows = order[train[order]]
    if number and number > len(rows) - 2:
        raise InputError(
            f"validation_images: expected at most {len(rows) - 2}, all but two of the training images, got {number}"
        )
    return rows[len(rows) - (number or 0) :]


def _order(source: Source) -> Tensor:
    """A random order of all images, always the same."""
    return torch.randperm(source.size, generator=torch.Generator().manual_seed(1))


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


def _redrawn(drawable: Tensor, test: Tensor, data_seed: int) -> Tensor:
    """The rows that may be drawn for training, in an order of their own for each seed."""
    usable = drawable.clone()
    usable[test] = False
    rows = usable.nonzero().squeeze(1)
    return rows[torch.randperm(len(rows), generator=generator(data_seed, "training set"))]


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
