"""The best values along an axis: those that cannot be distinguished from the one with the lowest mean."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import xarray as xr

from pyrovae.analysis.findings.cells import StudyCells
from pyrovae.analysis.findings.priors import Score, distortion, negative_log_likelihood, total
from pyrovae.analysis.findings.statistics import lead
from pyrovae.analysis.findings.verdicts import UNFINISHED, Contrast, Finding, Verdict, decide
from pyrovae.errors import InputError
from pyrovae.store.results import Evaluation


def rate(cell: xr.Dataset) -> xr.DataArray:
    """R."""
    return cell["rate"]


#: What values are compared by, of which lower ones are better.
SCORES: Mapping[str, Score] = {
    "D": distortion,
    "R": rate,
    "R + D": total,
    "log p(x)": negative_log_likelihood,
}


@dataclass(frozen=True)
class Best:
    """The best values along an axis in one cell of the grid.

    Attributes:
        values: the one with the best mean, and those that cannot be distinguished from it, at a joint error of 5%.
        verdict: whether the first leads its closest rival, and by how much.
    """

    axis: str
    by: str
    values: tuple[Any, ...]
    verdict: Verdict

    def __repr__(self) -> str:
        return f"{self.axis}: {', '.join(map(str, self.values))} ({self.verdict})"


def best(results: Evaluation, axis: str, by: str = "test R + D", **at: Any) -> list[Best]:
    """The best values along an axis by multiple comparisons with the best (Hsu 1984), for every other setting.

    Args:
        results: the results of a study, or of a later evaluation of it.
        axis: the axis, such as "prior" or "beta".
        by: "test" or "train", and one of "D", "R", "R + D" and "log p(x)"; the best has the lowest mean or, of
            log p(x), the highest.
        at: values at which other axes are fixed.

    Raises:
        InputError: the study has no such axis with several values, or ``by`` is unknown.
    """
    study = StudyCells.of(results)
    split, _, name = by.partition(" ")
    if name not in SCORES or split not in ("train", "test"):
        raise InputError(f"by: expected 'test' or 'train' and one of {', '.join(SCORES)}, such as 'test D', got {by!r}")
    axes = [str(dim) for dim in study.images.dims if dim not in ("image", "split")]
    for given in (axis, *at):
        if given not in axes:
            raise InputError(f"unknown axis '{given}'; valid: {', '.join(axes)}")
    if axis in ("seed", "data_seed") or len(study.values(axis)) < 2:
        raise InputError(f"{axis}: expected an axis of settings with several values, got {study.values(axis)}")
    if axis == "prior" and study.prior_swapped:
        raise InputError("prior: expected the priors that were trained with, got an evaluation with a swapped one")
    found = list(_compared(study, axis, split, name, at))
    verdicts = decide([(finding, contrast) for finding, contrast, _ in found], study.sources)
    return [Best(axis, by, values, verdict) for verdict, (_, _, values) in zip(verdicts, found, strict=True)]


def _compared(
    study: StudyCells, axis: str, split: str, name: str, at: Mapping[str, Any]
) -> Iterator[tuple[Finding, Contrast, tuple[Any, ...]]]:
    """For every cell, the lead of the best value, and the values that cannot be distinguished from it."""
    best_of = f"best {axis} by {split} {name}"
    leads = {"falls": "it leads {closest}", "rises": "it is behind {closest}"}
    finding = Finding(None, f"The {best_of} is {{best}}", best_of, lambda _: (), **leads)
    for where, cell in study.along(axis, split, **at):
        score = SCORES[name](cell)
        measured = score.sel({axis: score.dropna(axis, how="all")[axis]})
        values = measured[axis].values.tolist()
        note = "" if len(values) > 1 else UNFINISHED
        if name == "log p(x)" and cell["loose"].any():
            note = "k̂ is high in some of the runs, whose bounds may be loose and do not compare"
        if note:
            yield finding, Contrast(where, note=note, terms={"best": "unknown"}), tuple(values)
            continue
        leading = lead(measured, axis, study.margin)
        tied = leading.tied if leading.effect.is_known else [each for each in values if each != leading.best]
        terms = {"best": leading.best, "closest": leading.closest}
        yield finding, Contrast(where, leading.effect, terms=terms), (leading.best, *tied)
