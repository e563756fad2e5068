"""What a study says of priors, and of the weight of the prior gap."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from pyrovae.analysis.findings.statistics import (
    LEVEL,
    UNFINISHED,
    Claim,
    cells,
    claimed,
    growth_of_gap,
    paired_difference,
)


def about_priors(images: xr.Dataset, information: xr.Dataset) -> Iterator[Claim]:
    """Which prior generalizes best, by test D, by test R + D and by the bound of log p(x); how far the gap explains it.

    The prior with the lowest mean is held against each of the others, and called the best only if it beats them all, at
    a level with Bonferroni's correction for the number of priors: so one of several that are alike is called the best
    with a probability of 5% at most.
    """
    if images.sizes.get("prior", 1) < 2:
        return
    test = _of_test(images, information)
    for where, cell in cells(test, {"seed", "image", "prior"}):
        measured = cell.sel(prior=cell["total"].dropna("prior", how="all").prior)
        if len(measured.prior) > 1:
            yield _best_prior(measured["distortion"], "lowest test D", where)
            yield _best_prior(measured["total"], "lowest test R + D", where)
            yield _best_prior(-measured["log_likelihood"], f"highest bound of test log p(x){_doubt(measured)}", where)
            yield from _explained_by_gap(measured, where)


def _best_prior(values: xr.DataArray, what: str, where: str) -> Claim:
    names, best = values.prior.values.tolist(), _lowest(values)
    quantile = _against_the_best(len(names))
    differences = {
        name: paired_difference(_sides(values, name), _sides(values, best), quantile) for name in names if name != best
    }
    near = [name for name, (effect, error, _) in differences.items() if not effect > error]
    text = f"Of {len(names)} priors {best} has the {what}"
    text += f", but it is not told apart from {', '.join(near)}; the nearest" if near else ", and the nearest"
    nearest = min(near or differences, key=lambda name: differences[name][0])
    effect, error, over = differences[nearest]
    return Claim(
        f"{text}, {nearest}, is behind it", where, effect, error, over, note="" if np.isfinite(effect) else UNFINISHED
    )


def _explained_by_gap(cell: xr.Dataset, where: str) -> Iterator[Claim]:
    """What the best prior by test R + D changes against the standard normal, or else the first prior of the study."""
    names = cell.prior.values.tolist()
    reference = "standard_normal" if "standard_normal" in names else names[0]
    best = _lowest(cell["total"])
    if best == reference:
        return
    quantile = _against_the_best(len(names))
    effect, error, over = paired_difference(_sides(cell["total"], reference), _sides(cell["total"], best), quantile)
    parts = [
        paired_difference(_sides(cell[name], reference), _sides(cell[name], best), quantile)[:2]
        for name in ("distortion", "rate")
    ]
    gap = growth_of_gap(cell, "prior", reference, best, quantile)
    told = [f"{value:.1f} ± {width:.1f}" if np.isfinite(value) else "(not measured)" for value, width in (*parts, gap)]
    text = (
        f"{best} in place of {reference} lowers test R + D, D by {told[0]} and R by {told[1]}, and the prior gap of "
        f"the training images by {told[2]}"
    )
    growth = gap if np.isfinite(gap).all() else None
    yield Claim(text, where, effect, error, over, growth=growth, note="" if np.isfinite(effect) else UNFINISHED)


def about_gamma(images: xr.Dataset, information: xr.Dataset) -> Iterator[Claim]:
    """Whether letting go of the prior gap helps."""
    if images.sizes.get("gamma", 1) < 2:
        return
    test = _of_test(images, information)
    low, high = float(test.gamma.min()), float(test.gamma.max())
    for where, cell in cells(test, {"seed", "image", "gamma"}):
        growth = growth_of_gap(cell, "gamma", low, high)
        text = f"Lowering γ from {high:g} to {low:g} lowers the test distortion, while G grows by"
        text += f" {growth[0]:.1f} ± {growth[1]:.1f} nats"
        fall = claimed(text, where, cell["distortion"].sel(gamma=high), cell["distortion"].sel(gamma=low))
        yield replace(fall, growth=growth)
        text = f"Lowering γ from {high:g} to {low:g} lowers test R + D"
        yield claimed(text, where, cell["total"].sel(gamma=high), cell["total"].sel(gamma=low))
        text = f"Lowering γ from {high:g} to {low:g} raises the bound of test log p(x){_doubt(cell)}"
        yield claimed(text, where, cell["log_likelihood"].sel(gamma=low), cell["log_likelihood"].sel(gamma=high))


def _of_test(images: xr.Dataset, information: xr.Dataset) -> xr.Dataset:
    """Test images with R + D as ``total``, the prior gap of the training images, and where bounds may be loose."""
    test = images.sel(split="test", drop=True)
    return test.assign(total=test["distortion"] + test["rate"]).merge(
        information[["prior_gap", "prior_gap_se", "loose"]]
    )


def _doubt(cell: xr.Dataset) -> str:
    """What is to be said of bounds of log p(x) that may be loose."""
    return " (k̂ is high, so that bounds may be loose by far)" if cell["loose"].any() else ""


def _against_the_best(number: int) -> float:
    """The quantile at which the best of a number of settings is held against each of the others."""
    return 1 - (1 - LEVEL) / number


def _lowest(values: xr.DataArray) -> str:
    """The prior with the lowest mean."""
    means = values.mean(["seed", "image"])
    return str(means.prior.values[means.values.argmin()])


def _sides(values: xr.DataArray, prior: str) -> NDArray[np.float64]:
    return values.sel(prior=prior).transpose("seed", "image").values
