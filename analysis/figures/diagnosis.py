"""Figures of a diagnosis: marginals of guide and posterior, the inference gap, and predictive checks."""

import warnings
from collections.abc import Hashable, Mapping
from typing import Any

import arviz_plots
import numpy as np
import xarray as xr
from arviz_base.labels import BaseLabeller
from matplotlib import pyplot
from matplotlib.figure import Figure

from pyrovae.analysis.diagnosis.diagnose import Diagnosis, latents
from pyrovae.analysis.figures.colours import COLOURS

#: Maximum number of images and latents in the figure of marginals.
MAX_IMAGES, MAX_LATENTS = 6, 8
#: Colours of posterior and guide, and of the two parts of the gap.
_COLOURS = list(COLOURS[:2])


class _Labeller(BaseLabeller):
    """Titles of panels that each show one image and one latent."""

    def make_label_vert(self, var_name: str | None, sel: Mapping[Any, Hashable], isel: Mapping[Any, Any]) -> str:
        return f"image {sel['image']}, {sel['latent']}"


def marginals(diagnosis: Diagnosis) -> Figure:
    """Marginal densities of q(z|x) and p(z|x), images in rows, for the latents whose means differ most."""
    shift = abs(diagnosis.summary["shift"]).max("image")
    shown = {"latent": sorted(shift.argsort().values[::-1][:MAX_LATENTS]), "image": slice(None, MAX_IMAGES)}
    draws = {
        "posterior p(z|x)": latents(diagnosis.exact).isel(shown),
        "guide q(z|x)": latents(diagnosis.guide).isel(shown),
    }
    rows, columns = (draws["guide q(z|x)"].sizes[dim] for dim in ("image", "latent"))
    visuals: Any = dict.fromkeys(("credible_interval", "point_estimate", "point_estimate_text"), False)
    plots = arviz_plots.plot_dist(
        {name: _as_one_chain(each) for name, each in draws.items()},
        backend="matplotlib",
        labeller=_Labeller(),
        visuals=visuals | {"title": {"size": 9}},
        col_wrap=columns,
        aes={"color": ["model"], "linestyle": ["model"]},
        color=_COLOURS,
        linestyle=["-", "--"],
        figure_kwargs={"figsize": (1.8 * columns + 0.6, 1.6 * rows + 0.6)},
    )
    plots.add_legend("model", title="", loc="outside upper center", ncols=2)
    return _detached(plots)


def inference_gap(diagnosis: Diagnosis) -> Figure | None:
    """Approximation and amortisation gap of each image, stacked; None if they were not measured."""
    gap = diagnosis.summary
    if gap["amortisation"].isnull().all():
        return None
    figure = Figure(figsize=(max(3.2, 1 + 0.7 * gap.sizes["image"]), 3.2), layout="constrained")
    ax = figure.subplots()
    positions = np.arange(gap.sizes["image"])
    bottoms = (np.zeros(len(positions)), gap["approximation"].values.clip(min=0))
    look: dict[str, Any] = {"width": 0.6, "edgecolor": "white", "ecolor": "0.2", "capsize": 3}
    for name, bottom, colour, hatch in zip(
        ("approximation", "amortisation"), bottoms, _COLOURS, ("", "////"), strict=True
    ):
        error = gap[f"{name}_se"]
        ax.bar(positions, gap[name], bottom=bottom, yerr=error, label=name, color=colour, hatch=hatch, **look)
    ax.axhline(0, color="0.3", linewidth=0.8)
    ax.set_xticks(positions, [str(image) for image in gap["image"].values])
    ax.set_xlabel("image")
    ax.set_ylabel("log p(x) − ELBO (nats)")
    figure.legend(loc="outside upper center", ncols=2, fontsize="small")
    return figure


def predictive_checks(statistics: xr.DataTree, group: str = "prior_predictive") -> Figure:
    """Distribution of the PIT of image statistics, minus the uniform distribution.

    Before version 1, arviz_plots draws a band that contains 99% of uniform samples; from version 1 on it marks
    deviations from uniformity and prints a p-value.

    Args:
        statistics: from `predictive_statistics`.
        group: the draws that the images are compared with, "prior_predictive" or "posterior_predictive".
    """
    number = len(statistics[group].data_vars)
    with warnings.catch_warnings():
        # It warns that the check uses the observed data, which is intended here.
        warnings.filterwarnings("ignore", "This plot always uses", UserWarning)
        plots = arviz_plots.plot_ppc_pit(
            statistics,
            group=group,
            backend="matplotlib",
            col_wrap=number,
            figure_kwargs={"figsize": (2.4 * number, 2.4), "sharey": False},
        )
    figure = _detached(plots)
    figure.suptitle(f"{group.replace('_', ' ')} check", fontsize=10)
    return figure


def _as_one_chain(draws: xr.DataArray) -> xr.DataTree:
    """All draws as one chain, so that guide and posterior have equal shapes."""
    flat = draws.values.reshape(1, -1, *draws.shape[2:])
    coords = {"image": draws.image, "latent": draws.latent}
    z = xr.DataArray(flat, coords, ["chain", "draw", "image", "latent"], "z")
    return xr.DataTree.from_dict({"posterior": z.to_dataset()})


def _detached(plots: arviz_plots.PlotCollection) -> Figure:
    """The figure of arviz_plots, closed in pyplot, which would keep it in memory."""
    figure = plots.viz["figure"].item()
    figure.set_layout_engine("constrained")
    pyplot.close(figure)
    return figure
