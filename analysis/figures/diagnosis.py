"""Figures of a diagnosis: the marginals of guide and posterior, the inference gap, and predictive checks."""

import warnings
from collections.abc import Hashable, Mapping
from typing import Any

import arviz_plots
import numpy as np
import xarray as xr
from arviz_base.labels import BaseLabeller
from matplotlib import pyplot
from matplotlib.figure import Figure

from pyrovae.analysis.diagnosis.diagnose import Diagnosis, codes
from pyrovae.analysis.figures.style import COLOURS

#: Most images and latents of which marginals are drawn.
IMAGES, LATENTS = 6, 8
#: The same colours for guide and posterior, and both parts of the gap, as everywhere.
_COLOURS = list(COLOURS[:2])


class _Panel(BaseLabeller):
    """Titles of panels of one image and latent each."""

    def make_label_vert(self, var_name: str | None, sel: Mapping[Any, Hashable], isel: Mapping[Any, Any]) -> str:
        return f"image {sel['image']}, {sel['latent']}"


def marginals(found: Diagnosis) -> Figure:
    """Marginal densities of q(z|x) and p(z|x), images in rows, with the latents in which their means differ most."""
    shift = abs(found.summary["shift"]).max("image")
    latents = sorted(shift.argsort().values[::-1][:LATENTS])
    images = slice(None, IMAGES)
    models = {}
    for name, data in (("posterior p(z|x)", found.exact), ("guide q(z|x)", found.guide)):
        drawn = codes(data).isel(latent=latents, image=images)
        samples = drawn.values.reshape(1, -1, *drawn.shape[2:])
        coords = {"image": drawn.image, "latent": drawn.latent}
        flat = xr.DataArray(samples, coords, ["chain", "draw", "image", "latent"], "z")
        models[name] = xr.DataTree.from_dict({"posterior": flat.to_dataset()})
    rows, columns = drawn.sizes["image"], drawn.sizes["latent"]
    visuals: Any = dict.fromkeys(("credible_interval", "point_estimate", "point_estimate_text"), False)
    plots = arviz_plots.plot_dist(
        models,
        backend="matplotlib",
        labeller=_Panel(),
        visuals=visuals | {"title": {"size": 9}},
        col_wrap=columns,
        aes={"color": ["model"], "linestyle": ["model"]},
        color=_COLOURS,
        linestyle=["-", "--"],
        figure_kwargs={"figsize": (1.8 * columns + 0.6, 1.6 * rows + 0.6)},
    )
    plots.add_legend("model", title="", loc="outside upper center", ncols=2)
    return _finished(plots)


def inference_gap(found: Diagnosis) -> Figure | None:
    """The gap of each image, approximation and amortisation one on the other; None where it was not measured."""
    gap = found.summary
    if gap["amortisation"].isnull().all():
        return None
    figure = Figure(figsize=(max(3.2, 1 + 0.7 * gap.sizes["image"]), 3.2), layout="constrained")
    ax = figure.subplots()
    places, none = np.arange(gap.sizes["image"]), np.zeros(gap.sizes["image"])
    bottoms = (none, gap["approximation"].values.clip(min=0))
    look: dict[str, Any] = {"width": 0.6, "edgecolor": "white", "ecolor": "0.2", "capsize": 3}
    for name, bottom, colour, hatch in zip(
        ("approximation", "amortisation"), bottoms, _COLOURS, ("", "////"), strict=True
    ):
        ax.bar(places, gap[name], bottom=bottom, yerr=gap[f"{name}_se"], label=name, color=colour, hatch=hatch, **look)
    ax.axhline(0, color="0.3", linewidth=0.8)
    ax.set_xticks(places, [str(image) for image in gap["image"].values])
    ax.set_xlabel("image")
    ax.set_ylabel("log p(x) − ELBO (nats)")
    figure.legend(loc="outside upper center", ncols=2, fontsize=8)
    return figure


def predictive_checks(statistics: xr.DataTree, group: str = "prior_predictive") -> Figure:
    """PIT of statistics of images, as the difference of its distribution from the uniform one.

    Before version 1 arviz_plots draws a band that 99% of uniform ones stay in; from then on it marks what is not
    uniform, and writes the probability of as much.

    Args:
        statistics: as `predictive_statistics` gives them.
        group: whose draws the images are held to.
    """
    number = len(statistics[group].data_vars)
    with warnings.catch_warnings():
        # It says that the check is made with the data: with those of the images at hand, as it has to be.
        warnings.filterwarnings("ignore", "This plot always uses", UserWarning)
        plots = arviz_plots.plot_ppc_pit(
            statistics,
            group=group,
            backend="matplotlib",
            col_wrap=number,
            figure_kwargs={"figsize": (2.4 * number, 2.4), "sharey": False},
        )
    figure = _finished(plots)
    figure.suptitle(f"{group.replace('_', ' ')} check", fontsize=10)
    return figure


def _finished(plots: arviz_plots.PlotCollection) -> Figure:
    """The figure that arviz_plots has drawn, laid out, and no longer held by pyplot."""
    figure = plots.viz["figure"].item()
    figure.set_layout_engine("constrained")
    pyplot.close(figure)
    return figure
