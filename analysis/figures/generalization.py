"""Figures of where generalization is lost, and of what a decoder could reach with any guide."""

from itertools import product
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from pyrovae.analysis.figures.colours import grey
from pyrovae.analysis.figures.style import curves, label_swept, legend, mean_over_runs, shown, swept, titled
from pyrovae.analysis.findings.statistics import error_of_mean
from pyrovae.store.results import Evaluation

#: Line style of either part of the gap.
_PARTS = {"decoder_gap": ("decoder", "-"), "guide_gap": ("guide", "--")}
#: Horizontal distance between the curves, as a factor of β.
_OFFSET = 1.05
#: Line styles by β of the decoders whose curves are drawn.
_LINES = ("-", "--", ":")


def generalization_gap(results: Evaluation, ax: Axes) -> Axes:
    """The parts of decoder (solid) and guide (dashed) in the gap of the ELBO between train and test against β.

    Means over seeds; bars are ± two standard errors over images and runs.
    """
    if "generalization_gap" not in results.tree.children:
        return ax
    runs = results.tree["generalization_gap"].to_dataset()[[f"{part}{se}" for part in _PARTS for se in ("", "_se")]]
    errors = {f"{part}_se": error_of_mean(runs[part], runs[f"{part}_se"]) for part in _PARTS}
    data = mean_over_runs(runs).assign(errors).sortby(swept(runs))
    drawn = list(product(curves(data, "decoder_gap"), _PARTS.items()))
    for number, ((name, cell, colour, shape), (part, (label, line))) in enumerate(drawn):
        look: dict[str, Any] = {"color": colour, "linewidth": 1.2, "markersize": 4, "elinewidth": 1, "capsize": 2}
        along = cell[swept(cell)].values * _OFFSET ** (number - (len(drawn) - 1) / 2)
        error = 2 * cell[f"{part}_se"].values
        ax.errorbar(along, cell[part].values, error, fmt=line + shape, label=f"{label} {name}".strip(), **look)
    if not ax.has_data():
        return ax
    low, high = ax.get_ylim()
    ax.set_ylim(low, high + 0.25 * (high - low))  # for the legend
    ax.axhline(0, color=grey(0.5), linewidth=0.8, linestyle=":")
    label_swept(ax, data)
    ax.set_ylabel("part of ELBO train − ELBO test (nats per image)")
    legend(ax)
    return ax


def fixed_decoder_curve(results: Evaluation, ax: Axes) -> Axes:
    """Rate and distortion that each decoder alone allows on test images (lines), and what guides reach (markers).

    Lines are by annealing, for the lowest β, the one closest to 1 and the highest, one for each seed. They are upper
    bounds of the decoder's rate–distortion curve; a marker above its line shows what the guide costs.
    """
    decoders = results.pictures("fixed_decoder_curve")
    if "decoder_rate" not in decoders:
        return ax
    along = swept(decoders)
    few = shown(decoders[along].values.tolist())
    guides = results.tree["fixed_decoder_curve"].to_dataset().sel({"split": "test", along: few}, drop=True)
    for name, guide, colour, shape in curves(mean_over_runs(guides), "guide_rate"):
        look: dict[str, Any] = {"color": colour, "markersize": 5, "label": f"guide {name}".strip()}
        ax.plot(guide["guide_rate"], guide["guide_distortion"], shape, **look)
        place = {str(axis): guide[axis].item() for axis in guide.coords if axis in decoders.dims and axis != along}
        for value, line in zip(few, _LINES, strict=False):
            label: str | None = ", ".join(filter(None, [f"decoder {name}".strip(), titled(along, value)]))
            curve = decoders.sel(place).sel({along: value}).isel(split=1)
            for values in zip(*(_by_run(curve[f"decoder_{each}"]) for each in ("rate", "distortion")), strict=True):
                ax.plot(*values, line, color=colour, linewidth=0.8, label=label)
                label = None
    low, high = float(guides["guide_distortion"].min()), float(guides["guide_distortion"].max())
    ax.set_xlim(0, 1.08 * float(guides["guide_rate"].max()))
    ax.set_ylim(low - 0.1 * (high - low), high + 0.2 * (high - low))
    ax.set_xlabel("rate R (nats per test image)")
    ax.set_ylabel("distortion D (nats per test image)")
    legend(ax)
    return ax


def _by_run(values: xr.DataArray) -> np.ndarray:
    """Values ``[runs, temperatures]`` of the runs of a setting."""
    return values.transpose(..., "temperature").values.reshape(-1, values.sizes["temperature"])
