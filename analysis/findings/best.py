"""The best values along an axis: those that cannot be distinguished from the one with the lowest mean."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from math import isfinite
from typing import Any

import xarray as xr

from pyrovae.analysis.findings.caveats import unconverged
from pyrovae.analysis.findings.cells import StudyCells, comparable, plain
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
    """The best values along an axis in one cell of the grid, a sentence when printed.

    Attributes:
        values: the one with the best mean, and those that cannot be distinguished from it, at a joint error of 5%.
        verdict: whether the first leads its closest rival, and by how much.
        notes: what may change the answer: values left out because a run diverged or missed its target rate, values at
            an end of the axis, and runs that had not converged.
    """

    axis: str
    by: str
    values: tuple[Any, ...]
    verdict: Verdict
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        where = f" ({self.verdict.contrast.where})" if self.verdict.contrast.where else ""
        answer = f"{self.verdict.outcome}: by {self.by}, {self.axis} is best at {' or '.join(map(plain, self.values))}"
        if self.verdict.contrast.note:
            answer = f"{self.verdict.outcome}: by {self.by}, the best {self.axis} is unknown"
        return "; ".join([f"{answer}{where}: {self.verdict.words}", *self.notes])


def best(results: Evaluation, axis: str, by: str = "test R + D", **at: Any) -> list[Best]:
    """The best values along an axis by multiple comparisons with the best (Hsu 1984), for every other setting.

    Args:
        results: the results of a study, or of a later evaluation of it.
        axis: the axis, such as "prior" or "beta".
        by: "test", "train" or "validation", and one of "D", "R", "R + D" (also if left out) and "log p(x)" (of test
            images); the best has the lowest mean or, of log p(x), the highest. The paper compares β by D. R + D is what
            training with β = 1 minimises.
        at: values at which other axes are fixed.

    Raises:
        InputError: the study has no such axis with several values, or ``by`` is unknown.
    """
    study = StudyCells.of(results)
    split, _, name = by.replace("R+D", "R + D").partition(" ")
    name, splits = name or "R + D", study.images["split"].values.tolist()
    if name not in SCORES or split not in splits:
        raise InputError(
            f"by: expected one of {', '.join(splits)} and one of {', '.join(SCORES)}, such as 'test D', got {by!r}"
        )
    by = f"{split} {name}"
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
    training = [
        f"{caveat.partition(':')[0]}, so more steps may change this" for caveat in unconverged(results.tree.root)
    ]
    answers = []
    for verdict, (_, contrast, values) in zip(verdicts, found, strict=True):
        if verdict.outcome != "supported" and "rival" in contrast.terms:
            values = tuple(dict.fromkeys([*values, contrast.terms["rival"]]))
        ends = [] if contrast.note else _at_an_end(axis, values, study.values(axis))
        notes = tuple(filter(None, [contrast.terms["left_out"], *ends, *training]))
        answers.append(Best(axis, by, values, verdict, notes))
    return answers


def best_settings(results: Evaluation) -> Iterator[list[Best]]:
    """The best β, target rate and prior by test D and by test R + D, where the study compares several."""
    study = StudyCells.of(results)
    axes = ["beta", "target_rate", *([] if study.prior_swapped else ["prior"])]
    for axis, by in product(axes, ("test D", "test R + D")):
        if len(study.values(axis)) > 1:
            yield best(results, axis, by)


def _at_an_end(axis: str, best: tuple[Any, ...], values: list[Any]) -> Iterator[str]:
    """A note if one of the best values is the smallest or the largest number that was compared."""
    if isinstance(values[0], int | float) and len(best) < len(values):
        for end, name, beyond in ((values[0], "smallest", "smaller"), (values[-1], "largest", "larger")):
            if end in best:
                yield f"{plain(end)} is the {name} {axis} compared, and {beyond} ones may be better"


def _compared(
    study: StudyCells, axis: str, split: str, name: str, at: Mapping[str, Any]
) -> Iterator[tuple[Finding, Contrast, tuple[Any, ...]]]:
    """For every cell, the lead of the best value, and all values that may be best."""
    best_of = f"best {axis} by {split} {name}"
    leads = {"falls": "{best} leads {closest}", "rises": "{best} is behind {closest}"}
    finding = Finding(None, f"The {best_of} is {{best}}", best_of, lambda _: (), **leads)
    for where, cell in study.along(axis, split, **at):
        cell, left_out = comparable(cell, axis)
        score = SCORES[name](cell)
        measured = score.sel({axis: score.dropna(axis, how="all")[axis]})
        values = measured[axis].values.tolist()
        note = "" if len(values) > 1 else UNFINISHED
        if name == "log p(x)" and cell["loose"].any():
            note = (
                "k̂ is high in some of the runs, whose bounds may be loose and do not compare; more draws may help, by "
                "the setting measure.particles"
            )
        if note:
            yield finding, Contrast(where, note=note, terms={"best": "unknown", "left_out": left_out}), tuple(values)
            continue
        leading = lead(measured, axis, study.margin)
        tied = leading.tied if leading.effect.is_known else [each for each in values if each != leading.best]
        terms = {
            "best": plain(leading.best),
            "closest": plain(leading.closest),
            "rival": leading.closest,
            "left_out": left_out,
        }
        note = "" if isfinite(leading.effect.estimate) else UNFINISHED
        yield finding, Contrast(where, leading.effect, note, terms=terms), (leading.best, *tied)
