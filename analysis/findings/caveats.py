"""Caveats: what a reader of a study's numbers has to know."""

from collections.abc import Iterator
from functools import partial
from itertools import chain

import numpy as np
import xarray as xr

from pyrovae.analysis.findings.cells import SYMBOLS, missed_targets
from pyrovae.estimators.information import SATURATED
from pyrovae.estimators.likelihood import HIGH_K_SHARE
from pyrovae.measures.information import is_saturated
from pyrovae.measures.likelihood import is_loose
from pyrovae.study import Study
from pyrovae.training.target_rate import TOLERANCE

#: Training has converged if at most this share of the total loss decrease came in the last quarter of the steps, apart
#: from those in which the learning rate falls: there, the loss falls with it.
CONVERGED = 0.01


def caveats(tree: xr.DataTree) -> list[str]:
    """The caveats of a study, or of a later evaluation of it, one line each.

    Runs that diverged; what is not measured, and why; runs that are not done; target rates that were missed; training
    that had not converged; test distortion that was lower before; bounds of log p(x) that may be loose; saturated
    mutual information; test images that are training images, too.
    """
    runs, study = tree["runs"].to_dataset(), tree.root
    of_training = _of_targets(study), unconverged(study), _of_overfitting(study)
    return [*chain(_of_runs(runs), _of_missing_steps(tree, runs), *of_training, _of_measures(tree))]


def late_decrease(curves: xr.Dataset, end: int | None = None) -> xr.DataArray:
    """Share of the total decrease of the training loss that came in the last quarter of the steps, for each run.

    (L(¾T) − L(T)) / (L(0) − L(T)), with L the loss on the first training images under fixed noise, linear between the
    steps of the curve; NaN if the curve is incomplete or the loss has not decreased.

    Args:
        end: the latest that T, the last step of the curve, may be.

    Example:
        >>> coords = {"split": ["train"], "step": [0, 10, 70, 80, 100]}
        >>> late_decrease(xr.Dataset({"loss": (["split", "step"], [[100, 60, 53, 51, 50]])}, coords)).item()
        0.04
    """
    curves = curves.sel(split="train", drop=True).sel(step=slice(end))
    loss = curves["loss"]
    if "target_rate" in curves.dims:  # β changes the loss, and here it is the last one throughout
        loss = curves["distortion"] + curves["weight"].isel(step=-1) * curves["rate"]
    steps = loss["step"].values

    def at(step: float) -> xr.DataArray:
        return xr.apply_ufunc(partial(np.interp, step, steps), loss, input_core_dims=[["step"]], vectorize=True)

    start, before, stop = at(steps[0]), at(0.75 * steps[-1]), at(steps[-1])
    return ((before - stop) / (start - stop)).where(start > stop)


def _of_runs(runs: xr.Dataset) -> Iterator[str]:
    for place, run in runs.to_dataframe()[["status", "diverged_at"]].iterrows():
        if run["status"] == "diverged":
            names = zip(runs["status"].dims, place if isinstance(place, tuple) else (place,), strict=True)
            where = ", ".join(f"{name}={value}" for name, value in names)
            yield (
                f"the run at {where} diverged at step {run['diverged_at']:,}; "
                "its numbers are those of its last good checkpoint, and no verdict uses them"
            )
    if any("given" in kind for kind in runs["distortion_kind"].values.flatten()):
        yield "D, −ELBO and log p(x) are those of x given its offset, log p(x | offset); draws have the items' offsets"
    yield from sorted(set(runs["skipped"].values.flatten()) - {""})
    if len(set(runs["versions"].values.flatten()) - {""}) > 1:
        yield "not all runs were made by the same code and versions: see 'pyrovae show DIR --provenance'"


def _of_missing_steps(tree: xr.DataTree, runs: xr.Dataset) -> Iterator[str]:
    """Runs without numbers, and those with numbers from an earlier step than the study asks for."""
    reached = runs["step"].values[runs["status"].values == "pending"]
    missing, steps, total = int((reached < 0).sum()), reached[reached >= 0], runs["status"].size
    if missing:
        yield f"{missing} of {total} runs are not {'done' if tree.parent is None else 'measured like this'} yet"
    if len(steps):
        last = Study.of_yaml(tree.root.attrs["study"]).base.steps
        earlier = " to ".join(f"{step:,}" for step in sorted({steps.min(), steps.max()}))
        yield (
            f"{len(steps)} of {total} runs have not reached step {last:,}: their numbers are from step {earlier}; "
            "'pyrovae run' continues them"
        )


def _of_targets(study: xr.DataTree) -> Iterator[str]:
    if number := int((missed := missed_targets(study)).sum()):
        others = [dim for dim in missed.dims if dim != "target_rate"]
        targets = ", ".join(f"{target:g}" for target in missed["target_rate"].values[missed.any(others)])
        yield (
            f"the rate of {number} of {missed.size} runs is more than {TOLERANCE:.0%} from its target, at "
            f"{SYMBOLS['target_rate']} = {targets}; no comparison at equal rate uses them"
        )


def unconverged(study: xr.DataTree) -> Iterator[str]:
    """The caveat that runs had not converged, if any had not."""
    end = Study.of_yaml(study.attrs["study"]).base.branch_step
    late = late_decrease(study["curves"].to_dataset(), end)
    if number := int((late > CONVERGED).sum()):
        before = "" if end is None else f" before step {end:,}, where the learning rate begins to fall"
        yield (
            f"{number} of {_count(late)} runs had not converged: up to {float(late.max()):.1%} of the total decrease "
            f"of the training loss came in the last quarter{before}; more steps continue them, as in --set steps="
            f"{2 * Study.of_yaml(study.attrs['study']).base.steps}"
        )


def _of_overfitting(study: xr.DataTree) -> Iterator[str]:
    settings = Study.of_yaml(study.attrs["study"])
    curve = study["curves"].to_dataset()["distortion"].sel(split="test", drop=True)
    lowest = curve.min("step")
    risen = curve.isel(step=-1) - lowest
    number = int((risen > settings.margin * abs(lowest)).sum())
    if number and settings.base.keep == "last":
        yield (
            f"the test distortion of {number} of {_count(risen)} runs was lower at an earlier step, by up to "
            f"{float(risen.max()):.1f} nats: see the learning curves; --set keep=best with validation_images measures "
            "the best step"
        )


def _of_measures(tree: xr.DataTree) -> Iterator[str]:
    likelihood, codes = tree["likelihood"].to_dataset(), tree["information"].to_dataset()
    if number := int(is_loose(likelihood).sum()):
        yield (
            f"k̂ is high for more than {HIGH_K_SHARE:.0%} of the images, or unknown, in {number} of "
            f"{_count(likelihood['log_likelihood'])} runs: their bounds of log p(x) may be loose"
        )
    if number := int(is_saturated(codes).sum()):
        yield (
            f"I is within {SATURATED} nats of log N in {number} of {_count(codes['mutual_information'])} runs: it is "
            "saturated, and only shows that the encodings of the training images hardly overlap"
        )
    copies = tree["difficulty"].to_dataset().get("copies") if "difficulty" in tree else None
    if copies is not None and (share := float(copies.sel(split="test").max())) > 0:
        yield f"{100 * share:.3g}% of the test images are also training images, so they are not unseen"


def _count(values: xr.DataArray) -> int:
    return int(values.notnull().sum())
