"""What a measure finds."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pyrovae.estimators import Estimate, mean_over_images


class MeasureResult(NamedTuple):
    """What one measure finds of one run.

    Attributes:
        cells: numbers by variable, with their standard errors as ``*_se``: one number, or ``[split]``.
        images: numbers an image by variable, of the first training and the first test images.
        pictures: by variable, what there is to see.
    """

    cells: Mapping[str, NDArray[np.float64]]
    images: Mapping[str, tuple[Tensor, Tensor]] = {}
    pictures: Mapping[str, NDArray[Any]] = {}


def numbers(estimates: Mapping[str, Estimate]) -> dict[str, NDArray[np.float64]]:
    """Values and standard errors of estimates, by variable."""
    values = {name: np.array(each.value) for name, each in estimates.items()}
    return values | {f"{name}_se": np.array(each.se) for name, each in estimates.items()}


def over_splits(name: str, train: Tensor, test: Tensor) -> dict[str, NDArray[np.float64]]:
    """Mean over images and its standard error for train and test, ``[split]`` each, from one number an image."""
    sides = [numbers({name: mean_over_images(each.double(), "exact")}) for each in (train, test)]
    return {variable: np.stack([side[variable] for side in sides]) for variable in sides[0]}
