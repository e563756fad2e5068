"""Figures: pure functions of the results."""

from collections.abc import Iterator
from itertools import cycle, product
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pyrovae.files import replacing

# Okabe and Ito's colours, which colour-blind readers can tell apart, from dark to light for readers of grey.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "pyrovae",
}


def save(tree: xr.DataTree, folder: Path) -> list[Path]:
    """Draws the figures of a study as PNG and SVG."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(6.4, 4.8), layout="constrained")
        rate_distortion(tree, figure.subplots())
        files = [folder / f"rate_distortion.{suffix}" for suffix in ("png", "svg")]
        for file in files:
            with replacing(file) as beside:
                figure.savefig(beside, format=file.suffix[1:], dpi=150, metadata=_metadata(file))
    return files


def rate_distortion(tree: xr.DataTree, ax: Axes) -> Axes:
    """The rate–distortion plane: train (open, dashed) and test (filled, solid), β = 1 as a star, means over seeds.

    Lines of constant R + D (the negative ELBO) and the floor are drawn behind; β stands beside the test points.
    """
    data = tree["/rate_distortion"].to_dataset().mean("seed", skipna=True).sortby("beta")
    labels: list[tuple[float, float, str, str]] = []
    for (name, cell), colour in zip(_curves(data), cycle(_COLOURS), strict=False):
        for split, line, face in (("train", "--", "white"), ("test", "-", colour)):
            rate, distortion = (cell[each].sel(split=split).values for each in ("rate", "distortion"))
            ax.plot(rate, distortion, line, color=colour, linewidth=1.2, label=f"{name} {split}".strip(), zorder=2)
            for r, d, beta in zip(rate, distortion, cell.beta.values, strict=True):
                star = beta == 1
                ax.plot(
                    r,
                    d,
                    "*" if star else "o",
                    color=colour,
                    markersize=11 if star else 5,
                    markerfacecolor=face,
                    zorder=3,
                )
                if split == "test" and np.isfinite(r):
                    labels.append((r, d, f"{beta:g}", colour))
    ax.set_xlabel("rate R (nats per image)")
    ax.set_ylabel("distortion D (nats per image)")
    floor = float(data["floor"].sel(split="test").mean())
    if np.isfinite(floor):
        ax.axhline(floor, color="0.5", linewidth=0.8, linestyle=":", label="floor (test)")
    ax.margins(0.08)
    _lines_of_constant_sum(ax)
    ax.legend(loc="upper right")
    _place_labels(ax, labels)
    return ax


def _curves(data: xr.Dataset) -> Iterator[tuple[str, xr.Dataset]]:
    """One curve over β for every combination of the other axes."""
    held = [str(dim) for dim in data["rate"].dims if dim not in ("split", "beta")]
    for values in product(*(data[dim].values.tolist() for dim in held)):
        place = dict(zip(held, values, strict=True))
        yield ", ".join(f"{dim} {value}" for dim, value in place.items()), data.sel(place)


def _lines_of_constant_sum(ax: Axes) -> None:
    (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
    for total in matplotlib.ticker.MaxNLocator(8).tick_values(left + bottom, right + top):
        ax.plot([left, right], [total - left, total - right], color="0.88", linewidth=0.7, zorder=0)
    ax.set_xlim(left, right)
    ax.set_ylim(bottom, top)


def _place_labels(ax: Axes, labels: list[tuple[float, float, str, str]]) -> None:
    """Writes β beside the points, each label at the first place around its point that is still free."""
    figure: Any = ax.figure
    figure.draw_without_rendering()
    renderer = figure.canvas.get_renderer() if hasattr(figure.canvas, "get_renderer") else None
    legend = ax.get_legend()
    taken = [legend.get_window_extent(renderer)] if legend else []
    for r, d, text, colour in labels:
        for radius, angle in [(radius, angle) for radius in (9, 16, 24, 34) for angle in range(45, 405, 45)]:
            offset = (radius * np.cos(np.deg2rad(angle)), radius * np.sin(np.deg2rad(angle)))
            label = ax.annotate(
                text, (r, d), offset, textcoords="offset points", ha="center", va="center", color=colour, fontsize=8
            )
            box = label.get_window_extent(renderer)
            if not any(box.overlaps(other) for other in taken):
                break
            label.remove()
        else:
            label = ax.annotate(text, (r, d), color=colour, fontsize=8)
            box = label.get_window_extent(renderer)
        taken.append(box)


def _metadata(file: Path) -> dict[str, Any]:
    # A date would make the same figure a different file.
    return {"Date": None} if file.suffix == ".svg" else {}
