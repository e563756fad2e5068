"""The paper's findings, each computed from the study at hand, with an error and a verdict.

An effect is a mean difference in nats per image between two settings, the same images and the same seed on both
sides. Its interval holds two errors: over images, normal, of the differences averaged over seeds; and over seeds,
Student's t. With one seed the interval is over images only and says nothing of other seeds.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, Literal, TypeVar

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy import stats

from pyrovae.estimators.information import SATURATED

Verdict = Literal["supported", "not supported", "undecided"]
Over = Literal["images and seeds", "images only"]
Cell = TypeVar("Cell", xr.DataArray, xr.Dataset)
#: Probability that an interval holds the effect.
LEVEL = 0.95


@dataclass(frozen=True)
class Claim:
    """A finding, and what the study at hand says of it.

    Attributes:
        text: the finding, in words.
        where: the settings that it is about.
        effect: mean difference in nats per image; positive is what the finding predicts. NaN where there is none.
        error: half width of the interval around it.
        over: what the error is over.
        growth: a second effect with its half width, where the finding predicts two.
        note: why there are no numbers, where there are none.
    """

    text: str
    where: str
    effect: float
    error: float
    over: Over
    growth: tuple[float, float] | None = None
    note: str = ""

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


def paired_difference(larger: NDArray[np.float64], smaller: NDArray[np.float64]) -> tuple[float, float, Over]:
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
    return float(difference.mean()), *_half_width(over_images, difference.mean(1))


def _half_width(over_images: float, of_seed: NDArray[np.float64]) -> tuple[float, Over]:
    """Half width of an interval, from a standard error over images and one value a seed."""
    quantile, seeds = (1 + LEVEL) / 2, len(of_seed)
    images = stats.norm.ppf(quantile) * over_images
    if seeds == 1:
        return float(images), "images only"
    over_seeds = stats.t.ppf(quantile, seeds - 1) * of_seed.std(ddof=1) / np.sqrt(seeds)
    return float(np.hypot(images, over_seeds)), "images and seeds"


def claims(tree: xr.DataTree) -> list[Claim]:
    """The findings that this study can speak to: it needs several β, and for some of them several depths.

    Runs that diverged, or are not done yet, count for nothing: what rests on one of them is undecided.
    """
    distortion, information = tree["images"].to_dataset()["distortion"], tree["information"].to_dataset()
    if "runs" in tree.root.children:
        done = tree.root["runs"].to_dataset()["status"] == "done"
        distortion, information = distortion.where(done), information.where(done)
    return [*_about_beta(distortion), *_about_depth(distortion), *_about_saturation(distortion, information)]


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


def _about_saturation(distortion: xr.DataArray, information: xr.Dataset) -> Iterator[Claim]:
    """The central finding: where I can grow no more, test distortion that still falls can owe it only to the gap."""
    measured = information.assign(distortion=distortion.sel(split="test", drop=True)).sortby("beta")
    for where, cell in _cells(measured, {"seed", "image", "beta"}):
        reached = _saturated(cell)
        if len(reached) < 2:
            text = "Test distortion goes on falling where I has reached log N, while G grows"
            missing = cell.beta.values[cell["mutual_information"].isnull().any("seed")]
            if len(missing):
                note = f"I is not measured in every run at {', '.join(f'β = {beta:g}' for beta in missing)}"
            else:
                note = f"it has at {f'β = {reached[0]:g} alone' if reached else 'no β'}, so there is nothing to compare"
            yield Claim(text, where, np.nan, np.nan, "images only", note=note)
            continue
        low, high = reached[0], reached[-1]
        growth = _growth_of_gap(cell, low, high)
        text = (
            f"I reaches log N at β ≤ {high:g}; from there to β = {low:g} test distortion goes on falling, "
            f"while G grows by {growth[0]:.1f} ± {growth[1]:.1f} nats"
        )
        fall = _claim(text, where, cell["distortion"].sel(beta=high), cell["distortion"].sel(beta=low))
        yield replace(fall, growth=growth)


def _saturated(cell: xr.Dataset) -> list[float]:
    """The β, from the lowest up, at which every seed's mutual information has reached log N."""
    full = (cell["mutual_information"] > cell["log_n"] - SATURATED).all("seed").values
    return cell.beta.values[np.logical_and.accumulate(full)].tolist()


def _growth_of_gap(codes: xr.Dataset, low: float, high: float) -> tuple[float, float]:
    """How much larger the prior gap is at the lower β, and the half width of its interval.

    The errors over images of both β are added as if they were independent, which they are not, so that it is wide.
    """
    growth = (codes["prior_gap"].sel(beta=low) - codes["prior_gap"].sel(beta=high)).values
    errors = codes["prior_gap_se"].sel(beta=[low, high]).mean("seed").values
    return float(growth.mean()), _half_width(float(np.hypot(*errors)), growth)[0]


def _claim(text: str, where: str, larger: xr.DataArray, smaller: xr.DataArray) -> Claim:
    sides = [side.transpose("seed", "image").values for side in (larger, smaller)]
    effect, error, over = paired_difference(*sides)
    note = "" if np.isfinite(effect) else "a run is missing or has diverged, or its distortion is not finite"
    return Claim(text, where, effect, error, over, note=note)


def _cells(array: Cell, free: set[str]) -> Iterator[tuple[str, Cell]]:
    """The array at every combination of the dimensions that are not free, and what to call it."""
    held = [str(dim) for dim in array.sizes if dim not in free]
    for values in product(*(array[dim].values.tolist() for dim in held)):
        place: dict[str, Any] = dict(zip(held, values, strict=True))
        yield ", ".join(f"{dim} {value}" for dim, value in place.items()), array.sel(place)
