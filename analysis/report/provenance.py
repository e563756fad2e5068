"""What made the numbers of a study: code, versions, devices, and which runs trained together."""

from collections.abc import Iterator
from math import isnan, prod

import pandas as pd
import xarray as xr
from rich.table import Table

from pyrovae.analysis.report.all_runs import study_of
from pyrovae.analysis.report.columns import written
from pyrovae.store.layout import EVALUATIONS

#: Columns of the table, with the variables of the group "runs" that they show.
FACTS = {
    "trained": "mode",
    "device": "device",
    "threads": "threads",
    "matmul": "matmul",
    "D": "distortion_kind",
    "R": "rate_kind",
    "by": "worker",
    "classes": "classes",
}


def provenance(tree: xr.DataTree) -> list[Table]:
    """What made the numbers of a study and of its later evaluations, by the runs that trained together.

    The key of their cohort, the runs, how and where they were trained, what D and R are, and the process that measured
    them. A change during training is shown with its step. Of kept results, also the command that trains them.
    """
    later = tree.children[EVALUATIONS].children if EVALUATIONS in tree.children else {}
    name = f"provenance of {study_of(tree).name}"
    titles = {name: tree, **{f"{name}, evaluated again with {child}": node for child, node in later.items()}}
    command = tree.attrs.get("command")
    return [_table(title, node["runs"].to_dataset(), command) for title, node in titles.items()]


def _table(title: str, runs: xr.Dataset, command: str | None) -> Table:
    table = Table(title=title, caption=command)
    known = {heading: fact for heading, fact in FACTS.items() if fact in runs and (runs[fact] != "").any()}
    for heading in ("cohort", "runs", *known, "seconds of training", "code and versions"):
        table.add_column(heading)
    for row in _rows(runs, list(known.values())):
        table.add_row(*row)
    return table


def _rows(runs: xr.Dataset, facts: list[str]) -> Iterator[list[str]]:
    axes = list(map(str, runs["cohort"].dims))
    frame = runs.to_dataframe(axes).reset_index()
    for cohort, each in frame[frame["cohort"] != ""].groupby("cohort", sort=False):
        seconds = each["seconds"].max()
        duration = "–" if isnan(seconds) else f"{seconds:.0f}"
        yield [
            str(cohort),
            " and ".join(_places(each[axes])),
            *(_values(each[fact]) for fact in facts),
            duration,
            _values(each["versions"]),
        ]


def _places(runs: pd.DataFrame) -> Iterator[str]:
    """Some runs as products of values of their axes.

    Example:
        >>> list(_places(pd.DataFrame({"beta": [0.1, 0.1, 1.0, 1.0], "seed": [0, 1, 0, 1]})))
        ['beta 0.1, 1; seed 0, 1']
        >>> list(_places(pd.DataFrame({"beta": [0.1, 0.1, 1.0], "seed": [0, 1, 1]})))
        ['beta 0.1; seed 0, 1', 'beta 1; seed 1']
    """
    values = {axis: runs[axis].drop_duplicates() for axis in runs}
    if len(runs) == prod(map(len, values.values())):
        yield "; ".join(f"{axis} {', '.join(map(written, each))}" for axis, each in values.items())
        return
    first = next(axis for axis, each in values.items() if len(each) > 1)
    for _, part in runs.groupby(first, sort=False):
        yield from _places(part)


def _values(column: "pd.Series[str]") -> str:
    return "; ".join(sorted(set(column)))
