"""Figures: pure functions of the results, (tree, ax) → ax, which draw nothing where there is nothing to show."""

from collections.abc import Callable, Iterator
from inspect import cleandoc
from itertools import product
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, ScalarFormatter
from matplotlib.transforms import Bbox

from pyrovae.analysis.figures.likelihood import log_likelihood, pareto_k
from pyrovae.analysis.figures.pictures import latent_plane, reconstructions, samples, traversals
from pyrovae.analysis.figures.priors import gap_decomposition
from pyrovae.analysis.figures.style import STYLE, curves, legend, panels, shown, write

#: Most labels of β that leave room for the curves.
MANY = 60


def drawn(tree: xr.DataTree) -> dict[str, Figure]:
    """The figures that a study has something to show in, by name."""
    figures = {}
    with matplotlib.rc_context(STYLE):
        for draw in FIGURES:
            figure = Figure(figsize=(6.4, 4.8), layout="constrained")
            draw(tree, figure.subplots())
            if any(ax.has_data() for ax in figure.axes):
                figures[draw.__name__] = figure
    return figures


def captions() -> dict[str, str]:
    """What each figure shows, by name: the first paragraph of what is written of its function."""
    return {draw.__name__: cleandoc(draw.__doc__ or "").split("\n\n")[0] for draw in FIGURES}


def save(tree: xr.DataTree, folder: Path) -> list[Path]:
    """Draws the figures that a study has something to show in, as PNG and SVG."""
    return write(drawn(tree), folder)


def rate_distortion(tree: xr.DataTree, ax: Axes) -> Axes:
    """The rate–distortion plane: train (open, dashed) and test (filled, solid), β = 1 as a star, means over seeds.

    Lines of constant R + D (the negative ELBO) and the floor are drawn behind; β stands beside the test points.
    """
    data = tree["rate_distortion"].to_dataset().mean("seed", skipna=True).sortby("beta")
    points: list[tuple[float, float]] = []
    labels: list[tuple[float, float, str, str]] = []
    for name, cell, colour, shape in curves(data):
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
    if not ax.has_data():
        return ax
    ax.set_xlabel("rate R (nats per image)")
    ax.set_ylabel("distortion D (nats per image)")
    _floor(ax, data)
    for theory, label in _theory(tree):
        ax.plot(theory["rate"], theory["distortion"], color="0.2", linewidth=0.8, label=label, zorder=1)
    ax.margins(0.08)
    _lines_of_constant_sum(ax)
    ax.plot([], [], "*", markersize=9, color="0.3", label="β = 1")
    legend(ax)
    if len(labels) <= MANY:
        _place_labels(ax, labels, points)
    return ax


def distortion(tree: xr.DataTree, ax: Axes) -> Axes:
    """D on train (open, dashed) and test (filled, solid) against β, means over seeds."""
    data = tree["rate_distortion"].to_dataset().mean("seed", skipna=True).sortby("beta")
    for name, cell, colour, shape in curves(data):
        for split, line, face in (("train", "--", "white"), ("test", "-", colour)):
            label = f"{name} {split}".strip()
            values = cell["distortion"].sel(split=split)
            ax.plot(cell.beta, values, line + shape, color=colour, markerfacecolor=face, linewidth=1.2, label=label)
    if not ax.has_data():
        return ax
    for theory, once in _theory(tree):
        ax.plot(theory.beta, theory["distortion"], color="0.2", linewidth=0.8, label=once, zorder=1)
    _floor(ax, data)
    ax.set_xscale("log")
    ax.set_xlabel("β")
    ax.set_ylabel("distortion D (nats per image)")
    legend(ax)
    return ax


def information(tree: xr.DataTree, ax: Axes) -> Axes:
    """Rate R, mutual information I and prior gap G of the training set against β, means over seeds, beside log N.

    The axis is linear up to 1 nat and logarithmic above.
    """
    rates = tree["rate_distortion"].to_dataset()["rate"].sel(split="train", drop=True)
    data = tree["information"].to_dataset().assign(rate=rates).mean("seed", skipna=True).sortby("beta")
    looks = {"rate": ("R", "-"), "prior_gap": ("G", "--"), "mutual_information": ("I", "-.")}
    for name, cell, colour, shape in curves(data):
        for variable, (symbol, line) in looks.items():
            if cell[variable].isnull().all():
                continue
            label = f"{symbol} {name}".strip()
            ax.plot(cell.beta, cell[variable], line + shape, color=colour, linewidth=1.2, markersize=4, label=label)
    if not ax.has_data():
        return ax
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
    legend(ax)
    return ax


def saturation(tree: xr.DataTree, ax: Axes) -> Axes:
    """Mutual information I of the training images against their rate R, means over seeds, one point for every β.

    On the diagonal all of the rate is information; where I has reached log N, the rest of it is prior gap.
    """
    rates = tree["rate_distortion"].to_dataset()["rate"].sel(split="train", drop=True)
    data = tree["information"].to_dataset().assign(rate=rates).mean("seed", skipna=True).sortby("beta")
    for curve in curves(data, "mutual_information"):
        look: dict[str, Any] = {"color": curve.colour, "linewidth": 1.2, "label": curve.name or "I"}
        ax.plot(curve.data["rate"], curve.data["mutual_information"], "-" + curve.shape, **look)
    if not ax.has_data():
        return ax
    limits = np.unique(data["log_n"].values.round(6))
    for limit in limits[np.isfinite(limits)]:
        ax.axhline(limit, color="0.5", linewidth=0.8, linestyle=":", label=f"log N = {limit:.2f}")
    most = float(max(np.nanmax(limits), data["mutual_information"].max()))
    ax.plot([0, most], [0, most], color="0.7", linewidth=0.8, linestyle="--", label="I = R")
    ax.set_ylim(0, 1.15 * most)
    ax.set_xlabel("rate R of the training images (nats per image)")
    ax.set_ylabel("mutual information I (nats)")
    legend(ax)
    return ax


def learning_curves(tree: xr.DataTree, ax: Axes) -> Axes:
    """D on train (dashed) and test (solid) against the training step, means over seeds, a panel for each β.

    Of many β the lowest, the one nearest to 1 and the highest are shown. D is that of the first images of either split.
    """
    if "curves" not in tree.children or tree["curves/distortion"].isnull().all():
        return ax
    data = tree["curves"].to_dataset().mean("seed", skipna=True)
    betas = shown(data.beta.values.tolist())
    row = panels(ax, 1, len(betas), (1 + 3 * len(betas), 3.4), sharey=True)[0]
    for panel, beta in zip(row, betas, strict=True):
        for curve in curves(data.sel(beta=[beta]), "distortion"):
            for split, line in (("train", "--"), ("test", "-")):
                values = curve.data["distortion"].sel(split=split, beta=beta)
                values = values[np.isfinite(values.values)]
                look: dict[str, Any] = {"color": curve.colour, "linewidth": 1.2, "markersize": 4}
                label = f"{curve.name} {split}".strip()
                panel.plot(values.step, values, line + curve.shape, markevery=0.2, label=label, **look)
        panel.set_title(f"β = {beta:g}")
        panel.set_xlabel("training step")
        panel.set_xscale("symlog", linthresh=1)
        panel.xaxis.set_major_formatter(ScalarFormatter())
    row[0].set_ylabel("distortion D (nats per image)")
    legend(row[-1])
    return ax


def _theory(tree: xr.DataTree) -> Iterator[tuple[xr.Dataset, str | None]]:
    """The closed forms over β at every combination of the other axes, if there are any; the first has a label."""
    if "theory" in tree.children:
        for number, curve in enumerate(curves(tree["theory"].to_dataset())):
            yield curve.data, None if number else "theory (population)"


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


#: All figures, in the order in which they are to be looked at.
FIGURES: tuple[Callable[[xr.DataTree, Axes], Axes], ...] = (
    rate_distortion,
    distortion,
    information,
    saturation,
    gap_decomposition,
    log_likelihood,
    pareto_k,
    learning_curves,
    reconstructions,
    samples,
    traversals,
    latent_plane,
)
