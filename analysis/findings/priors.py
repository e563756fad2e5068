"""Findings about priors and the weight of the prior gap, which the paper leaves open."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from pyrovae.analysis.findings.cells import StudyCells, comparable
from pyrovae.analysis.findings.information import only_gap_grows
from pyrovae.analysis.findings.statistics import Effect, compared, effect, effect_of_numbers, lead
from pyrovae.analysis.findings.verdicts import UNFINISHED, Contrast, Finding, rounded

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
    """Lead of the prior with the lowest mean score on the test images, for every other setting of the grid."""
    for where, cell, left_out in _compared_priors(study):
        if note := _not_comparable(score, cell):
            yield Contrast(where, note=note, terms={"count": cell.sizes["prior"], "found": ""})
            continue
        found = lead(score(cell), "prior", study.margin)
        shown = f"cannot tell it from {', '.join(found.tied)}" if found.tied else "puts it ahead of every other prior"
        named = f", {left_out}," if left_out else ""
        named = f"{named} is {found.best}; this comparison alone {shown}"
        terms = {"count": cell.sizes["prior"], "found": named, "best": found.best, "closest": found.closest}
        yield Contrast(where, found.effect, _note(found.effect), terms=terms)


def best_against_reference(study: StudyCells) -> Iterator[Contrast]:
    """(R + D)(reference) − (R + D)(best prior) on the test images, for every other setting of the grid."""
    for where, cell, _ in _compared_priors(study):
        names = cell.prior.values.tolist()
        best, reference = lead(total(cell), "prior", study.margin).best, reference_prior(names)
        if best != reference:
            scores = compared(total(cell), "prior", reference, best)
            found = effect(scores, "prior", {reference: 1, best: -1}, study.margin, len(names) - 1)
            terms = {"reference": reference, "best": best, "changes": _changes(cell, reference, best)}
            yield Contrast(where, found, _note(found), terms=terms)


def fitted_afterwards(study: StudyCells) -> Iterator[Contrast]:
    """(R + D)(β = 1, prior trained with the pair) − (R + D)(β < 1, prior replaced after training) on the test images.

    For every β below 1, and every other setting of the grid.
    """
    if "joint" in study.images and 1 in study.values("beta"):
        for where, cell in study.along("beta"):
            joint = cell["joint"].sel(beta=1, drop=True)
            for low in (beta for beta in study.values("beta") if beta < 1):
                both = xr.concat([joint, total(cell).sel(beta=low, drop=True)], pd.Index([0, 1], name="fitted"))
                yield study.contrast(where, both, "fitted", {0: 1, 1: -1}, low=low)


def smaller_gamma(study: StudyCells, score: Score, only_unsaturated: bool = False) -> Iterator[Contrast]:
    """Score at the highest γ − score at the lowest γ on the test images, for every other setting of the grid.

    Args:
        only_unsaturated: whether to leave out cells that test the central finding.
    """
    gammas = study.values("gamma")
    if len(gammas) > 1:
        low, high = gammas[0], gammas[-1]
        for where, cell in study.along("gamma"):
            if not (only_unsaturated and only_gap_grows(cell, low, high)):
                if note := _not_comparable(score, cell):
                    yield Contrast(where, note=note, terms={"low": low, "high": high})
                else:
                    yield study.contrast(where, score(cell), "gamma", {high: 1, low: -1}, low=low, high=high)


def reference_prior(names: list[str]) -> str:
    """The prior that others are compared with: the standard normal or, without one, the first."""
    return "standard_normal" if "standard_normal" in names else names[0]


def _compared_priors(study: StudyCells) -> Iterator[tuple[str, xr.Dataset, str]]:
    """Cells with at least two priors that were measured, and which priors are left out.

    There are none if the prior was swapped after training.
    """
    if len(study.values("prior")) > 1 and not study.prior_swapped:
        for where, cell in study.along("prior"):
            measured = cell.sel(prior=total(cell).dropna("prior", how="all").prior)
            if len(measured.prior) > 1:
                yield where, *comparable(measured, "prior")


def _changes(cell: xr.Dataset, reference: str, best: str) -> str:
    """How D, R and the prior gap of the training images change."""
    weights: dict[Any, float] = {best: 1, reference: -1}
    parts = {symbol: effect(cell[name], "prior", weights, 0) for symbol, name in (("D", "distortion"), ("R", "rate"))}
    parts["G on training images"] = effect_of_numbers(cell["prior_gap"], cell["prior_gap_se"], "prior", weights)
    return ", ".join(f"{symbol} {_signed(each)}" for symbol, each in parts.items())


def _signed(change: Effect) -> str:
    if not np.isfinite(change.estimate):
        return "not measured"
    return f"{'+' if change.estimate > 0 else '−'}{rounded(abs(change.estimate), change.half_width)}"


def _note(found: Effect) -> str:
    return "" if np.isfinite(found.estimate) else UNFINISHED


def _not_comparable(score: Score, cell: xr.Dataset) -> str:
    """Why a score does not compare between the settings of a cell; empty if it does."""
    loose = score is negative_log_likelihood and cell["loose"].any()
    return "k̂ is high in some of the runs, whose bounds may be loose and do not compare" if loose else ""


_LEADS = {"falls": "{best} leads {closest}", "rises": "{best} is behind {closest}"}
FINDINGS = (
    Finding(
        None,
        "The best of {count} priors by test D{found}",
        "best of {count} priors by test D",
        partial(best_prior, score=distortion),
        **_LEADS,
    ),
    Finding(
        None,
        "The best of {count} priors by test R + D{found}",
        "best of {count} priors by test R + D",
        partial(best_prior, score=total),
        **_LEADS,
    ),
    Finding(
        None,
        "The best of {count} priors by the bound of test log p(x){found}",
        "best of {count} priors by the bound of test log p(x)",
        partial(best_prior, score=negative_log_likelihood),
        **_LEADS,
    ),
    Finding(
        None,
        "{best} in place of {reference} lowers test R + D ({changes} nats)",
        "{best} instead of {reference}",
        best_against_reference,
        falls="test R + D falls",
        rises="test R + D rises",
    ),
    Finding(
        None,
        "At β = {low:g}, a prior fitted afterwards gives a lower test R + D than training with a prior at β = 1",
        "β = {low:g} with the prior fitted afterwards, instead of β = 1",
        fitted_afterwards,
        falls="test R + D falls",
        rises="test R + D rises",
    ),
    Finding(
        None,
        "Lowering γ from {high:g} to {low:g} lowers the test distortion",
        "γ {high:g} → {low:g}",
        partial(smaller_gamma, score=distortion, only_unsaturated=True),
    ),
    Finding(
        None,
        "Lowering γ from {high:g} to {low:g} lowers test R + D",
        "γ {high:g} → {low:g}",
        partial(smaller_gamma, score=total),
        falls="test R + D falls",
        rises="test R + D rises",
    ),
    Finding(
        None,
        "Lowering γ from {high:g} to {low:g} raises the bound of test log p(x)",
        "γ {high:g} → {low:g}",
        partial(smaller_gamma, score=negative_log_likelihood),
        falls="the bound of test log p(x) rises",
        rises="the bound of test log p(x) falls",
    ),
)
