"""Distortion in the rate–distortion plane, against β, and against the prior gap."""

from collections.abc import Iterable, Iterator
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, StrMethodFormatter
from matplotlib.transforms import Bbox
from numpy.typing import ArrayLike

from pyrovae.analysis.figures.colours import Colour, grey, readable
from pyrovae.analysis.figures.style import (
    Curve,
    bars,
    curves,
    draw_floor,
    label_swept,
    legend,
    swept,
    theory_curves,
    titled,
    with_errors,
)
from pyrovae.analysis.findings.statistics import repeated
from pyrovae.measures.information import is_saturated
from pyrovae.store.results import Evaluation

#: With more labels of β than this, none are drawn.
MAX_LABELS = 60
#: A rate is one of most rates up to this times the median, and far above them from the square of this times the median.
FAR = 4.0
#: Line style of each split, and whether its markers are filled.
_SPLITS = {"train": ("--", False), "validation": (":", False), "test": ("-", True)}


class Point(NamedTuple):
    """A point of the plane with its label."""

    position: tuple[float, float]
    label: str
    colour: Colour


def rate_distortion(results: Evaluation, ax: Axes) -> Axes:
    """The rate–distortion plane: train (open, dashed) and test (filled, solid), β = 1 as a star, means over seeds.

    Validation images, if there are any, are open and dotted. Bars are ± two standard errors over runs. Lines of
    constant R + D (the negative ELBO) and the floor are in the background; test points are labelled with β or their
    target rate. If some rates are far above the others, the axis is logarithmic there.
    """
    data = with_errors(results.tree["rate_distortion"].to_dataset(), ["distortion", "rate"])
    for curve in curves(data):
        for split in (each for each in _SPLITS if each in data.split):
            _draw_in_plane(curve, split, ax)
    if not ax.has_data():
        return ax
    linear_to = _scale_of_rates(ax, data["rate"].values)
    ax.set_ylabel("distortion D (nats per image)")
    draw_floor(ax, data)
    for theory, label in theory_curves(results.tree):
        ax.plot(theory["rate"], theory["distortion"], color=grey(0.8), linewidth=0.8, label=label, zorder=1)
    ax.margins(0.08)
    _lines_of_constant_sum(ax, linear_to)
    if swept(data) == "beta":
        ax.plot([], [], "*", markersize=9, color=grey(0.7), label="β = 1")
    legend(ax)
    train, test = (list(_points(curves(data), split)) for split in ("train", "test"))
    if len(test) <= MAX_LABELS:
        _place_labels(ax, test, obstacles=np.array([point.position for point in (*test, *train)]))
    return ax


def distortion(results: Evaluation, ax: Axes) -> Axes:
    """D on train (open, dashed) and test (filled, solid) against β, means over seeds.

    Validation images, if there are any, are open and dotted. Bars are ± two standard errors over runs.
    """
    data = with_errors(results.tree["rate_distortion"].to_dataset(), ["distortion", "rate"])
    for name, cell, colour, shape in curves(data):
        for split in (each for each in _SPLITS if each in data.split):
            line, filled = _SPLITS[split]
            look: dict[str, Any] = {"color": colour, "markerfacecolor": colour if filled else grey(0)}
            values = cell["distortion"].sel(split=split)
            along = cell[swept(cell)]
            ax.plot(along, values, line + shape, linewidth=1.2, label=f"{name} {split}".strip(), **look)
            bars(ax, along, values, cell["distortion_bar"].sel(split=split), colour)
    if not ax.has_data():
        return ax
    for theory, label in theory_curves(results.tree):
        ax.plot(theory[swept(theory)], theory["distortion"], color=grey(0.8), linewidth=0.8, label=label, zorder=1)
    draw_floor(ax, data)
    label_swept(ax, data)
    ax.set_ylabel("distortion D (nats per image)")
    legend(ax)
    return ax


def distortion_over_gap(results: Evaluation, ax: Axes) -> Axes:
    """Test distortion against the prior gap G of the training images, where I has reached log N; means over seeds.

    Labels are β, target rates in its place, or γ if it varies. Bars are ± two standard errors over runs. I is equal in
    all of these settings, so that a curve which falls shows distortion falling as G grows. Nothing is drawn if there
    are fewer than two, or if I is below log N in one run of each.
    """
    data = _at_saturation(results.tree)
    along = "gamma" if data.sizes.get("gamma", 1) > 1 else swept(data)
    drawn = list(curves(data.sortby(along), "prior_gap", along))
    points = list(_points(drawn, "test", "prior_gap", along))
    if len(points) < 2:
        return ax
    on_bars: list[np.ndarray] = []
    for curve in drawn:
        cell = curve.data.sel(split="test").dropna(along, subset=["prior_gap", "distortion"])
        gap, distortion = cell["prior_gap"].values, cell["distortion"].values
        ax.plot(gap, distortion, "-" + curve.shape, color=curve.colour, linewidth=1.2, label=curve.name)
        bars(ax, gap, distortion, cell["distortion_bar"], curve.colour, cell["prior_gap_bar"])
        of_gap, of_distortion = (cell[f"{name}_bar"].fillna(0).values for name in ("prior_gap", "distortion"))
        for share in np.linspace(-1, 1, 9):
            on_bars.append(np.stack([gap, distortion + share * of_distortion], axis=1))
            on_bars.append(np.stack([gap + share * of_gap, distortion], axis=1))
    ax.set_xlabel("prior gap G (nats), with I at log N")
    ax.set_ylabel("test distortion D (nats per image)")
    ax.margins(0.08)
    if len(drawn) > 1:
        legend(ax)
    if len({point.label for point in points}) > 1:
        _place_labels(ax, points, obstacles=np.concatenate(on_bars))
    else:
        ax.set_title(titled(along, float(points[0].label)))
    return ax


def _at_saturation(tree: xr.DataTree) -> xr.Dataset:
    """Means and errors of D and G; G is missing where I of a run is below log N."""
    data = tree["information"].to_dataset().assign(distortion=tree["rate_distortion"]["distortion"])
    means = with_errors(data, ["prior_gap", "distortion"])
    return means.assign(prior_gap=means["prior_gap"].where(is_saturated(data).all(repeated(data["prior_gap"]))))


def _draw_in_plane(curve: Curve, split: str, ax: Axes) -> None:
    """A curve on one split, with a star at β = 1."""
    line, filled = _SPLITS[split]
    rate, distortion = (curve.data[each].sel(split=split).values for each in ("rate", "distortion"))
    look: dict[str, Any] = {"color": curve.colour, "markerfacecolor": curve.colour if filled else grey(0)}
    along = swept(curve.data)
    star = (curve.data[along].values == 1) & (along == "beta")
    marked = (~star).nonzero()[0].tolist()
    label = f"{curve.name} {split}".strip()
    ax.plot(rate, distortion, line + curve.shape, markevery=marked, linewidth=1.2, label=label, **look)
    ax.plot(rate[star], distortion[star], "*", markersize=12, zorder=3, **look)
    of_rate, of_distortion = (curve.data[f"{each}_bar"].sel(split=split).values for each in ("rate", "distortion"))
    bars(ax, rate, distortion, of_distortion, curve.colour, of_rate)


def _points(drawn: Iterable[Curve], split: str, x: str = "rate", along: str | None = None) -> Iterator[Point]:
    """The finite points of curves of D on one split, labelled with their value along an axis, which is β by default."""
    for curve in drawn:
        cell = curve.data.sel(split=split)
        columns = (cell[name].values for name in (x, "distortion", along or swept(cell)))
        for at, distortion, value in zip(*columns, strict=True):
            if np.isfinite(at + distortion):
                yield Point((at, distortion), f"{value:g}", curve.colour)


def far_rate(rates: ArrayLike) -> float | None:
    """A limit just above most rates, if some are far above it, else None.

    Example:
        >>> far_rate([10.0, 12.0, 14.0]), far_rate([10.0, 12.0, 14.0, 9000.0])
        (None, 15.4)
    """
    values = np.asarray(rates, dtype=float)
    finite = values[np.isfinite(values)]
    if not finite.size or finite.max() <= FAR**2 * np.median(finite):
        return None
    return round(1.1 * float(finite[finite <= FAR * np.median(finite)].max()), 1)


def _scale_of_rates(ax: Axes, rates: np.ndarray) -> float | None:
    """Labels the axis of rates, and makes it logarithmic where only outliers are: above which rate, if any are."""
    label, far = "rate R (nats per image)", far_rate(rates)
    if far is not None:
        ax.set_xscale("symlog", linthresh=far, linscale=4)
        ax.set_xlim(0, 2 * float(np.nanmax(rates)))
        ticks = np.append(MaxNLocator(4).tick_values(0, far)[:-1], 10.0 ** np.arange(2, np.log10(np.nanmax(rates))))
        ax.set_xticks(ticks[(ticks < far) | (ticks > 1.5 * far)])
        ax.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        ax.axvline(far, color=grey(0.3), linewidth=0.8)
        label += f"; logarithmic above {far:.0f}"
    ax.set_xlabel(label)
    return far


def _lines_of_constant_sum(ax: Axes, linear_to: float | None) -> None:
    """Lines of constant R + D, as far as the axis of rates is linear."""
    (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
    rates = np.array([left, linear_to or right])
    for total in MaxNLocator(8).tick_values(left + bottom, rates[1] + top):
        ax.plot(rates, total - rates, color=grey(0.12), linewidth=0.7, zorder=0)
    ax.plot([], [], color=grey(0.12), linewidth=0.7, label="R + D constant")
    ax.set_xlim(left, right)
    ax.set_ylim(bottom, top)


def _place_labels(ax: Axes, points: Iterable[Point], obstacles: np.ndarray) -> None:
    """Puts the label of each point at the closest position that overlaps no obstacle, label or legend.

    Args:
        obstacles: positions ``[n, 2]`` of markers and bars.
    """
    figure: Any = ax.figure
    figure.draw_without_rendering()
    pixels = figure.dpi / 72
    centres = ax.transData.transform(obstacles)
    taken = [Bbox(np.array([-5, 5])[:, None] * pixels + centre) for centre in centres]
    if legend := ax.get_legend():
        taken.append(legend.get_window_extent())
    for point in points:
        style: dict[str, Any] = {"xy": point.position, "textcoords": "offset points", "color": readable(point.colour)}
        for radius, angle in product(range(10, 120, 5), range(45, 405, 15)):
            offset = (radius * np.cos(np.deg2rad(angle)), radius * np.sin(np.deg2rad(angle)))
            label = ax.annotate(point.label, xytext=offset, ha="center", va="center", fontsize="small", **style)
            box = label.get_window_extent().padded(pixels)
            inside = ax.bbox.containsx(box.x0) and ax.bbox.containsx(box.x1) and ax.bbox.containsy(box.y1)
            if inside and not any(box.overlaps(other) for other in taken):
                taken.append(box)
                break
            label.remove()
        if radius > 15:
            leader = {"arrowstyle": "-", "color": point.colour, "linewidth": 0.4, "shrinkA": 4, "shrinkB": 3}
            ax.annotate("", xytext=offset, arrowprops=leader, **style)
