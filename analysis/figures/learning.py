"""Learning curves."""

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.ticker import ScalarFormatter

from pyrovae.analysis.figures.style import curves, legend, mean_over_runs, panels, shown
from pyrovae.store.results import Evaluation


def learning_curves(results: Evaluation, ax: Axes) -> Axes:
    """D on train (dashed) and test (solid) against the training step, means over seeds, one panel per β.

    Of many β, the lowest, the one closest to 1 and the highest are shown. D is the mean over the first images of each
    split.
    """
    tree = results.tree
    if "curves" not in tree.children or tree["curves/distortion"].isnull().all():
        return ax
    data = mean_over_runs(tree["curves"].to_dataset())
    betas = shown(data.beta.values.tolist())
    row = panels(ax, 1, len(betas), (1 + 3 * len(betas), 3.4), sharey=True)[0]
    for panel, beta in zip(row, betas, strict=True):
        _panel(data.sel(beta=[beta]), panel)
        panel.set_title(f"β = {beta:g}")
    row[0].set_ylabel("distortion D (nats per image)")
    legend(row[-1])
    return ax


def _panel(data: xr.Dataset, panel: Axes) -> None:
    """The curves at one β."""
    for curve in curves(data, "distortion"):
        for split, line in (("train", "--"), ("test", "-")):
            values = curve.data["distortion"].sel(split=split).squeeze("beta")
            values = values[np.isfinite(values.values)]
            label = f"{curve.name} {split}".strip()
            look: dict[str, Any] = {"color": curve.colour, "linewidth": 1.2, "markersize": 4, "label": label}
            panel.plot(values.step, values, line + curve.shape, markevery=0.2, **look)
    panel.set_xlabel("training step")
    panel.set_xscale("symlog", linthresh=1)
    panel.xaxis.set_major_formatter(ScalarFormatter())
