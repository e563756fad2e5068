"""What the rate is made of: mutual information and prior gap."""

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.ticker import ScalarFormatter

from pyrovae.analysis.figures.colours import grey
from pyrovae.analysis.figures.style import (
    bars,
    curves,
    label_swept,
    legend,
    mean_over_runs,
    swept,
    theory_curves,
    with_errors,
)
from pyrovae.store.results import Evaluation

#: Symbol, line style and filling of the markers of each variable.
_LOOKS = {"rate": ("R", "-", "full"), "prior_gap": ("G", "--", "none"), "mutual_information": ("I", "-.", "left")}


def information(results: Evaluation, ax: Axes) -> Axes:
    """Rate R, mutual information I and prior gap G of the training set against β, means over seeds, and log N.

    Bars are ± two standard errors over runs. The axis is linear up to 1 nat and logarithmic above.
    """
    data = _training_set(results.tree)
    for name, cell, colour, shape in curves(data):
        for variable, (symbol, line, filling) in _LOOKS.items():
            if cell[variable].notnull().any():
                label = f"{symbol} {name}".strip()
                look: dict[str, Any] = {"color": colour, "linewidth": 1.2, "markersize": 5, "label": label}
                along = cell[swept(cell)]
                ax.plot(along, cell[variable], line + shape, fillstyle=filling, **look)
                bars(ax, along, cell[variable], cell[f"{variable}_bar"], colour)
    if not ax.has_data():
        return ax
    for theory, once in theory_curves(results.tree):
        for variable in _LOOKS:
            ax.plot(theory[swept(theory)], theory[variable], color=grey(0.8), linewidth=0.8, label=once, zorder=1)
            once = None
    for limit in _limits(data):
        ax.axhline(limit, color=grey(0.5), linewidth=0.8, linestyle=":", label=f"log N = {limit:.2f}")
    label_swept(ax, data)
    ax.set_yscale("symlog", linthresh=1)
    ax.yaxis.set_major_formatter(ScalarFormatter())
    ax.set_ylim(bottom=min(0, float(data["prior_gap"].min())))
    ax.set_ylabel("nats per image")
    legend(ax)
    return ax


def saturation(results: Evaluation, ax: Axes) -> Axes:
    """Mutual information I of the training images against their rate R, means over seeds, one point per β.

    Bars are ± two standard errors over runs. On the diagonal, the rate is all information. Where I has reached log N,
    the rest of the rate is prior gap.
    """
    data = _training_set(results.tree)
    for curve in curves(data, "mutual_information"):
        look: dict[str, Any] = {"color": curve.colour, "linewidth": 1.2, "label": curve.name or "I"}
        rate, information = curve.data["rate"], curve.data["mutual_information"]
        ax.plot(rate, information, "-" + curve.shape, **look)
        bars(ax, rate, information, curve.data["mutual_information_bar"], curve.colour, curve.data["rate_bar"])
    if not ax.has_data():
        return ax
    limits = _limits(data)
    for limit in limits:
        ax.axhline(limit, color=grey(0.5), linewidth=0.8, linestyle=":", label=f"log N = {limit:.2f}")
    top = float(max(*limits, data["mutual_information"].max()))
    ax.plot([0, top], [0, top], color=grey(0.3), linewidth=0.8, linestyle="--", label="I = R")
    ax.set_ylim(0, 1.15 * top)
    ax.set_xlabel("rate R of the training images (nats per image)")
    ax.set_ylabel("mutual information I (nats)")
    legend(ax)
    return ax


def population(results: Evaluation, ax: Axes) -> Axes:
    """Between which values I (filled) and G (hatched) of the population lie, with R of validation images and log N.

    Means over seeds. The upper end of I is the rate under a prior fitted to training codes. The lower end is I of the
    validation codes, at most the logarithm of their number. What I leaves of the rate is G.
    """
    if "population" not in results.tree.children:
        return ax
    data = mean_over_runs(results.tree["population"].to_dataset())
    for name, cell, colour, shape in curves(data.sortby(swept(data)), "closable_gap"):
        along, rate = cell[swept(cell)], cell["information_low"] + cell["gap_high"]
        ax.plot(along, rate, "-" + shape, color=colour, linewidth=1.2, label=f"R {name}".strip())
        of_information: dict[str, Any] = {"color": colour, "alpha": 0.35, "label": f"I {name}".strip()}
        ax.fill_between(along, cell["information_low"], cell["information_high"], **of_information)
        of_gap: dict[str, Any] = {
            "facecolor": "none",
            "edgecolor": colour,
            "hatch": "///",
            "label": f"G {name}".strip(),
        }
        ax.fill_between(along, cell["closable_gap"], cell["gap_high"], **of_gap)
    if not ax.has_data():
        return ax
    for limit in _limits(results.tree.root["information"].to_dataset()):
        ax.axhline(limit, color=grey(0.5), linewidth=0.8, linestyle=":", label=f"log N = {limit:.2f}")
    label_swept(ax, data)
    ax.set_ylim(bottom=0)
    ax.set_ylabel("nats per image")
    legend(ax)
    return ax


def _limits(data: xr.Dataset) -> np.ndarray:
    """Every log N."""
    limits = np.unique(data["log_n"].values.round(6))
    return limits[np.isfinite(limits)]


def _training_set(tree: xr.DataTree) -> xr.Dataset:
    """The group ``information`` with the rate of the training images, means over seeds and their errors."""
    rate = tree["rate_distortion"].to_dataset()["rate"].sel(split="train", drop=True)
    return with_errors(tree["information"].to_dataset().assign(rate=rate), list(_LOOKS))
