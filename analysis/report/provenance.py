"""What made the numbers of a study: code, versions, devices and cohorts."""

from collections.abc import Iterator
from math import isnan

import pandas as pd
import xarray as xr
from rich.table import Table

from pyrovae.analysis.report.all_runs import study_of
from pyrovae.analysis.report.columns import written

#: Columns of the table, with the variables of the group "runs" that they show.
FACTS = {
    "trained": "mode",
    "device": "device",
    "threads": "threads",
    "D": "distortion_kind",
    "R": "rate_kind",
    "by": "worker",
}


def provenance(tree: xr.DataTree) -> list[Table]:
    """What made the numbers of a study and of its later evaluations, by cohort.

    The runs of each cohort, how and where they were trained, what D and R are, and the process that measured them. A
    change during training is shown with its step.
    """
    return [_table(tree, name) for name in ("", *later(tree))]


def later(tree: xr.DataTree) -> list[str]:
    """The later evaluations of a study, in their order."""
    found = [child for child in tree.children if child.startswith("evaluation_")]
    return sorted(found, key=lambda child: int(child.rsplit("_", 1)[1]))


def _table(tree: xr.DataTree, name: str) -> Table:
    table = Table(title=f"provenance of {study_of(tree).name}{f', evaluated again as {name}' if name else ''}")
    for heading in ("cohort", "runs", *FACTS, "seconds of training", "code and versions"):
        table.add_column(heading)
    for row in _rows((tree[name] if name else tree)["runs"].to_dataset(), list(map(str, tree["runs"].dims))):
        table.add_row(*row)
    return table


def _rows(runs: xr.Dataset, axes: list[str]) -> Iterator[list[str]]:
    frame = runs.to_dataframe().reset_index()
    for cohort, each in frame[frame["cohort"] != ""].groupby("cohort"):
        place = "; ".join(f"{axis} {', '.join(dict.fromkeys(map(written, each[axis])))}" for axis in axes)
        seconds = each["seconds"].max()
        duration = "–" if isnan(seconds) else f"{seconds:.0f}"
        yield [
            str(cohort),
            place,
            *(_values(each[fact]) for fact in FACTS.values()),
            duration,
            _values(each["versions"]),
        ]


def _values(column: "pd.Series[str]") -> str:
    return "; ".join(sorted(set(column)))
