"""The numbers and verdicts of a study as tables and lines of text."""

from collections.abc import Hashable, Iterable, Sequence
from itertools import product, repeat
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from rich.table import Table

from pyrovae.analysis.findings.statistics import error_of_mean, repeated
from pyrovae.analysis.findings.verdicts import Verdict
from pyrovae.analysis.report.columns import MISSING, Column, axes, columns, written
from pyrovae.store import schema

if TYPE_CHECKING:
    from pyrovae.analysis.diagnosis.diagnose import Diagnosis


def measured(tree: xr.DataTree) -> dict[str, Table]:
    """By group, the table of its declared numbers, with means over seeds, without empty columns and tables.

    Example:
        >>> from pyrovae import Study
        >>> measured(schema.empty(Study(name="mine")))
        {}
    """
    declared = schema.quantities(tree)
    tables = {
        group: _table(group, tree, columns(each for each in declared if each.group == group))
        for group in dict.fromkeys(quantity.group for quantity in declared)
    }
    return {group: table for group, table in tables.items() if table is not None}


def plane(tree: xr.DataTree) -> Table | None:
    """Distortion and rate alone, on train and test; None if there are none."""
    declared = (each for each in schema.quantities(tree) if each.group == "rate_distortion" and each.headline)
    return _table("rate_distortion", tree, columns(declared))


def with_columns(title: str, headings: Iterable[str], rows: Iterable[Sequence[str]], keys: int = 0) -> Table:
    """A table of text; the first ``keys`` columns name its rows."""
    table = Table(title=title)
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="left" if number < keys else "right")
    for row in rows:
        table.add_row(*row)
    return table


def diagnosis(found: "Diagnosis") -> Table:
    """A guide compared with the exact posterior of each image.

    Chains: the largest R̂ and the smallest effective sample size over latents, and divergences. Guide: k̂ of its
    weights; over latents, the largest difference of the means in standard deviations of the posterior, and the range of
    the ratio of the standard deviations; log p(x), the ELBO, and both parts of the gap between them.
    """
    title = "q(z|x) compared with the exact posterior p(z|x), in nats unless stated otherwise"
    weights = {symbol: found.summary.attrs.get(name) for name, symbol in (("beta", "β"), ("gamma", "γ"))}
    others = [f"{symbol} = {weight:g}" for symbol, weight in weights.items() if weight not in (None, 1)]
    if others:
        title += f"\nthe guide was trained at {', '.join(others)}, for another optimal q: amortisation includes this"
    summary = found.summary
    rows = [_diagnosed(summary.sel(image=image)) for image in summary["image"].values]
    return with_columns(title, rows[0] if rows else [], [list(row.values()) for row in rows], keys=1)


def verdicts(found: Sequence[Verdict]) -> list[str]:
    """One line for each verdict, and one on how they are made."""
    return [*map(str, found), *joint(found)]


def joint(found: Sequence[Verdict]) -> list[str]:
    """How verdicts are made, on one line, if there are any."""
    tests = max((verdict.tests for verdict in found), default=0)
    line = (
        f"Verdicts hold jointly at 95% over {tests} comparisons (Holm's method); each interval is one of 95% by itself."
    )
    return [line] if tests else []


def _table(group: str, tree: xr.DataTree, found: list[Column]) -> Table | None:
    """The table of a group, with a row for each cell of the grid that has numbers."""
    data, runs = tree[group].to_dataset(), tree["runs"].to_dataset()
    found = [column for column in found if column.values(data).notnull().any()]
    if not found or data.sizes.get("level", 2) < 2:
        return None
    rows = _varied(data, found)
    over = [dim for dim in data.dims if dim not in (*rows, "split")]
    marks = {column.heading: column.marks(data, runs, over) for column in found}
    frame = xr.DataArray(0.0, {axis: data[axis] for axis in rows}, rows)
    texts = [_texts(column, data, marks[column.heading], over, frame) for column in found]
    places = product(*(data[axis].values.tolist() for axis in rows))
    cells = [
        [*map(written, place), *cell]
        for place, *cell in zip(places, *texts, strict=True)
        if any(text != MISSING for text in cell)
    ]
    headings = [*rows, *(column.heading for column in found)]
    title = _title(group, found, marks, data) + (_kinds(tree) if group == "rate_distortion" else "")
    return with_columns(title, headings, cells, keys=len(rows))


def _texts(
    column: Column, data: xr.Dataset, marks: xr.DataArray, over: list[Hashable], frame: xr.DataArray
) -> list[str]:
    """The cells of a column, means over runs with their standard errors."""
    values, errors = column.values(data), column.errors(data)
    runs = repeated(values)
    mean = values.mean(runs)
    flat: list[Iterable[Any]] = [_flat(mean, frame), repeat(None), _flat(marks, frame)]
    if errors is not None:
        flat[1] = _flat(error_of_mean(values, errors), frame)
    numbers = _flat(_fewer_runs(values), frame)
    return [
        column.written(*cell) + (f" ({number:.0f})" if number else "")
        for number, *cell in zip(numbers, *flat, strict=False)
    ]


def _fewer_runs(values: xr.DataArray) -> xr.DataArray:
    """The number of runs in a mean that is over fewer runs than others, otherwise 0."""
    number = values.notnull().sum(repeated(values))
    return number.where(number < number.max(), 0)


def _flat(values: xr.DataArray, frame: xr.DataArray) -> NDArray[Any]:
    """Values by row; along axes that are no part of a row, all are the same or missing."""
    constant = [str(dim) for dim in values.dims if dim not in frame.dims]
    return values.max(constant).broadcast_like(frame).transpose(*frame.dims).values.ravel()


def _varied(data: xr.Dataset, found: list[Column]) -> list[str]:
    """The axes of a table, without those of the grid along which no number differs, as for the sizes of splits."""
    return [
        axis
        for axis in axes(data)
        if axis == "measured" or data.sizes[axis] == 1 or not _is_constant(data, found, axis)
    ]


def _is_constant(data: xr.Dataset, found: list[Column], axis: str) -> bool:
    values = [column.values(data) for column in found]
    compared = any((each.notnull().sum(axis) > 1).any() for each in values)
    return compared and all(
        bool((np.isclose(each.max(axis), each.min(axis), rtol=1e-9) | each.isnull().all(axis)).all()) for each in values
    )


def _title(group: str, found: list[Column], marks: dict[str, xr.DataArray], data: xr.Dataset) -> str:
    units = [column.quantity.unit for column in found if column.quantity.unit != "1"]
    several = any(data.sizes[dim] > 1 for dim in repeated(data))
    errors = ["± standard error over images" + " and runs" * several] * any(each.quantity.has_error for each in found)
    notes = dict.fromkeys(note for column in found for note in column.notes(marks[column.heading]))
    fewer = any(_fewer_runs(column.values(data)).any() for column in found)
    means = "means over runs" + ", over n only where (n) stands" * fewer
    described = ", ".join([*dict.fromkeys(units), *errors, *[means] * several])
    name = group.replace("_", " ")
    return "; ".join([f"{name}: {described}" if described else name, *notes])


def _kinds(tree: xr.DataTree) -> str:
    """What D and R are, where D is not a negative log-likelihood or R not in closed form."""
    runs = tree["runs"].to_dataset()
    kinds = {name: set(runs[name].to_series().dropna()) - {""} for name in ("distortion_kind", "rate_kind")}
    known = [
        f"; {symbol} {'is' if kinds[name] == {kind} else 'is in part'} {text}"
        for symbol, name, kind, text in (
            ("D", "distortion_kind", "cross-entropy", "a cross-entropy, because pixels are grey"),
            ("D", "distortion_kind", "negative log-probability given the offset", "given the offset of each item"),
            ("R", "rate_kind", "Monte Carlo", "Monte Carlo"),
        )
        if kind in kinds[name]
    ]
    return "".join(known)


def _diagnosed(cell: xr.Dataset) -> dict[str, str]:
    """The row of one image, by heading."""
    gaps = {name: f"{cell[name]:.1f} ± {cell[f'{name}_se']:.1f}" for name in ("approximation", "amortisation")}
    return {
        "image": str(cell["image"].item()),
        "R̂": f"{cell['rhat'].max():.2f}",
        "effective draws": f"{cell['ess'].min():.0f}",
        "divergences": f"{cell['diverging']:.0f}",
        "k̂": f"{cell['pareto_k']:.2f}",
        "means differ by": f"{abs(cell['shift']).max():.1f} σ(p)",
        "σ(q) / σ(p)": f"{cell['scale'].min():.2f} to {cell['scale'].max():.2f}",
        "log p(x)": f"{cell['log_likelihood']:.1f}",
        "ELBO": f"{cell['elbo']:.1f}",
        **gaps,
    }
