"""The central finding: where I is saturated, a test distortion that still falls can only be due to the prior gap."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import xarray as xr

from pyrovae.analysis.findings.cells import StudyCells
from pyrovae.analysis.findings.statistics import repeated
from pyrovae.analysis.findings.verdicts import Contrast, Finding
from pyrovae.estimators.information import SATURATED
from pyrovae.measures.information import is_saturated


def past_saturation(study: StudyCells) -> Iterator[Contrast]:
    """The fall of D_test with G over all β at which I has reached log N, from the slope of D_test on G.

    With Ḡ the mean of G over these K values of β, the contrast is Σ_k c_k D_k with
    c_k = −(G_k − Ḡ) (max G − min G) / Σ_j (G_j − Ḡ)². Its error is from these values of β alone: at others, runs may
    vary more. A study of one β does not ask the question.
    """
    for where, cell in study.along("beta") if len(study.values("beta")) > 1 else ():
        cell = cell.sortby("beta")
        betas = saturated(cell, "beta")
        gaps = _mean(cell["prior_gap"]).sel(beta=betas)
        if len(betas) < 2 or not np.ptp(gaps.values) > SATURATED:
            yield Contrast(where, note=_reason(cell, betas), terms={"at": "", "by": ""})
            continue
        terms = {"at": f" at β ≤ {betas[-1]:g}", "by": f", here by {np.ptp(gaps.values):.1f} nats"}
        yield study.contrast(where, cell["distortion"].sel(beta=betas), "beta", falling(gaps), **terms)


def weight_of_gap(study: StudyCells) -> Iterator[Contrast]:
    """D_test(highest γ) − D_test(lowest γ) at equal β, where I is saturated at both: only the weight of G differs."""
    gammas = study.values("gamma")
    if len(gammas) > 1:
        low, high = gammas[0], gammas[-1]
        for where, cell in study.along("gamma"):
            if only_gap_grows(cell, low, high):
                gaps = _mean(cell["prior_gap"])
                terms = {"low": low, "high": high, "by": float(gaps.sel(gamma=low) - gaps.sel(gamma=high))}
                yield study.contrast(where, cell["distortion"], "gamma", {high: 1, low: -1}, **terms)


def only_gap_grows(cell: xr.Dataset, low: float, high: float) -> bool:
    """Whether I is saturated at both values of γ, and G is larger at the lower one."""
    gaps = _mean(cell["prior_gap"])
    grows = bool(gaps.sel(gamma=low) - gaps.sel(gamma=high) > SATURATED)
    return grows and {low, high} <= set(saturated(cell, "gamma", leading=False))


def falling(gaps: xr.DataArray) -> dict[Any, float]:
    """The weights of the trend: how far a quantity falls over the range of G, by least squares.

    Example:
        >>> falling(xr.DataArray([10.0, 20.0, 30.0], {"beta": [1.0, 0.1, 0.01]}, "beta"))
        {1.0: 1.0, 0.1: -0.0, 0.01: -1.0}
    """
    centred = gaps.values - gaps.values.mean()
    weights = -centred / (centred**2).sum() * np.ptp(gaps.values)
    return dict(zip(gaps[gaps.dims[0]].values.tolist(), weights.tolist(), strict=True))


def saturated(cell: xr.Dataset, axis: str, leading: bool = True) -> list[float]:
    """The values along an axis, from the lowest up, at which every run's mutual information has reached log N.

    Args:
        leading: whether to stop at the first value at which it has not.
    """
    reached = is_saturated(cell).all(repeated(cell)).values
    found: list[float] = cell[axis].values[reached.cumprod(dtype=bool) if leading else reached].tolist()
    return found


def _mean(values: xr.DataArray) -> xr.DataArray:
    return values.mean(repeated(values))


def _reason(cell: xr.Dataset, betas: list[float]) -> str:
    """Why the finding cannot be tested in a cell."""
    missing = cell.beta.values[cell["mutual_information"].isnull().any(repeated(cell))]
    if len(missing):
        return f"I is not measured in every run at {', '.join(f'β = {beta:g}' for beta in missing)}"
    if len(betas) > 1:
        return f"G hardly changes over the β at which I reaches log N, {betas[0]:g} to {betas[-1]:g}"
    at = f"only at β = {betas[0]:g}" if betas else "at no β"
    return f"I reaches log N {at}, and a comparison needs two values of β"


FINDINGS = (
    Finding(
        7,
        "After I has reached log N{at}, test distortion keeps falling as G grows{by}",
        "G grows while I stays at log N{at}",
        past_saturation,
    ),
    Finding(
        7,
        "With I at log N and β fixed, lowering γ, the weight of G, from {high:g} to {low:g} lowers the test distortion "
        "while G grows by {by:.1f} nats",
        "γ {high:g} → {low:g} with I at log N",
        weight_of_gap,
    ),
)
