"""Findings about priors and the weight of the prior gap, which the paper leaves open."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import xarray as xr

from pyrovae.analysis.findings.cells import StudyCells
from pyrovae.analysis.findings.statistics import LEVEL, Contrast, Finding, contrast, growth_of_gap

#: A number per seed and image of a cell that is lower for better settings.
Score = Callable[[xr.Dataset], xr.DataArray]


def distortion(cell: xr.Dataset) -> xr.DataArray:
    """D."""
    return cell["distortion"]


def total(cell: xr.Dataset) -> xr.DataArray:
    """R + D, the negative ELBO."""
    return cell["distortion"] + cell["rate"]


def negative_log_likelihood(cell: xr.Dataset) -> xr.DataArray:
    """Minus the bound of log p(x)."""
    return -cell["log_likelihood"]


def best_prior(study: StudyCells, score: Score) -> Iterator[Contrast]:
    """Lead of the prior with the lowest mean score on the test images, for every other setting of the grid.

    The best prior is compared with each of the others, with Bonferroni's correction for the number of priors. So if
    all are equally good, one is called the best with a probability of at most 5%.
    """
    for where, cell in _compared_priors(study):
        yield _lead(where, score(cell), warning=_warning(cell))


def best_against_reference(study: StudyCells) -> Iterator[Contrast]:
    """(R + D)(reference) − (R + D)(best prior) on the test images, for every other setting of the grid.

    The reference is the standard normal or, without one, the first prior of the study.
    """
    for where, cell in _compared_priors(study):
        names, best = cell.prior.values.tolist(), _lowest(total(cell))
        reference = "standard_normal" if "standard_normal" in names else names[0]
        if best != reference:
            yield _explained(where, cell, reference, best, _corrected_quantile(len(names)))


def smaller_gamma(study: StudyCells, score: Score, gap_grows: bool = False) -> Iterator[Contrast]:
    """Score at the highest γ − score at the lowest γ on the test images, for every other setting of the grid."""
    gammas = study.values("gamma")
    if len(gammas) > 1:
        low, high = gammas[0], gammas[-1]
        for where, cell in study.along("gamma"):
            growth = growth_of_gap(cell, "gamma", low, high)
            sides = score(cell.sel(gamma=high)), score(cell.sel(gamma=low))
            terms = {"low": low, "high": high, "by": growth, "warning": _warning(cell)}
            yield contrast(where, *sides, growth=growth if gap_grows else None, **terms)


def _compared_priors(study: StudyCells) -> Iterator[tuple[str, xr.Dataset]]:
    """Cells with at least two priors that were measured. There are none if the prior was swapped after training."""
    if len(study.values("prior")) > 1 and not study.prior_swapped:
        for where, cell in study.along("prior"):
            measured = cell.sel(prior=total(cell).dropna("prior", how="all").prior)
            if len(measured.prior) > 1:
                yield where, measured


def _lead(where: str, score: xr.DataArray, **terms: Any) -> Contrast:
    """The contrast of the best prior with its closest rival, which is one that it does not beat if there are any."""
    names, best = score.prior.values.tolist(), _lowest(score)
    quantile = _corrected_quantile(len(names))
    rivals = {
        name: contrast(where, score.sel(prior=name), score.sel(prior=best), quantile=quantile)
        for name in names
        if name != best
    }
    tied = [name for name, rival in rivals.items() if not rival.effect.estimate > rival.effect.half_width]
    closest = min(tied or rivals, key=lambda name: rivals[name].effect.estimate)
    significant = f"over {', '.join(tied)} is not" if tied else "over every other prior is"
    terms |= {"count": len(names), "best": best, "lead": f"its lead {significant} significant (closest: {closest})"}
    return replace(rivals[closest], terms=terms)


def _explained(where: str, cell: xr.Dataset, reference: str, best: str, quantile: float) -> Contrast:
    """The contrast of the best prior with the reference, and how D, R and the prior gap contribute to it."""
    was, now = cell.sel(prior=reference), cell.sel(prior=best)
    parts = {name: contrast(where, was[name], now[name], quantile=quantile).effect for name in ("distortion", "rate")}
    gap = growth_of_gap(cell, "prior", reference, best, quantile)
    terms: dict[str, Any] = {"reference": reference, "best": best, "gap": gap, **parts}
    growth = gap if np.isfinite(gap).all() else None
    return contrast(where, total(was), total(now), quantile=quantile, growth=growth, **terms)


def _corrected_quantile(number: int) -> float:
    """The quantile for comparing the best of a number of settings with each of the others."""
    return 1 - (1 - LEVEL) / number


def _lowest(score: xr.DataArray) -> str:
    """The prior with the lowest mean."""
    means = score.mean(["seed", "image"])
    return str(means.prior.values[means.values.argmin()])


def _warning(cell: xr.Dataset) -> str:
    """A remark if bounds of log p(x) may be loose."""
    return " (k̂ is high, so the bounds may be loose)" if cell["loose"].any() else ""


FINDINGS = (
    Finding(None, "Of {count} priors, {best} has the lowest test D; {lead}", partial(best_prior, score=distortion)),
    Finding(None, "Of {count} priors, {best} has the lowest test R + D; {lead}", partial(best_prior, score=total)),
    Finding(
        None,
        "Of {count} priors, {best} has the highest bound of test log p(x){warning}; {lead}",
        partial(best_prior, score=negative_log_likelihood),
    ),
    Finding(
        None,
        "{best} in place of {reference} lowers test R + D, D by {distortion} and R by {rate}, and the prior gap of the "
        "training images by {gap}",
        best_against_reference,
    ),
    Finding(
        None,
        "Lowering γ from {high:g} to {low:g} lowers the test distortion, while G grows by {by} nats",
        partial(smaller_gamma, score=distortion, gap_grows=True),
    ),
    Finding(None, "Lowering γ from {high:g} to {low:g} lowers test R + D", partial(smaller_gamma, score=total)),
    Finding(
        None,
        "Lowering γ from {high:g} to {low:g} raises the bound of test log p(x){warning}",
        partial(smaller_gamma, score=negative_log_likelihood),
    ),
)
