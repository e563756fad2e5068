"""All runs of one study or of several, one row each, whatever their grids are."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
import yaml

from pyrovae.analysis.findings.statistics import is_loose
from pyrovae.study.grid import DIMENSIONS, Study

#: Settings that are told of every run, whether the grid runs over them or not.
TOLD = ("depth", "prior")


@dataclass(frozen=True)
class AllRuns:
    """All runs, one row each.

    Attributes:
        axes: what tells them apart, and what is told of all: ``study``, the axes of all grids, depth and prior.
        frame: these, and by the names of `NUMBERS` what was measured, with ``loose``, whether the bound of log p(x) may
            be loose by far, and ``status``.
    """

    axes: list[str]
    frame: pd.DataFrame

    @cached_property
    def varied(self) -> list[str]:
        """The axes along which there are several values."""
        return [axis for axis in self.axes if self.frame[axis].map(written).nunique() > 1]


#: What was measured of a run, as tables and pages head it.
NUMBERS = ("D train", "D test", "R train", "R test", "I", "G", "−ELBO test", "bound of log p(x)")


def all_runs(trees: Mapping[str, xr.DataTree]) -> AllRuns:
    """The runs of some studies, by what to call each; an axis that one of them lacks has the value that its runs share.

    Example:
        >>> from pyrovae import Study
        >>> from pyrovae.store import schema
        >>> mine = schema.empty(Study.of(name="mine", beta=[0.1, 1], depth=[1, 3]))
        >>> all_runs({"mine": mine}).varied
        ['beta', 'depth']
    """
    axes = list(dict.fromkeys([*(str(axis) for tree in trees.values() for axis in tree["runs"].dims), *TOLD]))
    frames = []
    for name, tree in trees.items():
        frame = _numbers(tree)
        base = study_of(tree).base
        shared = {} if base.pair else {DIMENSIONS.get(key, key): value for key, value in base.model_dump().items()}
        for axis in axes:
            if axis not in frame:
                frame[axis] = shared.get(axis)
        frames.append(frame.assign(study=name))
    return AllRuns(["study", *axes], pd.concat(frames, ignore_index=True))


def study_of(tree: xr.DataTree) -> Study:
    """The study that results are of."""
    return Study.of(**yaml.safe_load(tree.root.attrs["study"]))


def written(value: Any) -> str:
    """A value of an axis as it is written."""
    if isinstance(value, float):
        return "–" if np.isnan(value) else f"{value:g}"
    return "–" if value is None else str(value)


def _numbers(tree: xr.DataTree) -> pd.DataFrame:
    """The numbers of every run of a study."""
    cells, codes = tree["rate_distortion"].to_dataset(), tree["information"].to_dataset()
    likelihood = tree["likelihood"].to_dataset()
    sides = {
        f"{symbol} {split}": cells[name].sel(split=split, drop=True)
        for name, symbol in (("distortion", "D"), ("rate", "R"))
        for split in ("train", "test")
    }
    numbers = sides | {
        "I": codes["mutual_information"],
        "G": codes["prior_gap"],
        "−ELBO test": -cells["elbo"].sel(split="test", drop=True),
        "bound of log p(x)": likelihood["log_likelihood"],
        "loose": is_loose(likelihood),
        "status": tree["runs"]["status"],
    }
    return xr.Dataset({name: each.drop_attrs() for name, each in numbers.items()}).to_dataframe().reset_index()
