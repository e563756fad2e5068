"""Elements that all figures share: curves, reference lines, legends, panels, and writing to files."""

from collections.abc import Iterator, Mapping
from io import BytesIO
from itertools import cycle, product
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pyrovae.analysis.findings.statistics import repeated
from pyrovae.system import atomic

# Okabe and Ito's colours, which colour-blind readers can distinguish; in grey, the shapes differ.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
# One more shape than colours, so that their combinations distinguish 42 curves.
SHAPES = ("o", "s", "^", "D", "v", "P", "X")
#: Maximum number of entries of a legend inside the axes, and of one to the right of them.
INSIDE, OUTSIDE = 10, 24
#: Maximum number of β with a panel of their own.
MAX_BETAS = 3
STYLE = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "pyrovae",
}
# Without a date, equal figures are equal files.
_METADATA: dict[str, dict[str, Any]] = {"png": {}, "svg": {"Date": None}}


class Curve(NamedTuple):
    """The results along β at one combination of the other axes, and their look."""

    name: str
    data: xr.Dataset
    colour: str
    shape: str


def curves(data: xr.Dataset, variable: str = "rate") -> Iterator[Curve]:
    """One curve over β for every combination of the other axes that has numbers, named by the axes that vary."""
    axes = [str(dim) for dim in data[variable].dims if dim not in ("split", "step", "beta")]
    looks = zip(cycle(COLOURS), cycle(SHAPES), strict=False)
    for values in product(*(data[dim].values.tolist() for dim in axes)):
        place = dict(zip(axes, values, strict=True))
        cell = data.sel(place).dropna("beta", how="all")  # a β at which only some numbers are missing stays, as a gap
        if cell[variable].notnull().any():
            name = ", ".join(f"{dim} {value}" for dim, value in place.items() if data.sizes[dim] > 1)
            yield Curve(name, cell, *next(looks))


def mean_over_runs(data: xr.Dataset) -> xr.Dataset:
    """Means over the runs of each setting, without missing ones."""
    return data.mean(repeated(data), skipna=True)


def shown(betas: list[float]) -> list[float]:
    """The β that get a panel: the lowest, the one closest to 1, and the highest.

    Example:
        >>> shown([0.01, 0.1, 0.9, 3, 5])
        [0.01, 0.9, 5]
    """
    betas = sorted(betas)
    if len(betas) <= MAX_BETAS:
        return betas
    middle = min(betas[1:-1], key=lambda beta: abs(np.log(beta)))
    return [betas[0], middle, betas[-1]]


def theory_curves(tree: xr.DataTree) -> Iterator[tuple[xr.Dataset, str | None]]:
    """Closed forms over β for every combination of the other axes, if the study has any; only the first has a label."""
    if "theory" in tree.children:
        for number, curve in enumerate(curves(tree["theory"].to_dataset())):
            yield curve.data, None if number else "theory (population)"


def draw_floor(ax: Axes, data: xr.Dataset) -> None:
    """Draws the floors of the test images, one line for each that differs."""
    floors = np.unique(data["floor"].sel(split="test").values.round(6))
    for number, floor in enumerate(floors[np.isfinite(floors)]):
        label = None if number else "floor (test)"
        ax.axhline(floor, color="0.5", linewidth=0.8, linestyle=":", label=label)


def legend(ax: Axes) -> None:
    """A legend inside the axes, to the right of them if it has many entries, or none if it has too many."""
    entries = len(ax.get_legend_handles_labels()[1])
    if not entries:
        return
    if entries <= INSIDE:
        ax.legend(loc="best", fontsize=8)
    elif entries <= OUTSIDE:
        figure: Any = ax.figure
        if _exclusive(ax):
            figure.set_figwidth(1.5 * figure.get_figwidth())
        ax.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize=8)


def panels(ax: Axes, rows: int, columns: int, size: tuple[float, float], **shared: Any) -> np.ndarray:
    """Replaces an axes by a grid of panels, ``[rows, columns]``.

    Args:
        size: size of the figure in inches, set if it contains no other axes.
        shared: as in `Figure.subplots`, e.g. ``sharey=True``.

    Raises:
        ValueError: the axes were placed by hand, so they have no grid.
    """
    figure: Any = ax.figure
    grid = ax.get_subplotspec()
    if grid is None:
        raise ValueError("ax: expected axes that subplots() made, got axes that were placed by hand")
    if _exclusive(ax):
        figure.set_size_inches(size)
    ax.spines[:].set_visible(False)
    ax.set_xticks([])
    ax.set_yticks([])
    return grid.subgridspec(rows, columns).subplots(squeeze=False, **shared)


def strip(ax: Axes, images: xr.DataArray, label: str) -> None:
    """A row of images with a label to its left."""
    row = np.concatenate(list(images.transpose("sample", "row", "column", "channel").values), axis=1)
    ax.imshow(row.squeeze(-1) if row.shape[-1] == 1 else row, cmap="gray", vmin=0, vmax=255)
    ax.set_xticks([])
    ax.set_yticks([])
    ax.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=8)


def first_varying(tree: xr.DataTree, names: list[str]) -> str | None:
    """The first of some axes that has several values in the study."""
    sizes = tree["rate_distortion"].sizes
    return next((name for name in names if sizes.get(name, 1) > 1), None)


def write(figures: Mapping[str, Figure | None], folder: Path) -> list[Path]:
    """Writes figures as PNG and SVG under their names, and skips those that are None."""
    written = []
    with matplotlib.rc_context(STYLE):
        for (name, drawn), suffix in product(figures.items(), ("png", "svg")):
            if drawn is not None:
                content = BytesIO()
                drawn.savefig(content, format=suffix, dpi=150, metadata=_METADATA[suffix])
                written.append(folder / f"{name}.{suffix}")
                atomic.write(written[-1], content.getbuffer())
    return written


def _exclusive(ax: Axes) -> bool:
    """Whether the figure contains no other axes."""
    figure: Any = ax.figure
    return figure.axes == [ax]
