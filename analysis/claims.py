"""The paper's findings, each computed from the study at hand, with an error and a verdict.

An effect is a mean difference in nats per image between two settings, the same images and the same seed on both
sides. Its interval holds two errors: over images, normal, of the differences averaged over seeds; and over seeds,
Student's t. With one seed the interval is over images only and says nothing of other seeds.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy import stats

Verdict = Literal["supported", "not supported", "undecided"]
#: Probability that an interval holds the effect.
LEVEL = 0.95


@dataclass(frozen=True)
class Claim:
    """A finding, and what the study at hand says of it.

    Attributes:
        text: the finding, in words.
        where: the settings that it is about.
        effect: mean difference in nats per image; positive is what the finding predicts.
        error: half width of the interval around it.
        over: what the error is over.
    """

    text: str
    where: str
    effect: float
    error: float
    over: Literal["images and seeds", "images only"]

    @property
    def verdict(self) -> Verdict:
        """Whether the interval lies on the finding's side of zero, on the other side, or on both.

        Example:
            >>> Claim("", "", effect=-3.0, error=1.0, over="images only").verdict
            'not supported'
        """
        if not abs(self.effect) > self.error:
            return "undecided"
        return "supported" if self.effect > 0 else "not supported"


def paired_difference(
    larger: NDArray[np.float64], smaller: NDArray[np.float64]
) -> tuple[float, float, Literal["images and seeds", "images only"]]:
    """Mean of ``larger − smaller`` and the half width of its interval, both ``[seeds, images]``.

    Half width: √((z s_images / √n)² + (t s_seeds / √S)²), with z and t the quantiles of the normal distribution and
    of Student's t with S − 1 degrees of freedom.

    Example:
        >>> import numpy as np
        >>> paired_difference(np.full((2, 5), 3.0), np.full((2, 5), 1.0))
        (2.0, 0.0, 'images and seeds')
    """
    difference = larger - smaller
    difference = difference[:, np.isfinite(difference).all(0)]
    seeds, images = difference.shape
    quantile = (1 + LEVEL) / 2
    over_images = stats.norm.ppf(quantile) * difference.mean(0).std(ddof=1) / np.sqrt(images)
    if seeds == 1:
        return float(difference.mean()), float(over_images), "images only"
    over_seeds = stats.t.ppf(quantile, seeds - 1) * difference.mean(1).std(ddof=1) / np.sqrt(seeds)
    return float(difference.mean()), float(np.hypot(over_images, over_seeds)), "images and seeds"


def claims(tree: xr.DataTree) -> list[Claim]:
    """The findings that this study can speak to: it needs several β, and for some of them several depths."""
    distortion = tree["/images"].to_dataset()["distortion"]
    return [*_about_beta(distortion), *_about_depth(distortion)]


def _about_beta(distortion: xr.DataArray) -> Iterator[Claim]:
    betas = sorted(distortion.beta.values.tolist())
    for where, cell in _cells(distortion, {"seed", "image", "split", "beta"}):
        if 1.0 in betas and betas[0] < 1:
            test = cell.sel(split="test")
            text = f"Lowering β from 1 to {betas[0]:g} lowers the test distortion"
            yield _claim(text, where, test.sel(beta=1.0), test.sel(beta=betas[0]))
        if 1.0 in betas and betas[-1] > 1:
            train = cell.sel(split="train")
            text = f"Raising β from 1 to {betas[-1]:g} underfits: the training distortion grows too"
            yield _claim(text, where, train.sel(beta=betas[-1]), train.sel(beta=1.0))


def _about_depth(distortion: xr.DataArray) -> Iterator[Claim]:
    if distortion.sizes.get("depth", 1) < 2:
        return
    shallow, deep = int(distortion.depth.min()), int(distortion.depth.max())
    lowest = float(distortion.beta.min())
    for where, cell in _cells(distortion.sel(beta=lowest, split="test"), {"seed", "image", "depth"}):
        text = f"At β = {lowest:g} the {deep}-layer network has a lower test distortion than the {shallow}-layer one"
        yield _claim(text, where, cell.sel(depth=shallow), cell.sel(depth=deep))


def _claim(text: str, where: str, larger: xr.DataArray, smaller: xr.DataArray) -> Claim:
    sides = [side.transpose("seed", "image").values for side in (larger, smaller)]
    return Claim(text, where, *paired_difference(*sides))


def _cells(array: xr.DataArray, free: set[str]) -> Iterator[tuple[str, xr.DataArray]]:
    """The array at every combination of the dimensions that are not free, and what to call it."""
    held = [str(dim) for dim in array.dims if dim not in free]
    for values in product(*(array[dim].values.tolist() for dim in held)):
        place: dict[str, Any] = dict(zip(held, values, strict=True))
        yield ", ".join(f"{dim} {value}" for dim, value in place.items()), array.sel(place)
