"""The central finding: where I is saturated, a test distortion that still falls can only be due to the prior gap."""

from collections.abc import Iterator
from typing import Any

import xarray as xr

from pyrovae.analysis.findings.cells import StudyCells
from pyrovae.analysis.findings.statistics import Contrast, Finding, contrast, growth_of_gap
from pyrovae.estimators.information import SATURATED


def past_saturation(study: StudyCells) -> Iterator[Contrast]:
    """D_test(highest β) − D_test(lowest β) among the β at which I has reached log N."""
    for where, cell in study.along("beta"):
        cell = cell.sortby("beta")
        betas = _saturated_betas(cell)
        if len(betas) < 2:
            yield Contrast(where, note=_reason(cell, betas), terms=dict.fromkeys(("at", "to", "by"), ""))
            continue
        low, high = betas[0], betas[-1]
        growth = growth_of_gap(cell, "beta", low, high)
        sides = cell["distortion"].sel(beta=high), cell["distortion"].sel(beta=low)
        terms: dict[str, Any] = {"at": f" at β ≤ {high:g}", "to": f" to β = {low:g}", "by": f" by {growth} nats"}
        yield contrast(where, *sides, growth=growth, **terms)


def _saturated_betas(cell: xr.Dataset) -> list[float]:
    """The β, from the lowest up, at which every seed's mutual information has reached log N."""
    saturated = (cell["mutual_information"] > cell["log_n"] - SATURATED).all("seed").values
    return cell.beta.values[saturated.cumprod(dtype=bool)].tolist()


def _reason(cell: xr.Dataset, saturated: list[float]) -> str:
    """Why the finding cannot be tested in a cell."""
    missing = cell.beta.values[cell["mutual_information"].isnull().any("seed")]
    if len(missing):
        return f"I is not measured in every run at {', '.join(f'β = {beta:g}' for beta in missing)}"
    at = f"only at β = {saturated[0]:g}" if saturated else "at no β"
    return f"I reaches log N {at}, and a comparison needs two values of β"


FINDINGS = (
    Finding(7, "After I has reached log N{at}, test distortion keeps falling{to}, while G grows{by}", past_saturation),
)
