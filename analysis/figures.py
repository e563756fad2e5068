"""Figures: pure functions of the results."""

from collections.abc import Iterator, Mapping
from itertools import cycle, product
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, ScalarFormatter
from matplotlib.transforms import Bbox

from pyrovae.analysis.effects import is_loose
from pyrovae.analysis.memory_figures import reconstructions
from pyrovae.analysis.prior_figures import gap_decomposition, latent_plane, samples
from pyrovae.files import replacing

# Okabe and Ito's colours, which colour-blind readers can tell apart; readers of grey go by the shapes.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
# One shape more than there are colours, so that colour and shape together tell 42 curves apart.
_SHAPES = ("o", "s", "^", "D", "v", "P", "X")
#: Most entries of a legend inside the axes, of one beside them, and most labels of β, that leave room for the curves.
INSIDE, BESIDE, MANY = 10, 24, 60
_STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "pyrovae",
}
# A date would make the same figure a different file.
_METADATA: dict[str, dict[str, Any]] = {"png": {}, "svg": {"Date": None}}


def save(tree: xr.DataTree, folder: Path) -> list[Path]:
    """Draws the figures that a study has something to show in, as PNG and SVG."""
    with matplotlib.rc_context(_STYLE):
        figures: dict[str, Figure | None] = {}
        for on_axes in (rate_distortion, distortion, information, log_likelihood):
            figure = figures[on_axes.__name__] = Figure(figsize=(6.4, 4.8), layout="constrained")
            on_axes(tree, figure.subplots())
        for whole in (gap_decomposition, samples, latent_plane, reconstructions):
            figures[whole.__name__] = whole(tree)
    return write(figures, folder)


def write(figures: Mapping[str, Figure | None], folder: Path) -> list[Path]:
    """Writes figures by their names, as PNG and SVG; those that are None are left out."""
    files = []
    with matplotlib.rc_context(_STYLE):
        for (name, drawn), suffix in product(figures.items(), ("png", "svg")):
            if drawn is not None:
                files.append(folder / f"{name}.{suffix}")
                with replacing(files[-1]) as beside:
                    drawn.savefig(beside, format=suffix, dpi=150, metadata=_METADATA[suffix])
    return files


def rate_distortion(tree: xr.DataTree, ax: Axes) -> Axes:
    """The rate–distortion plane: train (open, dashed) and test (filled, solid), β = 1 as a star, means over seeds.

    Lines of constant R + D (the negative ELBO) and the floor are drawn behind; β stands beside the test points.
    """
    data = tree["rate_distortion"].to_dataset().mean("seed", skipna=True).sortby("beta")
    points: list[tuple[float, float]] = []
    labels: list[tuple[float, float, str, str]] = []
    for (name, cell), colour, shape in zip(_curves(data), cycle(_COLOURS), cycle(_SHAPES), strict=False):
        for split, line, face in (("train", "--", "white"), ("test", "-", colour)):
            rate, distortion = (cell[each].sel(split=split).values for each in ("rate", "distortion"))
            look: dict[str, Any] = {"color": colour, "markerfacecolor": face}
            star = cell.beta.values == 1
            ax.plot(
                rate,
                distortion,
                line + shape,
                markevery=(~star).nonzero()[0].tolist(),
                linewidth=1.2,
                label=f"{name} {split}".strip(),
                **look,
            )
            ax.plot(rate[star], distortion[star], "*", markersize=12, zorder=3, **look)
            for r, d, beta in zip(rate, distortion, cell.beta.values, strict=True):
                if np.isfinite(r + d):
                    points.append((r, d))
                    labels += [(r, d, f"{beta:g}", colour)] if split == "test" else []
    ax.set_xlabel("rate R (nats per image)")
    ax.set_ylabel("distortion D (nats per image)")
    _floor(ax, data)
    for theory, label in _theory(tree):
        ax.plot(theory["rate"], theory["distortion"], color="0.2", linewidth=0.8, label=label, zorder=1)
    ax.margins(0.08)
    _lines_of_constant_sum(ax)
    ax.plot([], [], "*", markersize=9, color="0.3", label="β = 1")
    _legend(ax)
    if len(labels) <= MANY:
        _place_labels(ax, labels, points)
    return ax


def distortion(tree: xr.DataTree, ax: Axes) -> Axes:
    """D on train (open, dashed) and test (filled, solid) against β, means over seeds."""
    data = tree["rate_distortion"].to_dataset().mean("seed", skipna=True).sortby("beta")
    for (name, cell), colour, shape in zip(_curves(data), cycle(_COLOURS), cycle(_SHAPES), strict=False):
        for split, line, face in (("train", "--", "white"), ("test", "-", colour)):
            label = f"{name} {split}".strip()
            values = cell["distortion"].sel(split=split)
            ax.plot(cell.beta, values, line + shape, color=colour, markerfacecolor=face, linewidth=1.2, label=label)
    for theory, once in _theory(tree):
        ax.plot(theory.beta, theory["distortion"], color="0.2", linewidth=0.8, label=once, zorder=1)
    _floor(ax, data)
    ax.set_xscale("log")
    ax.set_xlabel("β")
    ax.set_ylabel("distortion D (nats per image)")
    _legend(ax)
    return ax


def information(tree: xr.DataTree, ax: Axes) -> Axes:
    """Rate R, mutual information I and prior gap G of the training set against β, means over seeds, beside log N.

    The axis is linear up to 1 nat and logarithmic above.
    """
    rates = tree["rate_distortion"].to_dataset()["rate"].sel(split="train", drop=True)
    data = tree["information"].to_dataset().assign(rate=rates).mean("seed", skipna=True).sortby("beta")
    looks = {"rate": ("R", "-"), "prior_gap": ("G", "--"), "mutual_information": ("I", "-.")}
    for (name, cell), colour, shape in zip(_curves(data), cycle(_COLOURS), cycle(_SHAPES), strict=False):
        for variable, (symbol, line) in looks.items():
            if cell[variable].isnull().all():
                continue
            label = f"{symbol} {name}".strip()
            ax.plot(cell.beta, cell[variable], line + shape, color=colour, linewidth=1.2, markersize=4, label=label)
    for theory, once in _theory(tree):
        for variable in looks:
            ax.plot(theory.beta, theory[variable], color="0.2", linewidth=0.8, label=once, zorder=1)
            once = None
    for limit in np.unique(data["log_n"]):
        ax.axhline(limit, color="0.5", linewidth=0.8, linestyle=":", label=f"log N = {limit:.2f}")
    ax.set_xscale("log")
    ax.set_yscale("symlog", linthresh=1)
    ax.yaxis.set_major_formatter(ScalarFormatter())
    ax.set_ylim(bottom=min(0, float(data["prior_gap"].min())))
    ax.set_xlabel("β")
    ax.set_ylabel("nats per image")
    _legend(ax)
    return ax


def log_likelihood(tree: xr.DataTree, ax: Axes) -> Axes:
    """Bounds of log p(x) of the test images against β, means over seeds.

    The importance-weighted bound is solid; where k̂ is high for many images, so that it may be loose by far, it is
    dotted and its markers are open. The bound by annealing, on the same images, is dashed.
    """
    found = tree["likelihood"].to_dataset().sortby("beta")
    data = found.mean("seed", skipna=True).assign(loose=is_loose(found).any("seed"))
    for (name, cell), colour, shape in zip(
        _curves(data, "log_likelihood"), cycle(_COLOURS), cycle(_SHAPES), strict=False
    ):
        bound, doubtful = cell["log_likelihood"], cell["loose"].values
        look: dict[str, Any] = {"color": colour, "linewidth": 1.2}
        reliable = bound.where(~doubtful)
        ax.plot(cell.beta, bound, ":" + shape, markerfacecolor="white", label=name if doubtful.all() else None, **look)
        ax.plot(cell.beta, reliable, "-" + shape, label=None if doubtful.all() else name, **look)
        if cell["annealed_log_likelihood"].notnull().any():
            ax.plot(cell.beta, cell["annealed_log_likelihood"], "--x", label=f"{name} annealed".strip(), **look)
    if data["loose"].any():
        ax.plot([], [], ":o", color="0.3", markerfacecolor="white", label="k̂ high: may be loose by far")
    ax.set_xscale("log")
    ax.set_xlabel("β")
    ax.set_ylabel("bound of log p(x) (nats per test image)")
    _legend(ax)
    return ax


def _theory(tree: xr.DataTree) -> Iterator[tuple[xr.Dataset, str | None]]:
    """The closed forms over β at every combination of the other axes, if there are any; the first has a label."""
    if "theory" in tree.children:
        for number, (_, cell) in enumerate(_curves(tree["theory"].to_dataset())):
            yield cell, None if number else "theory (population)"


def _curves(data: xr.Dataset, variable: str = "rate") -> Iterator[tuple[str, xr.Dataset]]:
    """One curve over β for every combination of the other axes, named by those that have more than one value."""
    held = [str(dim) for dim in data[variable].dims if dim not in ("split", "beta")]
    for values in product(*(data[dim].values.tolist() for dim in held)):
        place = dict(zip(held, values, strict=True))
        yield ", ".join(f"{dim} {value}" for dim, value in place.items() if data.sizes[dim] > 1), data.sel(place)


def _lines_of_constant_sum(ax: Axes) -> None:
    (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
    for total in MaxNLocator(8).tick_values(left + bottom, right + top):
        ax.plot([left, right], [total - left, total - right], color="0.88", linewidth=0.7, zorder=0)
    ax.plot([], [], color="0.88", linewidth=0.7, label="R + D constant")
    ax.set_xlim(left, right)
    ax.set_ylim(bottom, top)


def _floor(ax: Axes, data: xr.Dataset) -> None:
    """The floors of the test images: one line where all curves have the same data and likelihood."""
    floors = np.unique(data["floor"].sel(split="test").values.round(6))
    for number, floor in enumerate(floors[np.isfinite(floors)]):
        label = None if number else "floor (test)"
        ax.axhline(floor, color="0.5", linewidth=0.8, linestyle=":", label=label)


def _legend(ax: Axes) -> None:
    entries = len(ax.get_legend_handles_labels()[1])
    if entries <= INSIDE:
        ax.legend(loc="best", fontsize=8)
    elif entries <= BESIDE:
        figure: Any = ax.figure
        figure.set_figwidth(1.5 * figure.get_figwidth())
        ax.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize=8)


def _place_labels(ax: Axes, labels: list[tuple[float, float, str, str]], points: list[tuple[float, float]]) -> None:
    """Writes β beside the points, each label at the nearest place that no point, label or legend takes."""
    figure: Any = ax.figure
    figure.draw_without_rendering()
    pixels = figure.dpi / 72
    taken = [Bbox(np.array([-5, 5])[:, None] * pixels + place) for place in ax.transData.transform(points)]
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
