"""All numbers of a study as a table of values, one row for each run."""

from collections.abc import Iterator, Mapping
from itertools import product

import pandas as pd
import xarray as xr

from pyrovae.measures.measure import RESERVED_GROUPS


def frame(tree: xr.DataTree) -> pd.DataFrame:
    """The axes of the grid, status, step and all numbers of every run, with their standard errors.

    A column of numbers is named by group and variable, then by latent site and split where there are several.

    Example:
        >>> from pyrovae import Study
        >>> from pyrovae.store import schema
        >>> mine = frame(schema.empty(Study(name="mine", beta=[0.1, 1])))
        >>> [*mine.columns[:5]], len(mine)
        (['beta', 'seed', 'status', 'step', 'rate_distortion/distortion/train'], 2)
    """
    runs = tree["runs"].to_dataset()
    columns = {"status": runs["status"], "step": runs["step"], **dict(_numbers(tree))}
    axes = list(map(str, runs["status"].dims))
    return xr.Dataset(columns).to_dataframe(axes).reset_index()


def csv(trees: Mapping[str, xr.DataTree]) -> str:
    """The runs of some studies as CSV, with a first column ``study`` of their labels if there are several."""
    frames = {label: frame(tree) for label, tree in trees.items()}
    if len(frames) > 1:
        for label, each in frames.items():
            each.insert(0, "study", label)
    return pd.concat(frames.values()).to_csv(index=False)


def _numbers(tree: xr.DataTree) -> Iterator[tuple[str, xr.DataArray]]:
    """Every number of a run by the name of its column."""
    for group in (name for name in tree.children if name not in RESERVED_GROUPS):
        for name, values in tree[group].data_vars.items():
            dims = [dim for dim in ("level", "split") if dim in values.dims]
            for place in product(*(values[dim].values.tolist() for dim in dims)):
                column = values.sel(dict(zip(dims, place, strict=True)), drop=True)
                yield "/".join([group, str(name), *place]), column
