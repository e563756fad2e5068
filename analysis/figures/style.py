"""What all figures share: the look of curves, legends and panels, and how figures are written."""

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

from pyrovae.system import atomic

# Okabe and Ito's colours, which colour-blind readers can tell apart; readers of grey go by the shapes.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
# One shape more than there are colours, so that colour and shape together tell 42 curves apart.
SHAPES = ("o", "s", "^", "D", "v", "P", "X")
#: Most entries of a legend inside the axes, and of one beside them, that leave room for the curves.
INSIDE, BESIDE = 10, 24
#: Most β that panels and pictures are shown at, the lowest, the one nearest to 1, and the highest.
BETAS = 3
STYLE = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "pyrovae",
}
# A date would make the same figure a different file.
_METADATA: dict[str, dict[str, Any]] = {"png": {}, "svg": {"Date": None}}


class Curve(NamedTuple):
    """The results along β at one combination of the other axes, and how they are drawn."""

    name: str
    data: xr.Dataset
    colour: str
    shape: str


def curves(data: xr.Dataset, variable: str = "rate") -> Iterator[Curve]:
    """One curve over β for every combination of the other axes at which there are numbers.

    They are named by those axes that have more than one value.
    """
    held = [str(dim) for dim in data[variable].dims if dim not in ("split", "step", "beta")]
    looks = zip(cycle(COLOURS), cycle(SHAPES), strict=False)
    for values in product(*(data[dim].values.tolist() for dim in held)):
        place = dict(zip(held, values, strict=True))
        cell = data.sel(place).dropna("beta", how="all")  # what was measured, and came to nothing, stays as a gap
        if cell[variable].notnull().any():
            name = ", ".join(f"{dim} {value}" for dim, value in place.items() if data.sizes[dim] > 1)
            yield Curve(name, cell, *next(looks))


def shown(betas: list[float]) -> list[float]:
    """The β that panels are drawn at, of all that there are.

    Example:
        >>> shown([0.01, 0.1, 0.9, 3, 5])
        [0.01, 0.9, 5]
    """
    betas = sorted(betas)
    if len(betas) <= BETAS:
        return betas
    middle = min(betas[1:-1], key=lambda beta: abs(np.log(beta)))
    return [betas[0], middle, betas[-1]]


def legend(ax: Axes) -> None:
    """A legend inside the axes, or beside them where it has many entries, or none where it has too many."""
    entries = len(ax.get_legend_handles_labels()[1])
    if not entries:
        return
    if entries <= INSIDE:
        ax.legend(loc="best", fontsize=8)
    elif entries <= BESIDE:
        figure: Any = ax.figure
        if _exclusive(ax):
            figure.set_figwidth(1.5 * figure.get_figwidth())
        ax.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize=8)


def panels(ax: Axes, rows: int, columns: int, size: tuple[float, float], **shared: Any) -> np.ndarray:
    """Panels in the place of one axes, ``[rows, columns]``.

    Args:
        size: of the figure, in inches, if it holds nothing else.
        shared: as in `Figure.subplots`, such as ``sharey=True``.

    Raises:
        ValueError: the axes were placed by hand, so that there is no grid to put panels into.
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
    """Images side by side, with a label to the left of them."""
    row = np.concatenate(list(images.transpose("sample", "row", "column", "channel").values), axis=1)
    ax.imshow(row.squeeze(-1) if row.shape[-1] == 1 else row, cmap="gray", vmin=0, vmax=255)
    ax.set_xticks([])
    ax.set_yticks([])
    ax.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=8)


def several(tree: xr.DataTree, names: list[str]) -> str | None:
    """The first of some axes that has several values in the study."""
    sizes = tree["rate_distortion"].sizes
    return next((name for name in names if sizes.get(name, 1) > 1), None)


def write(figures: Mapping[str, Figure | None], folder: Path) -> list[Path]:
    """Writes figures by their names, as PNG and SVG; those that are None are left out."""
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
    figure: Any = ax.figure
    return figure.axes == [ax]
