"""Distortion in the rate–distortion plane and against β, on train and test."""

from itertools import product
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import Bbox

from pyrovae.analysis.figures.style import curves, draw_floor, legend, theory_curves

#: With more labels of β than this, none are drawn.
MAX_LABELS = 60
#: Line style of either split, and whether its markers are filled.
_SPLITS = {"train": ("--", False), "test": ("-", True)}


def rate_distortion(tree: xr.DataTree, ax: Axes) -> Axes:
    """The rate–distortion plane: train (open, dashed) and test (filled, solid), β = 1 as a star, means over seeds.

    Lines of constant R + D (the negative ELBO) and the floor are in the background; test points are labelled with β.
    """
    data = tree["rate_distortion"].to_dataset().mean("seed", skipna=True).sortby("beta")
    points: list[tuple[float, float]] = []
    labels: list[tuple[float, float, str, str]] = []
    for name, cell, colour, shape in curves(data):
        for split, (line, filled) in _SPLITS.items():
            rate, distortion = (cell[each].sel(split=split).values for each in ("rate", "distortion"))
            look: dict[str, Any] = {"color": colour, "markerfacecolor": colour if filled else "white"}
            star = cell.beta.values == 1
            marked = (~star).nonzero()[0].tolist()
            label = f"{name} {split}".strip()
            ax.plot(rate, distortion, line + shape, markevery=marked, linewidth=1.2, label=label, **look)
            ax.plot(rate[star], distortion[star], "*", markersize=12, zorder=3, **look)
            for r, d, beta in zip(rate, distortion, cell.beta.values, strict=True):
                if np.isfinite(r + d):
                    points.append((r, d))
                    labels += [(r, d, f"{beta:g}", colour)] if split == "test" else []
    if not ax.has_data():
        return ax
    ax.set_xlabel("rate R (nats per image)")
    ax.set_ylabel("distortion D (nats per image)")
    draw_floor(ax, data)
    for theory, label in theory_curves(tree):
        ax.plot(theory["rate"], theory["distortion"], color="0.2", linewidth=0.8, label=label, zorder=1)
    ax.margins(0.08)
    _lines_of_constant_sum(ax)
    ax.plot([], [], "*", markersize=9, color="0.3", label="β = 1")
    legend(ax)
    if len(labels) <= MAX_LABELS:
        _place_labels(ax, labels, points)
    return ax


def distortion(tree: xr.DataTree, ax: Axes) -> Axes:
    """D on train (open, dashed) and test (filled, solid) against β, means over seeds."""
    data = tree["rate_distortion"].to_dataset().mean("seed", skipna=True).sortby("beta")
    for name, cell, colour, shape in curves(data):
        for split, (line, filled) in _SPLITS.items():
            look: dict[str, Any] = {"color": colour, "markerfacecolor": colour if filled else "white"}
            values = cell["distortion"].sel(split=split)
            ax.plot(cell.beta, values, line + shape, linewidth=1.2, label=f"{name} {split}".strip(), **look)
    if not ax.has_data():
        return ax
    for theory, label in theory_curves(tree):
        ax.plot(theory.beta, theory["distortion"], color="0.2", linewidth=0.8, label=label, zorder=1)
    draw_floor(ax, data)
    ax.set_xscale("log")
    ax.set_xlabel("β")
    ax.set_ylabel("distortion D (nats per image)")
    legend(ax)
    return ax


def _lines_of_constant_sum(ax: Axes) -> None:
    (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
    for total in MaxNLocator(8).tick_values(left + bottom, right + top):
        ax.plot([left, right], [total - left, total - right], color="0.88", linewidth=0.7, zorder=0)
    ax.plot([], [], color="0.88", linewidth=0.7, label="R + D constant")
    ax.set_xlim(left, right)
    ax.set_ylim(bottom, top)


def _place_labels(ax: Axes, labels: list[tuple[float, float, str, str]], points: list[tuple[float, float]]) -> None:
    """Puts each label of β at the closest position that overlaps no point, label or legend."""
    figure: Any = ax.figure
    figure.draw_without_rendering()
    pixels = figure.dpi / 72
    taken = [Bbox(np.array([-5, 5])[:, None] * pixels + point) for point in ax.transData.transform(points)]
    if legend := ax.get_legend():
        taken.append(legend.get_window_extent())
    for r, d, text, colour in labels:
        style: dict[str, Any] = {"xy": (r, d), "textcoords": "offset points", "color": colour}
        for radius, angle in product(range(10, 120, 5), range(45, 405, 15)):
            offset = (radius * np.cos(np.deg2rad(angle)), radius * np.sin(np.deg2rad(angle)))
            label = ax.annotate(text, xytext=offset, ha="center", va="center", fontsize=7.5, **style)
            box = label.get_window_extent().padded(pixels)
            inside = ax.bbox.containsx(box.x0) and ax.bbox.containsx(box.x1) and ax.bbox.containsy(box.y1)
            if inside and not any(box.overlaps(other) for other in taken):
                taken.append(box)
                break
            label.remove()
        if radius > 15:
            leader = {"arrowstyle": "-", "color": colour, "linewidth": 0.4, "shrinkA": 4, "shrinkB": 3}
            ax.annotate("", xytext=offset, arrowprops=leader, **style)
