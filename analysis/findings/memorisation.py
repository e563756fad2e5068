"""Findings about memorisation: when reconstructions of test images are close to training images."""

from collections.abc import Iterator
from typing import Any

from pyrovae.analysis.findings.cells import StudyCells
from pyrovae.analysis.findings.verdicts import Contrast, Finding

#: Distance ‖x̂ − x_n‖ from a reconstruction to the nearest training image, in pixels of [0, 1].
DISTANCE = "reconstruction_distance"


def deep_network(study: StudyCells) -> Iterator[Contrast]:
    """Distance (fewest layers) − distance (most layers) at β = 1."""
    depths = study.values("depth")
    if _is_measured(study) and len(depths) > 1:
        shallow, deep = depths[0], depths[-1]
        for where, cell in study.along("depth", beta=1.0):
            weights, terms = {shallow: 1, deep: -1}, {"shallow": shallow, "deep": deep}
            yield study.contrast(where, cell[DISTANCE], "depth", weights, unit="pixels", **terms)


def beta_of_one(study: StudyCells) -> Iterator[Contrast]:
    """Distance (lowest β) − distance (β = 1), at the most layers."""
    if _is_measured(study) and (low := study.values("beta")[0]) < 1:
        depths = study.values("depth")
        deepest: dict[str, Any] = {"depth": depths[-1:]} if depths else {}
        for where, cell in study.along("beta", **deepest):
            yield study.contrast(where, cell[DISTANCE], "beta", {low: 1, 1.0: -1}, unit="pixels", low=low)


def _is_measured(study: StudyCells) -> bool:
    return 1.0 in study.values("beta") and bool(study.images[DISTANCE].sel(split="test").notnull().any())


_CHANGES = {
    "falls": "reconstructions are closer to training images",
    "rises": "reconstructions are farther from training images",
}
FINDINGS = (
    Finding(
        9,
        "At β = 1 the {deep:g}-layer network reconstructs test images closer to training images "
        "than the {shallow:g}-layer one",
        "{deep:g} layers instead of {shallow:g} at β = 1",
        deep_network,
        **_CHANGES,
    ),
    Finding(
        9,
        "Reconstructions of test images are closer to training images at β = 1 than at β = {low:g}",
        "β {low:g} → 1",
        beta_of_one,
        **_CHANGES,
    ),
)
