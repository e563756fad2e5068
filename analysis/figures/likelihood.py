"""Figures of the log-likelihood: bounds of log p(x), and their reliability."""

import warnings
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from pyrovae.analysis.figures.colours import grey
from pyrovae.analysis.figures.style import bars, curves, label_swept, legend, swept, with_errors
from pyrovae.analysis.findings.statistics import repeated
from pyrovae.measures.likelihood import is_loose
from pyrovae.store.results import Evaluation

#: k̂ below this is drawn here, because all such weights are reliable.
MIN_K = -0.5
#: Horizontal distance between the curves, as a factor of β.
_OFFSET = 1.08


def log_likelihood(results: Evaluation, ax: Axes) -> Axes:
    """Bounds of log p(x) of the test images against β, means over seeds.

    The importance-weighted bound is solid, with bars of ± two standard errors over runs. Where k̂ is high for many
    images, so that the bound may be loose, it is dotted with open markers. The bound from annealing, on the same
    images, is dashed.
    """
    runs = results.tree["likelihood"].to_dataset()
    data = with_errors(runs, ["log_likelihood"]).assign(loose=is_loose(runs).any(repeated(runs)))
    for name, cell, colour, shape in curves(data, "log_likelihood"):
        bound, loose = cell["log_likelihood"], cell["loose"].values
        look: dict[str, Any] = {"color": colour, "linewidth": 1.2}
        along, reliable = cell[swept(cell)], bound.where(~loose)
        ax.plot(along, bound, ":" + shape, markerfacecolor=grey(0), label=name if loose.all() else None, **look)
        ax.plot(along, reliable, "-" + shape, label=None if loose.all() else name, **look)
        bars(ax, along, bound, cell["log_likelihood_bar"], colour)
        if cell["annealed_log_likelihood"].notnull().any():
            ax.plot(along, cell["annealed_log_likelihood"], "--x", label=f"{name} annealed".strip(), **look)
    if not ax.has_data():
        return ax
    if data["loose"].any():
        ax.plot([], [], ":o", color=grey(0.7), markerfacecolor=grey(0), label="k̂ high: may be loose")
    label_swept(ax, data)
    ax.set_ylabel("bound of log p(x) (nats per image)")
    ax.ticklabel_format(axis="y", useOffset=False)
    legend(ax)
    return ax


def pareto_k(results: Evaluation, ax: Axes) -> Axes:
    """Pareto k̂ of the importance weights of test images against β: median, 10th and 90th percentile.

    Percentiles are over images and seeds. Above the dotted line, the mean of this many weights is unreliable, and the
    bound of log p(x) may be loose.
    """
    images = results.images()
    if "pareto_k" not in images or images["pareto_k"].isnull().all():
        return ax
    pareto_k = images["pareto_k"].sel(split="test", drop=True)
    pareto_k = pareto_k.sortby(swept(pareto_k))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of settings without a finished run
        pooled = pareto_k.clip(min=MIN_K).quantile([0.1, 0.5, 0.9], [*repeated(pareto_k), "image"])
    quantiles = {name: pooled.isel(quantile=row, drop=True) for row, name in enumerate(("low", "median", "high"))}
    drawn = list(curves(xr.Dataset(quantiles), "median"))
    for number, (name, cell, colour, shape) in enumerate(drawn):
        low, median, high = (cell[quantile].values for quantile in quantiles)
        along = cell[swept(cell)].values * _OFFSET ** (number - (len(drawn) - 1) / 2)
        bars = np.stack([median - low, high - median])
        look: dict[str, Any] = {"color": colour, "elinewidth": 0.8, "capsize": 2, "label": name or None}
        ax.errorbar(along, median, bars, fmt=shape, **look)
    if (threshold := pareto_k.attrs.get("threshold")) is not None:
        ax.axhline(threshold, color=grey(0.5), linewidth=0.8, linestyle=":", label=f"unreliable above {threshold:.2f}")
    label_swept(ax, pooled.to_dataset(name="pareto_k"))
    ax.set_ylabel("Pareto k̂")
    legend(ax)
    return ax
