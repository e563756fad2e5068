"""Predictive checks: do images or vectors drawn from a model resemble the data in simple statistics?"""

from collections.abc import Callable
from typing import Any

import numpy as np
import xarray as xr

from pyrovae.analysis.inference_data import DIMS
from pyrovae.errors import UnsupportedError

#: Groups of `inference_data` with images.
GROUPS = ("observed_data", "posterior_predictive", "prior_predictive")
#: Dimensions of vectors that are checked one by one.
SHOWN = 5


def image_statistics(x: xr.DataArray) -> xr.Dataset:
    """Amount, position, spread and hue of the ink in images.

    With the brightness b, the mean over channels of max(x, 0): ink Σ b, in pixels; row and column of its centre
    Σ b · position / Σ b; spread, the root mean squared distance from the centre, in pixels; and, with three channels,
    the hue of their sums, in [0, 1) from red through green and blue. Without ink, the centre is the middle of the
    image, and spread and hue are 0.

    Sums over many pixels hardly distinguish grey pixels from binary ones with the same mean. Under continuous noise, as
    of a Gaussian likelihood, they mostly measure the noise, and other statistics are more informative.

    Args:
        x: images over the dimensions channel, row and column, and any others.

    Example:
        >>> x = np.zeros((1, 3, 4, 4))
        >>> x[0, 1, 2, 1] = 1.0  # one green pixel
        >>> statistics = image_statistics(xr.DataArray(x, dims=["image", "channel", "row", "column"]))
        >>> {name: round(value.item(), 2) for name, value in statistics.items()}
        {'ink': 0.33, 'row': 2.0, 'column': 1.0, 'spread': 0.0, 'hue': 0.33}
    """
    bright = x.clip(min=0)
    ink = bright.mean("channel")
    profiles = {"row": ink.sum("column"), "column": ink.sum("row")}
    total = profiles["row"].sum("row")
    statistics, variance = {"ink": total}, xr.zeros_like(total)
    for dim, profile in profiles.items():
        position = xr.DataArray(np.arange(x.sizes[dim], dtype=float), dims=dim)
        mean = (profile * position).sum(dim) / total
        variance = variance + (profile * (position - mean) ** 2).sum(dim) / total
        statistics[dim] = mean.where(total > 0, float(position.mean()))
    statistics["spread"] = (variance**0.5).where(total > 0, 0.0)
    if x.sizes["channel"] == 3:
        red, green, blue = (bright.sum(["row", "column"]).isel(channel=channel, drop=True) for channel in range(3))
        angle = xr.apply_ufunc(np.arctan2, 3**0.5 * (green - blue), 2 * red - green - blue)
        statistics["hue"] = angle / (2 * np.pi) % 1
    return xr.Dataset(statistics)


def vector_statistics(x: xr.DataArray, dimensions: int | None = None) -> xr.Dataset:
    """The first values of vectors, x0, x1, …, and their total over all dimensions.

    Whole numbers become integers, whose ties a PIT orders at random.

    Args:
        x: vectors over the dimension pixel, and any others.
        dimensions: how many of them the model draws, the first; the rest, such as an offset, is given.

    Example:
        >>> counts = xr.DataArray([[3.0, 0.0, 2.5], [1.0, 4.0, 0.5]], dims=["image", "pixel"])
        >>> {name: values.values.tolist() for name, values in vector_statistics(counts, dimensions=2).items()}
        {'x0': [3, 1], 'x1': [0, 4], 'total': [3, 5]}
    """
    x = x.isel(pixel=slice(dimensions))
    if bool((x == x.round()).all()):
        x = x.astype(int)
    first = {f"x{number}": x.isel(pixel=number, drop=True) for number in range(min(SHOWN, x.sizes["pixel"]))}
    return xr.Dataset({**first, "total": x.sum("pixel")})


def predictive_statistics(
    data: xr.DataTree, statistics: Callable[[xr.DataArray], xr.Dataset] | None = None
) -> xr.DataTree:
    """Statistics of observed and drawn images, in groups for the predictive checks of arviz_plots.

    The posterior predictive check compares an image x with draws x' ~ p(x|z), z ~ q(z|x). It shows what is
    reconstructed badly, but is too lenient to test calibration, because q has seen x. The prior predictive check
    compares x with draws from p(x). For unseen images from the model, the probability integral transform (PIT), the
    share of draws below an image's value, is uniform.

    Args:
        data: from `inference_data`.
        statistics: images → numbers per image, by name; by default those of `image_statistics` or `vector_statistics`.

    Raises:
        UnsupportedError: there is not exactly one observed site, or its values are neither images with channels nor
            vectors.

    Example:
        >>> import torch
        >>> from pyrovae import Run, make_pair
        >>> from pyrovae.analysis.inference_data import inference_data
        >>> pair = make_pair(Run(depth=1, width=8, latent_size=2), (1, 8, 8))
        >>> checks = predictive_statistics(inference_data(pair, torch.rand(3, 1, 8, 8), draws=20))
        >>> dict(checks["prior_predictive"]["ink"].sizes)
        {'chain': 1, 'draw': 20, 'image': 3}
    """
    shapes = [values.dims for values in data["observed_data"].data_vars.values()]
    known: dict[Any, Callable[[xr.DataArray], xr.Dataset]] = {
        ("image", *DIMS): image_statistics,
        ("image", "pixel"): vector_statistics,
    }
    if len(shapes) != 1 or shapes[0] not in known:
        wanted = f"image, {', '.join(DIMS)}, or image, pixel"
        raise UnsupportedError(f"expected one observed site over {wanted}, got {shapes}")
    statistics = statistics or known[shapes[0]]
    groups = {}
    for group in GROUPS:
        (images,) = data[group].data_vars.values()
        groups[group] = statistics(images)
    return xr.DataTree.from_dict(groups)
