"""Figures of memorisation: reconstructions beside what is remembered. Pure functions."""

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from pyrovae.analysis.prior_figures import strip

#: Most β that are shown: the lowest, the one nearest to 1, and the highest.
_BETAS = 3
#: Rows of a cell, from the top down.
_ROWS = {"reconstruction": "learned", "memorised": "memorising", "nearest": "nearest training"}


def reconstructions(tree: xr.DataTree) -> Figure | None:
    """Test images as the learned and the memorising decoder have them, and the training image nearest to the former.

    A block of columns for each β, of rows for each depth; other axes stand at their first value, the seed too. The test
    images themselves stand at the top. None where there are no such pictures.
    """
    if "reconstructions" not in tree.children:
        return None
    pictures = tree["reconstructions"].to_dataset()
    sides = ("sample", "channel", "row", "column")
    fixed = {str(dim): 0 for dim in pictures["original"].dims if dim not in ("beta", "depth", *sides)}
    pictures = pictures.isel(fixed)
    depths = pictures.depth.values.tolist() if "depth" in pictures.dims else [None]
    betas = _shown(sorted(pictures.beta.values.tolist()))
    rows = 1 + len(_ROWS) * len(depths)
    figure = Figure(figsize=(1.4 + 3.4 * len(betas), 0.5 + 0.5 * rows), layout="constrained")
    axes = figure.subplots(rows, len(betas), squeeze=False)
    for column, beta in enumerate(betas):
        axes[0, column].set_title(f"β = {beta:g}", fontsize=9)
        for number, depth in enumerate(depths):
            cell = pictures.sel({"beta": beta} | ({} if depth is None else {"depth": depth}))
            if number == 0:
                strip(axes[0, column], cell["original"], "test image" if column == 0 else "")
            for at, (name, label) in enumerate(_ROWS.items(), start=1 + number * len(_ROWS)):
                text = label if depth is None else f"{label}, depth {depth}"
                strip(axes[at, column], cell[name], text if column == 0 else "")
    return figure


def _shown(betas: list[float]) -> list[float]:
    if len(betas) <= _BETAS:
        return betas
    middle = min(betas[1:-1], key=lambda beta: abs(np.log(beta)))
    return [betas[0], middle, betas[-1]]
