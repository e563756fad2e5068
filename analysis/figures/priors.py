"""The figure of priors: what the rate is made of."""

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from pyrovae.analysis.figures.style import COLOURS, panels, several
from pyrovae.analysis.findings.statistics import cells

#: Colours of I and G.
_INFORMATION, _GAP = COLOURS[0], COLOURS[4]
#: Bars this many times as high as the median bar are cut off, and say how high they are.
_CUT = 3.0
#: Most panels of a figure.
MANY = 12


def gap_decomposition(tree: xr.DataTree, ax: Axes) -> Axes:
    """The rate split into mutual information and prior gap, train beside test, by prior or by γ; means over seeds.

    Train is R = I + G under the q(z) of the training images, test the same under that of the test images. The error
    bars are standard errors of the sum over seeds. Under leave-one-out p(z) is q(z) and G of the training images zero,
    though each of them is held to the others alone. Nothing is drawn where the study has one prior and one γ, or G
    is not measured.
    """
    axis = several(tree, ["prior", "gamma"])
    if axis is None:
        return ax
    codes = tree["information"].to_dataset()
    measured = [
        (where, cell.dropna(axis, how="all", subset=["prior_gap"])) for where, cell in cells(codes, {"seed", axis})
    ]
    cut = [(where, cell) for where, cell in measured if cell.sizes[axis] > 1][:MANY]
    if not cut:
        return ax
    columns = min(2, len(cut))
    rows = -(-len(cut) // columns)
    axes = panels(ax, rows, columns, (0.5 + 0.55 * columns * (2 + codes.sizes[axis]), 1 + 2.6 * rows)).flatten()
    for panel in axes[len(cut) :]:
        panel.remove()
    for panel, (where, cell) in zip(axes, cut, strict=False):
        _decomposition(cell, axis, panel)
        panel.set_title(where)
        panel.set_ylabel("nats per image")
    axes[0].legend(fontsize=8)
    return ax


def _decomposition(cell: xr.Dataset, axis: str, ax: Axes) -> None:
    """Stacked bars of I and G for each value of an axis, train filled and test hatched."""
    places = np.arange(cell.sizes[axis])
    bars = []
    for side, prefix in (("train", ""), ("test", "test_")):
        parts = [cell[f"{prefix}{name}"].transpose("seed", axis).values for name in ("mutual_information", "prior_gap")]
        errors = np.sum(parts, axis=0).std(0, ddof=1) / len(cell.seed) ** 0.5 if len(cell.seed) > 1 else None
        bars.append((side, *(part.mean(0) for part in parts), errors))
    totals = np.concatenate([information + gap for _, information, gap, _ in bars])
    top = max(_CUT * np.nanmedian(totals), 1.0)
    for shift, (side, information, gap, errors) in zip((-0.2, 0.2), bars, strict=True):
        look: dict[str, Any] = {"width": 0.38, "edgecolor": "white", "hatch": "" if side == "train" else "////"}
        ax.bar(places + shift, information, color=_INFORMATION, label=f"I {side}", **look)
        whole = information + gap
        cut = whole > top
        ax.bar(places + shift, gap, bottom=information, color=_GAP, label=f"G {side}", **look)
        if errors is not None:
            kept: dict[str, Any] = {"fmt": "none", "ecolor": "0.2", "elinewidth": 0.8, "capsize": 2}
            ax.errorbar((places + shift)[~cut], whole[~cut], errors[~cut], **kept)
        for place, height in zip((places + shift)[cut], whole[cut], strict=True):
            label: dict[str, Any] = {"ha": "center", "va": "top", "fontsize": 7.5, "bbox": {"color": "white", "pad": 1}}
            ax.annotate(f"{height:.0f}", (place, 0.98 * top), **label)
    if (totals > top).any():
        ax.set_ylim(top=top)
    ax.set_ylim(bottom=min(0.0, float(np.nanmin([gap.min() for _, _, gap, _ in bars]))))
    names = [str(value).replace("_", "\n") if axis == "prior" else f"γ = {value:g}" for value in cell[axis].values]
    ax.set_xticks(places, names, fontsize=7.5)
