"""Opening the results of a study."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr

from pyrovae.build import assemble, check_weights, theory
from pyrovae.data import memory
from pyrovae.errors import InputError
from pyrovae.programs.pair import Pair
from pyrovae.store.results import Results
from pyrovae.study import PER_RUN, Run, check_trust


def open_results(folder: str | Path, trust: Collection[str] = (), *, data: Any = None, test: Any = None) -> Results:
    """Opens the results of a study.

    Args:
        folder: the folder of the study, or the name of a study whose results are kept with the package.
        trust: modules whose code may run, where the study names components of its user's own.
        data, test: the data in memory that the study was made with, if they are too large to be kept in its folder;
            only measuring and training need them.

    Raises:
        InputError: the folder holds no study, a file in it is damaged, or ``data`` are not those of the study.

    Example:
        >>> open_results("paper-slice").study.base.width
        512
        >>> open_results("nowhere")
        Traceback (most recent call last):
        pyrovae.errors.InputError: nowhere: expected the folder of a study, but there is no such folder
    """

    def trusted_pair(run: Run, event_shape: torch.Size) -> Pair:
        check_trust(run.model_dump(), trust)
        check_weights(run, event_shape)
        return assemble(run, event_shape)

    results = Results.open(folder, trusted_pair, trust)
    if data is not None and (name := memory.settings_of(data, test)["data"]) != results.study.base.data:
        raise InputError(f"data: expected those of the study, {results.study.base.data}, got others, {name}")
    attach_theory(results)
    return results


def attach_theory(results: Results) -> None:
    """Adds the closed forms of a study, where there are any, over a fine grid of β or of target rates, as "theory"."""
    study = results.study
    axis = study.swept
    points = np.geomspace(min(study.axes[axis]), max(study.axes[axis]), 100)
    pieces = []
    for cohort in study.cohorts():
        curve = [theory(cohort.shared.model_copy(update={axis: float(point)})) for point in points]
        if None in curve:
            return
        names = ("rate", "distortion", "mutual_information", "prior_gap")
        values = {name: (axis, [getattr(optimum, name) for optimum in curve]) for name in names}
        place = {key: [value] for key, value in study.coordinates(cohort.shared).items() if key not in PER_RUN}
        pieces.append(xr.Dataset(values, {axis: points}).expand_dims(place))
    results.tree["theory"] = xr.DataTree(xr.combine_by_coords(pieces))  # type: ignore[arg-type]
