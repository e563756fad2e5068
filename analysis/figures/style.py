"""Elements that all figures share: curves, reference lines, legends, panels, and writing to files."""

from collections.abc import Collection, Iterator, Mapping
from io import BytesIO
from itertools import cycle, product
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.layout_engine import ConstrainedLayoutEngine

from pyrovae.analysis.figures.colours import COLOURS, DARK, Colour, grey, visible
from pyrovae.analysis.findings.cells import SYMBOLS
from pyrovae.analysis.findings.statistics import repeated, variance_of_mean
from pyrovae.system import atomic

# One more shape than colours, so that their combinations distinguish 42 curves.
SHAPES = ("o", "s", "^", "D", "v", "P", "X")
#: Maximum number of entries of a legend.
MOST_ENTRIES = 24
#: Maximum number of β with a panel of their own.
MAX_BETAS = 3
#: Width of a figure in inches unless it has panels.
WIDTH = 6.4
#: Below this width in inches, text is smaller, and there is less of it.
NARROW = 4.5
#: The formats in which figures are written, with metadata without a date, so that equal figures are equal files.
FORMATS: Mapping[str, dict[str, Any]] = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}
#: Formats of the figures that each study has.
OF_STUDIES = ("png", "svg")


def rc_params(width: float = WIDTH, *, dark: bool = False) -> dict[str, Any]:
    """Matplotlib's settings for a figure of some width in inches, whose text has 7 to 9 points.

    Example:
        >>> rc_params(3.3)["font.size"], rc_params(6.9)["font.size"]
        (8.4, 9.0)
    """
    settings = {
        "figure.figsize": (width, (0.85 if width < NARROW else 0.75) * width),
        "font.size": 8.4 if width < NARROW else 9.0,
        "axes.titlesize": "medium",
        "legend.fontsize": "small",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "legend.frameon": False,
        "text.usetex": False,  # labels are no LaTeX
        "svg.fonttype": "none",
        "svg.hashsalt": "pyrovae",
        "pdf.fonttype": 42,  # TrueType, which publishers ask for
    }
    return settings | (DARK if dark else {})


class Curve(NamedTuple):
    """The results along an axis at one combination of the others, and their look."""

    name: str
    data: xr.Dataset
    colour: Colour
    shape: str


def swept(data: xr.Dataset | xr.DataArray) -> str:
    """The axis along which curves run: β, or target rates in its place."""
    return "beta" if "beta" in data.dims else "target_rate"


def label_swept(ax: Axes, data: xr.Dataset) -> None:
    """Makes the horizontal axis one of β, or of target rates in its place."""
    ax.set_xscale("log")
    ax.set_xlabel("β" if swept(data) == "beta" else "target rate R* (nats per image)")


def titled(axis: str, value: float) -> str:
    """A value of an axis in a title.

    Example:
        >>> titled("beta", 0.1), titled("target_rate", 20.0)
        ('β = 0.1', 'R* = 20')
    """
    return f"{SYMBOLS[axis]} = {value:g}"


def curves(data: xr.Dataset, variable: str = "rate", along: str | None = None) -> Iterator[Curve]:
    """One curve along an axis for every combination of the others that has numbers, named by the axes that vary.

    Args:
        along: the axis; by default β, or target rates in its place.
    """
    along = along or swept(data)
    axes = [str(dim) for dim in data[variable].dims if dim not in ("split", "step", along)]
    looks = zip(cycle(map(visible, COLOURS)), cycle(SHAPES), strict=False)
    for values in product(*(data[dim].values.tolist() for dim in axes)):
        place = dict(zip(axes, values, strict=True))
        cell = data.sel(place).dropna(along, how="all")  # a β at which only some numbers are missing stays, as a gap
        if cell[variable].notnull().any():
            name = ", ".join(f"{dim} {value}" for dim, value in place.items() if data.sizes[dim] > 1)
            yield Curve(name, cell, *next(looks))


def mean_over_runs(data: xr.Dataset) -> xr.Dataset:
    """Means over the runs of each setting, without missing ones."""
    return data.mean(repeated(data), skipna=True)


def with_errors(runs: xr.Dataset, names: list[str]) -> xr.Dataset:
    """Means over runs in order of β, and bars of ± two standard errors, ``NAME_bar``, where there are several runs."""
    errors = {f"{name}_bar": 2 * variance_of_mean(runs[name]) ** 0.5 for name in names}
    means = mean_over_runs(runs)
    return means.assign({name: bar.where(bar > 0) for name, bar in errors.items()}).sortby(swept(means))


def bars(ax: Axes, x: Any, y: Any, of_y: Any, colour: Colour, of_x: Any = None) -> None:
    """Error bars at points."""
    ax.errorbar(x, y, of_y, of_x, fmt="none", ecolor=colour, elinewidth=1, capsize=2)


def shown(betas: list[float]) -> list[float]:
    """The β that get a panel: the lowest, the one closest to 1, and the highest; in a narrow figure, one of them.

    Example:
        >>> shown([0.01, 0.1, 0.9, 3, 5])
        [0.01, 0.9, 5]
    """
    betas = sorted(betas)
    most = 1 if matplotlib.rcParams["figure.figsize"][0] < NARROW else MAX_BETAS
    if len(betas) <= most:
        return betas
    middle = min(betas[1:-1] or betas, key=lambda beta: abs(np.log(beta)))
    return [middle] if most == 1 else [betas[0], middle, betas[-1]]


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
        ax.axhline(floor, color=grey(0.5), linewidth=0.8, linestyle=":", label=label)


def legend(ax: Axes) -> None:
    """Adds a legend below the axes, or inside them if the figure contains other axes; none if it would be too long."""
    handles, labels = ax.get_legend_handles_labels()
    figure: Any = ax.figure
    if not 0 < len(labels) <= MOST_ENTRIES:
        return
    if not (_alone(ax) and isinstance(figure.get_layout_engine(), ConstrainedLayoutEngine)):
        ax.legend(loc="best")
        return
    points = FontProperties(size=matplotlib.rcParams["legend.fontsize"]).get_size_in_points()
    entry = points * (0.52 * max(map(len, labels)) + 4)  # the text, the line before it, and a space
    columns = max(1, min(len(labels), int(72 * figure.get_figwidth() / entry)))
    rows = -(-len(labels) // columns)
    figure.set_figheight(figure.get_figheight() + rows * 1.5 * points / 72)
    figure.legend(handles, labels, loc="outside lower center", ncols=columns)


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
    if _alone(ax):
        figure.set_size_inches(size)
    ax.spines[:].set_visible(False)
    ax.set_xticks([])
    ax.set_yticks([])
    return grid.subgridspec(rows, columns).subplots(squeeze=False, **shared)


def strip(ax: Axes, images: xr.DataArray, label: str) -> None:
    """A row of images with a label to its left."""
    row = np.concatenate(list(images.transpose("sample", "row", "column", "channel").values), axis=1)
    ax.imshow(row.squeeze(-1) if row.shape[-1] == 1 else row, cmap="gray", vmin=0, vmax=255)
    ax.spines[:].set_visible(False)
    ax.set_xticks([])
    ax.set_yticks([])
    ax.set_ylabel(label, rotation=0, ha="right", va="center", fontsize="small")


def first_varying(tree: xr.DataTree, names: list[str]) -> str | None:
    """The first of some axes that has several values in the study."""
    sizes = tree["rate_distortion"].sizes
    return next((name for name in names if sizes.get(name, 1) > 1), None)


def write(figures: Mapping[str, Figure | None], folder: Path, formats: Collection[str] = OF_STUDIES) -> list[Path]:
    """Writes figures under their names in some formats, and skips those that are None."""
    written = []
    for (name, drawn), suffix in product(figures.items(), formats):
        if drawn is not None:
            written.append(folder / f"{name}.{suffix}")
            atomic.write(written[-1], content(drawn, suffix))
    return written


def content(figure: Figure, suffix: str) -> memoryview:
    """The content of a file with a figure."""
    file = BytesIO()
    with matplotlib.rc_context(rc_params()):
        figure.savefig(file, format=suffix, dpi=150, metadata=FORMATS[suffix])
    return file.getbuffer()


def _alone(ax: Axes) -> bool:
    """Whether the figure contains no other axes than these and panels that replace them."""
    figure: Any = ax.figure
    grids = [each.get_subplotspec() for each in figure.axes]
    return None not in grids and len({grid.get_topmost_subplotspec() for grid in grids}) == 1
