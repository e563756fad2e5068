"""How hard the generalization problem is."""

import numpy as np
import torch
from numpy.typing import NDArray

from pyrovae.data import Dataset
from pyrovae.estimators import nearest_point
from pyrovae.measures.measure import over_splits
from pyrovae.study.grid import Measure


def difficulty(data: Dataset, measure: Measure) -> dict[str, NDArray[np.float64]]:
    """How hard the generalization problem is: for train and test, ``[split]`` each.

    The number of images, and the mean distance to the nearest training image with its standard error over images, in
    pixels of [0, 1] and, where factors of variation are known, in factors of [0, 1]. A training image is no neighbour
    of its own, so that test and train coincide where the test images are no further off than the training images are
    from each other. Factors that run in a circle are taken as they stand. Taken on the images over which I and G are
    averaged.
    """
    found = {"images": np.array([float(len(images)) for _, images in data.splits()])}
    spaces = {"pixel_distance": (data.train, data.test)}
    if data.factors is not None:
        spaces["factor_distance"] = data.factors
    for name, (train, test) in spaces.items():
        seen, unseen = train[: measure.outer], test[: measure.outer]
        own = torch.arange(len(seen), device=train.device)
        found |= over_splits(name, nearest_point(seen, train, own).distance, nearest_point(unseen, train).distance)
    return found
