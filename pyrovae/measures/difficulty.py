"""How hard the generalization problem is: sizes of the splits and distances to the training images."""

from typing import Any

import torch

from pyrovae.estimators import nearest_point
from pyrovae.measures.measure import PER_IMAGE_DIMS, MeasureResult, Quantity, TrainedRun

SPLIT = ("split",)
QUANTITIES = (
    Quantity("images", "number of images", unit="1", dims=SPLIT, heading="{split} images", format=",.0f"),
    Quantity(
        "pixel_distance",
        "distance to the nearest (other) training image, in pixels of [0, 1]",
        unit="1",
        kind="unbiased",
        dims=SPLIT,
        heading="nearest training image in pixels, {split}",
        format=".3g",
    ),
    Quantity(
        "factor_distance",
        "distance to the nearest (other) training image, in factors of [0, 1]",
        unit="1",
        kind="unbiased",
        dims=SPLIT,
        heading="in factors, {split}",
        format=".3g",
    ),
    Quantity("copies", "share of images that equal a (other) training image", unit="1", dims=SPLIT),
    Quantity("label", "class of the image", unit="1", dims=PER_IMAGE_DIMS),
)


def measure(run: TrainedRun) -> MeasureResult:
    """Sizes of the splits, classes, distances to the nearest training image, and copies, the same for a cohort's runs.

    Distances are in pixels and, where they are known, in factors of variation, on the images over which I and G are
    averaged. A training image is not its own neighbour, so train and test coincide if the test images are as close to
    training images as these are to each other. Periodic factors are used unchanged.
    """
    return run.once(_difficulty)


def _difficulty(run: TrainedRun) -> MeasureResult:
    data, outer = run.data, run.settings.outer
    spaces = {"pixel_distance": (data.train, data.test), "factor_distance": data.factors}
    distances: dict[str, Any] = {"factor_distance": None}
    for name, space in spaces.items():
        if space is not None:
            train, test = (points[:outer] for points in space)
            own = torch.arange(len(train), device=train.device)
            distances[name] = nearest_point(train, space[0], own).distance, nearest_point(test, space[0]).distance
    copies = tuple((distance == 0).double().mean() for distance in distances["pixel_distance"])
    label = None if data.labels is None else tuple(each[: run.settings.per_image] for each in data.labels)
    return MeasureResult(images=(len(data.train), len(data.test)), copies=copies, label=label, **distances)
