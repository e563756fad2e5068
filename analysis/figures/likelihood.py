"""Figures of the log-likelihood: bounds of log p(x), and how far they can be trusted."""

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from pyrovae.analysis.figures.style import curves, legend
from pyrovae.analysis.findings.statistics import is_loose

#: k̂ below this is drawn here, as any such weights can be trusted.
LOWEST = -0.5
#: How far apart the curves stand at a β, in factors of β.
_APART = 1.08


def log_likelihood(tree: xr.DataTree, ax: Axes) -> Axes:
    """Bounds of log p(x) of the test images against β, means over seeds.

    The importance-weighted bound is solid; where k̂ is high for many images, so that it may be loose by far, it is
    dotted and its markers are open. The bound by annealing, on the same images, is dashed.
    """
    found = tree["likelihood"].to_dataset().sortby("beta")
    data = found.mean("seed", skipna=True).assign(loose=is_loose(found).any("seed"))
    for name, cell, colour, shape in curves(data, "log_likelihood"):
        bound, doubtful = cell["log_likelihood"], cell["loose"].values
        look: dict[str, Any] = {"color": colour, "linewidth": 1.2}
        reliable = bound.where(~doubtful)
        ax.plot(cell.beta, bound, ":" + shape, markerfacecolor="white", label=name if doubtful.all() else None, **look)
        ax.plot(cell.beta, reliable, "-" + shape, label=None if doubtful.all() else name, **look)
        if cell["annealed_log_likelihood"].notnull().any():
            ax.plot(cell.beta, cell["annealed_log_likelihood"], "--x", label=f"{name} annealed".strip(), **look)
    if not ax.has_data():
        return ax
    if data["loose"].any():
        ax.plot([], [], ":o", color="0.3", markerfacecolor="white", label="k̂ high: may be loose by far")
    ax.set_xscale("log")
    ax.set_xlabel("β")
    ax.set_ylabel("bound of log p(x) (nats per test image)")
    ax.ticklabel_format(axis="y", useOffset=False)
    legend(ax)
    return ax


def pareto_k(tree: xr.DataTree, ax: Axes) -> Axes:
    """Pareto k̂ of the importance weights of test images against β: median, 10th and 90th percentile.

    These are over images and seeds. Above the dotted line the mean of so many weights is not to be trusted, and the
    bound of log p(x) may be loose by far.
    """
    if "images" not in tree.children or tree["images/pareto_k"].isnull().all():
        return ax
    found = tree["images"]["pareto_k"].sel(split="test", drop=True).sortby("beta")
    over_images = found.clip(min=LOWEST).quantile([0.1, 0.5, 0.9], ["seed", "image"])
    sides = {name: over_images.isel(quantile=row, drop=True) for row, name in enumerate(("low", "median", "high"))}
    drawn = list(curves(xr.Dataset(sides), "median"))
    for number, (name, cell, colour, shape) in enumerate(drawn):
        low, median, high = (cell[side].values for side in sides)
        beta = cell.beta.values * _APART ** (number - (len(drawn) - 1) / 2)
        bars = np.stack([median - low, high - median])
        look: dict[str, Any] = {"color": colour, "elinewidth": 0.8, "capsize": 2, "label": name or None}
        ax.errorbar(beta, median, bars, fmt=shape, **look)
    if (threshold := found.attrs.get("threshold")) is not None:
        ax.axhline(
            threshold, color="0.5", linewidth=0.8, linestyle=":", label=f"not to be trusted above {threshold:.2f}"
        )
    ax.set_xscale("log")
    ax.set_xlabel("β")
    ax.set_ylabel("Pareto k̂")
    legend(ax)
    return ax
