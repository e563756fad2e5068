"""Columns of tables, as the measures declare them."""

from collections.abc import Collection, Hashable, Iterable, Iterator
from dataclasses import dataclass
from math import isnan
from typing import Any

import numpy as np
import xarray as xr

from pyrovae.analysis.findings.statistics import REPEATED
from pyrovae.measures.measure import Quantity
from pyrovae.study import EVERY_SPLIT

#: Stands for a number that is missing.
MISSING = "–"
#: Numbers beyond this, as of a run that diverged, are shown with three digits.
LARGE = 1e9


@dataclass(frozen=True)
class Column:
    """A quantity in a table, on one split if it has several."""

    heading: str
    quantity: Quantity
    split: str | None = None

    def values(self, data: xr.Dataset) -> xr.DataArray:
        """The values in the group of the quantity."""
        return self._on_split(data[self.quantity.variable])

    def errors(self, data: xr.Dataset) -> xr.DataArray | None:
        """Their standard errors over images; None if it has none."""
        return self._on_split(data[self.quantity.variables[1]]) if self.quantity.has_error else None

    def marks(self, data: xr.Dataset, runs: xr.Dataset, over: Iterable[Hashable] = ()) -> xr.DataArray:
        """The symbols of the caveats that apply, to some run along the dimensions ``over``.

        Args:
            data: the group of the quantity.
            runs: the group ``runs`` of the same results.
        """
        marks = xr.DataArray("").astype(object)
        for caveat in self.quantity.caveats:
            holds = caveat.holds(data, runs)
            found = holds.any([dim for dim in over if dim in holds.dims])
            marks = marks + xr.where(found, caveat.symbol, "").astype(object)
        return marks

    def notes(self, marks: xr.DataArray) -> list[str]:
        """The caveats that some mark names."""
        shown = "".join(marks.values.flat)
        return [f"{caveat.symbol} {caveat.text}" for caveat in self.quantity.caveats if caveat.symbol in shown]

    def written(self, value: float, error: float | None = None, marks: str = "") -> str:
        """A value with its standard error and the symbols of its caveats."""
        if isnan(value):
            return MISSING
        form = self.quantity.format
        text = _written(value, form)
        if error is not None:
            text += f" ± {_written(error, '.1g' if form.endswith('g') else form)}"
        return text + marks

    def _on_split(self, values: xr.DataArray) -> xr.DataArray:
        return values if self.split is None else values.reindex(split=[self.split]).squeeze("split", drop=True)


def columns(quantities: Iterable[Quantity], splits: Collection[str] = EVERY_SPLIT) -> list[Column]:
    """The columns of the quantities that have a heading, for some splits.

    Example:
        >>> distortion = Quantity("distortion", "distortion D", unit="nats", dims=("split",), heading="D {split}")
        >>> [column.heading for column in columns([distortion], ["train", "test"])]
        ['D train', 'D test']
    """
    found = (column for quantity in quantities if quantity.heading for column in _columns(quantity))
    return [column for column in found if column.split is None or column.split in splits]


def axes(data: xr.Dataset) -> list[str]:
    """What tells the rows of a table apart: other axes, then β or its target rates, the measurement and the site."""
    last = [dim for dim in ("beta", "target_rate", "measured", "level") if dim in data.dims]
    return [*(str(dim) for dim in data.dims if dim not in ("split", *REPEATED, *last)), *last]


def written(value: Any) -> str:
    """A value of an axis as it is written."""
    if isinstance(value, float):
        return MISSING if np.isnan(value) else f"{value:g}"
    return MISSING if value is None else str(value)


def _columns(quantity: Quantity) -> Iterator[Column]:
    if "split" not in quantity.dims:
        yield Column(quantity.heading, quantity)
        return
    for split in EVERY_SPLIT if "{split}" in quantity.heading else ("test",):
        yield Column(quantity.heading.format(split=split), quantity, split)


def _written(value: float, form: str) -> str:
    """A number in a format, without a negative zero.

    Example:
        >>> _written(-0.001, ".2f"), _written(-0.001, ".0%"), _written(3, ",.0f"), _written(1e9, ".2f")
        ('0.00', '0%', '3', '1e+09')
    """
    return format(float(value), f"z{form if abs(value) < LARGE else '.3g'}")
