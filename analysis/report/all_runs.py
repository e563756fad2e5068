"""All runs of one study or of several, one row each, whatever their grids are."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd
import xarray as xr

from pyrovae.analysis.report.columns import Column, columns, written
from pyrovae.store import schema
from pyrovae.study import DIMENSIONS, Study

#: Settings that are shown for every run, whether or not the grid has an axis for them.
SHOWN = ("depth", "prior")


@dataclass(frozen=True)
class AllRuns:
    """All runs, one row each.

    Attributes:
        axes: ``study``, the axes of all grids, depth and prior.
        columns: the headline numbers.
        frame: values of these by axis and heading, the marks of their caveats as ``HEADING caveats``, and ``status``.
    """

    axes: list[str]
    columns: list[Column]
    frame: pd.DataFrame

    @cached_property
    def varied(self) -> list[str]:
        """The axes with several values."""
        return [axis for axis in self.axes if self.frame[axis].map(written).nunique() > 1]

    @cached_property
    def caveats(self) -> list[str]:
        """The caveats of headline numbers, each with its symbol."""
        marks = ((column, self.frame[f"{column.heading} caveats"].to_xarray()) for column in self.columns)
        return list(dict.fromkeys(note for column, shown in marks for note in column.notes(shown)))

    def numbers(self, run: Mapping[str, Any]) -> dict[str, str]:
        """The headline numbers of a row as text, by heading."""
        return {
            column.heading: column.written(run[column.heading], marks=run[f"{column.heading} caveats"])
            for column in self.columns
        }


def all_runs(trees: Mapping[str, xr.DataTree]) -> AllRuns:
    """The runs of some studies, by their labels; a study without an axis has the value that all its runs share.

    Example:
        >>> mine = schema.empty(Study(name="mine", beta=[0.1, 1], depth=[1, 3]))
        >>> all_runs({"mine": mine}).varied
        ['beta', 'depth']
    """
    declared = dict.fromkeys(each for tree in trees.values() for each in schema.quantities(tree) if each.headline)
    headlines = columns(declared, {split for tree in trees.values() for split in study_of(tree).splits})
    axes = list(dict.fromkeys([*(str(axis) for tree in trees.values() for axis in tree["runs"].dims), *SHOWN]))
    frames = []
    for name, tree in trees.items():
        frame = _numbers(tree, headlines)
        shared = shared_settings(study_of(tree))
        missing = {axis: shared.get(axis) for axis in axes if axis not in frame}
        frames.append(frame.assign(study=name, **missing))
    return AllRuns(["study", *axes], headlines, pd.concat(frames, ignore_index=True))


def study_of(tree: xr.DataTree) -> Study:
    """The study of some results."""
    return Study.of_yaml(tree.root.attrs["study"])


def shared_settings(study: Study) -> dict[str, Any]:
    """The settings that the runs of a study share, by their names in the results; no β if it moves."""
    shown = () if study.base.pair else study.base.model_dump().items()
    moving = {"beta"} if study.swept == "target_rate" else set()
    return {DIMENSIONS.get(key, key): value for key, value in shown if key not in moving}


def _numbers(tree: xr.DataTree, headlines: list[Column]) -> pd.DataFrame:
    """The headline numbers of every run of a study."""
    numbers = {"status": tree["runs"]["status"].drop_attrs()}
    for column in headlines:
        group, variable = column.quantity.group, column.quantity.variable
        values, marks = xr.DataArray(float("nan")), xr.DataArray("")
        if group in tree.children and variable in tree[group]:
            data = tree[group].to_dataset()
            values, marks = column.values(data).drop_attrs(), column.marks(data, tree["runs"].to_dataset())
        numbers |= {column.heading: values, f"{column.heading} caveats": marks}
    return xr.Dataset(numbers).to_dataframe().reset_index()
