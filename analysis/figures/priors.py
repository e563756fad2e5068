"""The rate of different priors, split into mutual information and prior gap."""

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from pyrovae.analysis.figures.colours import COLOURS, grey, visible
from pyrovae.analysis.figures.style import first_varying, panels
from pyrovae.analysis.findings.cells import cells
from pyrovae.analysis.findings.statistics import REPEATED, repeated
from pyrovae.store.results import Evaluation

#: Colours of I and G.
_INFORMATION, _GAP = COLOURS[0], COLOURS[4]
#: Bars more than this many times as high as the median bar are cut off and labelled with their height.
_CUT = 3.0
#: With more bars than this in a panel, their names are vertical.
MANY = 6
#: Maximum number of panels.
MAX_PANELS = 12


def gap_decomposition(results: Evaluation, ax: Axes) -> Axes:
    """The rate split into mutual information and prior gap, for train and test, by prior or by γ; means over seeds.

    On train, R = I + G under the q(z) of the training images; on test, under that of the test images. Error bars are
    standard errors of the sum over seeds. With a leave-one-out prior, G of the training images is zero, because
    p(z) = q(z), although each image is scored against the other ones only. Nothing is drawn if the study has a single
    prior and γ, or if G is not measured.
    """
    axis = first_varying(results.tree, ["prior", "gamma"])
    if axis is None:
        return ax
    codes = results.tree["information"].to_dataset()
    axes_of_panels = [str(dim) for dim in codes["prior_gap"].dims if dim not in (*REPEATED, axis)]
    measured = [
        (where, cell.dropna(axis, how="all", subset=["prior_gap"])) for where, cell in cells(codes, axes_of_panels)
    ]
    compared = [(where, cell) for where, cell in measured if cell.sizes[axis] > 1][:MAX_PANELS]
    if not compared:
        return ax
    columns = min(2, len(compared))
    rows = -(-len(compared) // columns)
    axes = panels(ax, rows, columns, (0.5 + 0.55 * columns * (2 + codes.sizes[axis]), 1 + 2.6 * rows)).flatten()
    for panel in axes[len(compared) :]:
        panel.remove()
    for panel, (where, cell) in zip(axes, compared, strict=False):
        _decomposition(cell, axis, panel)
        panel.set_title(where)
        panel.set_ylabel("nats per image")
    axes[0].set_ylim(top=1.3 * axes[0].get_ylim()[1])  # for the legend
    axes[0].legend(fontsize="small", loc="upper right", ncols=2, frameon=True, framealpha=1, edgecolor="none")
    return ax


def _decomposition(cell: xr.Dataset, axis: str, ax: Axes) -> None:
    """Stacked bars of I and G for each value of an axis, train filled and test hatched."""
    splits = {"train": _parts(cell, axis, ""), "test": _parts(cell, axis, "test_")}
    means = {split: parts.mean(1) for split, parts in splits.items()}
    top = max(_CUT * np.nanmedian([each.sum(0) for each in means.values()]), 1.0)
    positions = np.arange(cell.sizes[axis])
    for shift, (split, (information, gap)) in zip((-0.2, 0.2), means.items(), strict=True):
        look: dict[str, Any] = {"width": 0.38, "edgecolor": grey(0), "hatch": "" if split == "train" else "////"}
        ax.bar(positions + shift, information, color=visible(_INFORMATION), label=f"I {split}", **look)
        ax.bar(positions + shift, gap, bottom=information, color=visible(_GAP), label=f"G {split}", **look)
        _errors_or_heights(splits[split].sum(0), positions + shift, top, ax)
    if any((each.sum(0) > top).any() for each in means.values()):
        ax.set_ylim(top=top)
    ax.set_ylim(bottom=min(0.0, float(np.nanmin([gap.min() for _, gap in means.values()]))))
    names = [str(value).replace("_", "\n") if axis == "prior" else f"γ = {value:g}" for value in cell[axis].values]
    ax.set_xticks(positions, names, fontsize="small", rotation=90 if len(names) > MANY else 0)


def _parts(cell: xr.Dataset, axis: str, prefix: str) -> np.ndarray:
    """I and G of a split, ``[2, runs, values of the axis]``."""
    names = (f"{prefix}mutual_information", f"{prefix}prior_gap")
    return np.stack([cell[name].stack(run=repeated(cell[name])).transpose("run", axis).values for name in names])


def _errors_or_heights(totals: np.ndarray, positions: np.ndarray, top: float, ax: Axes) -> None:
    """Error bars at the heights of bars, ``[seeds, bars]``, and the heights as text where they exceed the top."""
    heights, seeds = totals.mean(0), len(totals)
    cut = heights > top
    if seeds > 1:
        errors = totals.std(0, ddof=1) / seeds**0.5
        look: dict[str, Any] = {"fmt": "none", "ecolor": grey(0.8), "elinewidth": 0.8, "capsize": 2}
        ax.errorbar(positions[~cut], heights[~cut], errors[~cut], **look)
    for position, height in zip(positions[cut], heights[cut], strict=True):
        label: dict[str, Any] = {"ha": "center", "va": "top", "fontsize": "small", "bbox": {"color": grey(0), "pad": 1}}
        ax.annotate(f"{height:.0f}", (position, 0.98 * top), **label)
