"""What casts doubt on the numbers of a study."""

from collections.abc import Iterator

import xarray as xr

from pyrovae.analysis.findings.statistics import is_loose
from pyrovae.estimators.information import SATURATED
from pyrovae.estimators.likelihood import MANY

#: A training has not converged if its last quarter brought more than this share of the whole fall of its loss.
CONVERGED = 0.01


def caveats(tree: xr.DataTree) -> list[str]:
    """One line for everything that a reader of the numbers has to know: of a study, or of a later measurement of it.

    Runs that diverged or are not done; what is not measured and why; trainings that had not converged; bounds of
    log p(x) that may be loose; mutual information that can grow no more.
    """
    return [*_of_runs(tree["runs"].to_dataset()), *_of_training(tree.root), *_of_measurement(tree)]


def unconverged(curves: xr.Dataset) -> xr.DataArray:
    """Share of the whole fall of the training loss that came in the last quarter of the steps, for each run.

    (L(¾T) − L(T)) / (L(0) − L(T)), with L the loss on the first training images, always with the same noise; NaN where
    the curve has not come to its end, or the loss has not fallen.

    Example:
        >>> coords = {"split": ["train"], "step": [0, 10, 75, 100]}
        >>> unconverged(xr.Dataset({"loss": (["split", "step"], [[100, 60, 52, 50]])}, coords)).item()
        0.04
    """
    loss = curves["loss"].sel(split="train", drop=True)
    steps = loss["step"].values
    late = max([steps[0], *steps[steps <= 0.75 * steps[-1]]])
    first, before, last = (loss.sel(step=step, drop=True) for step in (steps[0], late, steps[-1]))
    return ((before - last) / (first - last)).where(first > last)


def _of_runs(runs: xr.Dataset) -> Iterator[str]:
    for place, run in runs.to_dataframe()[["status", "diverged_at"]].iterrows():
        names = zip(runs["status"].dims, place if isinstance(place, tuple) else (place,), strict=True)
        where = ", ".join(f"{name}={value}" for name, value in names)
        if run["status"] == "diverged":
            yield (
                f"the run at {where} diverged at step {run['diverged_at']:,}; "
                "its numbers are those of its last good checkpoint, and no claim counts it"
            )
    yield from sorted(set(runs["skipped"].values.flatten()) - {""})
    if len(set(runs["versions"].values.flatten()) - {""}) > 1:
        yield "not all runs were made by the same code and versions: see 'pyrovae show DIR --provenance'"
    if pending := int((runs["status"] == "pending").sum()):
        yield f"{pending} of {runs['status'].size} runs are not done yet"


def _of_training(study: xr.DataTree) -> Iterator[str]:
    """Trainings that had not converged, where `steps` is no axis: there it would be meant."""
    if "steps" in study["runs"].dims:
        return
    late = unconverged(study["curves"].to_dataset())
    if number := int((late > CONVERGED).sum()):
        yield (
            f"{number} of {_count(late)} trainings had not converged: the last quarter of their steps brought up to "
            f"{float(late.max()):.1%} of the whole fall of the training loss"
        )


def _of_measurement(tree: xr.DataTree) -> Iterator[str]:
    likelihood, codes = tree["likelihood"].to_dataset(), tree["information"].to_dataset()
    if number := int(is_loose(likelihood).sum()):
        yield (
            f"k̂ is high for more than {MANY:.0%} of the images, or not known, in {number} of "
            f"{_count(likelihood['log_likelihood'])} runs: their bounds of log p(x) may be loose by far"
        )
    if number := int((codes["mutual_information"] > codes["log_n"] - SATURATED).sum()):
        yield (
            f"I is within {SATURATED} nats of log N in {number} of {_count(codes['mutual_information'])} runs: it is "
            "saturated there, and says no more than that the encodings of training images hardly overlap"
        )


def _count(values: xr.DataArray) -> int:
    return int(values.notnull().sum())
