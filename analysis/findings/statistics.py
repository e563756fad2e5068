"""Effects with their errors, and what they say of a finding.

An effect is a mean difference per image between two settings, in nats unless it says otherwise, the same images and
the same seed on both sides. Its interval holds two errors: over images, normal, of the differences averaged over seeds;
and over seeds, Student's t. With one seed the interval is over images only and says nothing of other seeds.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal, TypeVar

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy import stats

from pyrovae.estimators.likelihood import MANY

Verdict = Literal["supported", "not supported", "undecided"]
Over = Literal["images and seeds", "images only"]
Cell = TypeVar("Cell", xr.DataArray, xr.Dataset)
#: Probability that an interval holds the effect.
LEVEL = 0.95
#: Why there are no numbers where a run has none.
UNFINISHED = "a run is missing or has diverged, or its distortion is not finite"


@dataclass(frozen=True)
class Claim:
    """A finding, and what the study at hand says of it.

    Attributes:
        text: the finding, in words.
        where: the settings that it is about.
        effect: mean difference per image; positive is what the finding predicts. NaN where there is none.
        error: half width of the interval around it.
        over: what the error is over.
        growth: a second effect with its half width, where the finding predicts two.
        note: why there are no numbers, where there are none.
        unit: of the effect.
    """

    text: str
    where: str
    effect: float
    error: float
    over: Over
    growth: tuple[float, float] | None = None
    note: str = ""
    unit: str = "nats"

    @property
    def verdict(self) -> Verdict:
        """Whether every interval lies on the finding's side of zero, one of them on the other side, or neither.

        Example:
            >>> Claim("", "", effect=-3.0, error=1.0, over="images only").verdict
            'not supported'
            >>> Claim("", "", effect=3.0, error=1.0, over="images only", growth=(0.5, 1.0)).verdict
            'undecided'
        """
        intervals = [(self.effect, self.error), *([self.growth] if self.growth else [])]
        if any(effect < -error for effect, error in intervals):
            return "not supported"
        return "supported" if all(effect > error for effect, error in intervals) else "undecided"


def paired_difference(
    larger: NDArray[np.float64], smaller: NDArray[np.float64], quantile: float = (1 + LEVEL) / 2
) -> tuple[float, float, Over]:
    """Mean of ``larger − smaller`` and the half width of its interval, both ``[seeds, images]``.

    Half width: √((z s_images / √n)² + (t s_seeds / √S)²), with z and t the quantiles of the normal distribution and
    of Student's t with S − 1 degrees of freedom. Images that are NaN in every run are padding and left out; whatever
    else is not finite makes both numbers NaN.

    Example:
        >>> import numpy as np
        >>> paired_difference(np.full((2, 5), 3.0), np.full((2, 5), 1.0))
        (2.0, 0.0, 'images and seeds')
    """
    padding = np.isnan(larger).all(0) & np.isnan(smaller).all(0)
    larger, smaller = larger[:, ~padding], smaller[:, ~padding]
    if not larger.size or not (np.isfinite(larger).all() and np.isfinite(smaller).all()):
        return np.nan, np.nan, "images only"
    difference = larger - smaller
    over_images = difference.mean(0).std(ddof=1) / np.sqrt(difference.shape[1])
    return float(difference.mean()), *_half_width(over_images, difference.mean(1), quantile)


def _half_width(
    over_images: float, of_seed: NDArray[np.float64], quantile: float = (1 + LEVEL) / 2
) -> tuple[float, Over]:
    """Half width of an interval, from a standard error over images and one value a seed."""
    seeds = len(of_seed)
    images = stats.norm.ppf(quantile) * over_images
    if seeds == 1:
        return float(images), "images only"
    over_seeds = stats.t.ppf(quantile, seeds - 1) * of_seed.std(ddof=1) / np.sqrt(seeds)
    return float(np.hypot(images, over_seeds)), "images and seeds"


def growth_of_gap(
    codes: xr.Dataset, axis: str, here: Any, there: Any, quantile: float = (1 + LEVEL) / 2
) -> tuple[float, float]:
    """How much larger the prior gap is here than there on an axis, and the half width of its interval.

    The errors over images of both sides are added as if they were independent, which they are not, so that it is wide.
    """
    sides, errors = (
        [codes[name].sel({axis: place}).values for place in (here, there)] for name in ("prior_gap", "prior_gap_se")
    )
    growth = sides[0] - sides[1]
    over_images = float(np.hypot(*(error.mean() for error in errors)))
    return float(growth.mean()), _half_width(over_images, growth, quantile)[0]


def claimed(text: str, where: str, larger: xr.DataArray, smaller: xr.DataArray, unit: str = "nats") -> Claim:
    sides = [side.transpose("seed", "image").values for side in (larger, smaller)]
    effect, error, over = paired_difference(sides[0], sides[1])
    return Claim(text, where, effect, error, over, note="" if np.isfinite(effect) else UNFINISHED, unit=unit)


def is_loose(likelihood: xr.Dataset) -> xr.DataArray:
    """Where the bound of log p(x) may be loose by far: k̂ is high for many images, or cannot be known."""
    share = likelihood["high_pareto_k"]
    return (share > MANY) | (share.isnull() & likelihood["log_likelihood"].notnull())


def cells(array: Cell, free: set[str]) -> Iterator[tuple[str, Cell]]:
    """The array at every combination of the dimensions that are not free, and what to call it."""
    held = [str(dim) for dim in array.sizes if dim not in free]
    for values in product(*(array[dim].values.tolist() for dim in held)):
        place: dict[str, Any] = dict(zip(held, values, strict=True))
        yield ", ".join(f"{dim} {value}" for dim, value in place.items()), array.sel(place)
