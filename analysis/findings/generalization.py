"""Findings about where generalization is lost: in the decoder or in the guide."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import xarray as xr

from pyrovae.analysis.findings.cells import StudyCells
from pyrovae.analysis.findings.priors import reference_prior
from pyrovae.analysis.findings.statistics import compared
from pyrovae.analysis.findings.verdicts import Contrast, Finding
from pyrovae.measures.generalization_gap import FALLS_SHORT, falls_short
from pyrovae.study import SPLITS

MEASURE = "generalization_gap"
#: Values per image of a cell; their mean over training images minus that over test images is a part of the gap.
Part = Callable[[xr.Dataset], xr.DataArray]


def of_decoder(cell: xr.Dataset) -> xr.DataArray:
    """log p(x)."""
    return cell["split_log_likelihood"]


def of_guide(cell: xr.Dataset) -> xr.DataArray:
    """ELBO − log p(x)."""
    return -cell["inference_gap"]


def smaller_beta(study: StudyCells, part: Part) -> Iterator[Contrast]:
    """Part at β = 1 − part at the lowest β, for every other setting of the grid."""
    betas = study.values("beta")
    if _is_measured(study) and 1.0 in betas and betas[0] < 1:
        for where, cell in study.along("beta", split=list(SPLITS)):
            yield _contrast(study, where, cell, part(cell), "beta", {1.0: 1, betas[0]: -1}, low=betas[0])


def deeper_network(study: StudyCells, part: Part) -> Iterator[Contrast]:
    """Part with the most layers − part with the fewest layers, at β = 1."""
    depths = study.values("depth")
    if _is_measured(study) and len(depths) > 1 and 1.0 in study.values("beta"):
        shallow, deep = depths[0], depths[-1]
        for where, cell in study.along("depth", split=list(SPLITS), beta=1.0):
            terms = {"shallow": shallow, "deep": deep}
            yield _contrast(study, where, cell, part(cell), "depth", {deep: 1, shallow: -1}, **terms)


def other_prior(study: StudyCells, part: Part) -> Iterator[Contrast]:
    """Part under the reference prior − part under each other one, for every other setting of the grid."""
    if _is_measured(study) and len(study.values("prior")) > 1 and not study.prior_swapped:
        for where, cell in study.along("prior", split=list(SPLITS)):
            names = cell.prior.values.tolist()
            reference = reference_prior(names)
            for other in (name for name in names if name != reference):
                terms = {"reference": reference, "other": other}
                values = compared(part(cell), "prior", reference, other)
                yield _contrast(study, where, cell, values, "prior", {reference: 1, other: -1}, **terms)


def _contrast(
    study: StudyCells,
    where: str,
    cell: xr.Dataset,
    values: xr.DataArray,
    axis: str,
    weights: Mapping[Any, float],
    **terms: Any,
) -> Contrast:
    """The contrast of settings along an axis, if annealing reaches log p(x) in their runs."""
    gap = cell["inference_gap"].sel({axis: list(weights)})
    if falls_short(gap.mean("image"), gap.std("image", ddof=1) / gap.count("image") ** 0.5).any():
        return Contrast(where, note=FALLS_SHORT.text, terms=terms)
    return study.contrast(where, values, axis, weights, **terms)


def _is_measured(study: StudyCells) -> bool:
    return "inference_gap" in study.images


def _findings(name: str, part: Part) -> Iterator[Finding]:
    changes = {
        "falls": f"{name}'s part of the generalization gap falls",
        "rises": f"{name}'s part of the generalization gap rises",
    }
    yield Finding(
        None,
        f"Lowering β from 1 to {{low:g}} shrinks the {name}'s part of the generalization gap",
        "β 1 → {low:g}",
        partial(smaller_beta, part=part),
        **changes,
        measure=MEASURE,
    )
    yield Finding(
        None,
        f"At β = 1, the {name}'s part of the generalization gap is larger with {{deep:g}} layers than "
        "with {shallow:g}",
        "{deep:g} layers instead of {shallow:g} at β = 1",
        partial(deeper_network, part=part),
        falls=changes["rises"],
        rises=changes["falls"],
        measure=MEASURE,
    )
    yield Finding(
        None,
        f"With {{other}} in place of {{reference}}, the {name}'s part of the generalization gap is smaller",
        "{other} instead of {reference}",
        partial(other_prior, part=part),
        **changes,
        measure=MEASURE,
    )


FINDINGS = (*_findings("decoder", of_decoder), *_findings("guide", of_guide))
