"""Learning curves."""

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.ticker import ScalarFormatter

from pyrovae.analysis.figures.style import curves, legend, mean_over_runs, panels, shown, swept, titled
from pyrovae.store.results import Evaluation

#: Line style of each split.
_LINES = {"train": "--", "validation": ":", "test": "-"}


def learning_curves(results: Evaluation, ax: Axes) -> Axes:
    """D on train (dashed) and test (solid) against the training step, means over seeds, one panel per β.

    Validation images, if there are any, are dotted. Of many β, the lowest, the one closest to 1 and the highest are
    shown. D is the mean over the first images of each split.
    """
    tree = results.tree
    if "curves" not in tree.children or tree["curves/distortion"].isnull().all():
        return ax
    data = mean_over_runs(tree["curves"].to_dataset())
    along = swept(data)
    few = shown(data[along].values.tolist())
    row = panels(ax, 1, len(few), (1 + 3 * len(few), 3.4), sharey=True)[0]
    for panel, value in zip(row, few, strict=True):
        _panel(data.sel({along: [value]}), panel)
        panel.set_title(titled(along, value))
    row[0].set_ylabel("distortion D (nats per image)")
    legend(row[-1])
    return ax


def weight_of_rate(results: Evaluation, ax: Axes) -> Axes:
    """β in force against the training step, as it moves for each target rate, means over seeds."""
    if "curves" not in results.tree.children or "target_rate" not in results.tree["curves"].dims:
        return ax
    data = mean_over_runs(results.tree["curves"].to_dataset()[["weight"]])
    for name, cell, colour, shape in curves(data, "weight"):
        for number, target in enumerate(cell["target_rate"].values):
            values = cell["weight"].sel(target_rate=target).dropna("step")
            label = ", ".join(filter(None, [name, titled("target_rate", target)]))
            line = ("-", "--", ":", "-.")[number % 4]
            ax.plot(values.step, values, line + shape, color=colour, linewidth=1.2, markevery=0.2, label=label)
    if ax.has_data():
        ax.set_xscale("symlog", linthresh=1)
        ax.set_yscale("log")
        ax.set_xlabel("training step")
        ax.set_ylabel("β")
        legend(ax)
    return ax


def _panel(data: xr.Dataset, panel: Axes) -> None:
    """The curves at one β."""
    for curve in curves(data, "distortion"):
        for split, line in _LINES.items():
            if split not in data.split:
                continue
            values = curve.data["distortion"].sel(split=split).squeeze(swept(data))
            values = values[np.isfinite(values.values)]
            label = f"{curve.name} {split}".strip()
            look: dict[str, Any] = {"color": curve.colour, "linewidth": 1.2, "markersize": 4, "label": label}
            panel.plot(values.step, values, line + curve.shape, markevery=0.2, **look)
    panel.set_xlabel("training step")
    panel.set_xscale("symlog", linthresh=1)
    panel.xaxis.set_major_formatter(ScalarFormatter())
