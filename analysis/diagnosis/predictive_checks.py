"""Predictive checks: whether images drawn from a model are like the data in what one would look at."""

from collections.abc import Callable

import numpy as np
import xarray as xr

from pyrovae.analysis.inference_data import SIDES
from pyrovae.errors import UnsupportedError

#: The groups of an `inference_data` that hold images.
GROUPS = ("observed_data", "posterior_predictive", "prior_predictive")


def image_statistics(x: xr.DataArray) -> xr.Dataset:
    """What one would look at in an image: how much ink, where, how far spread, and in which colour.

    With the brightness b, the mean over channels of max(x, 0): ink Σ b in pixels; row and column of its centre
    Σ b · place / Σ b, and spread, the root of its mean squared distance from there, in pixels; and of three channels
    the hue of their sums, in [0, 1) from red over green and blue. Sums over many pixels hardly tell grey pixels from
    binary ones that have them as their mean; under continuous noise, as of a Gaussian likelihood, they are those of the
    noise, and statistics of one's own say more. Without ink the centre is the middle, and spread and hue are 0.

    Args:
        x: images over dimensions channel, row and column, and any others.

    Example:
        >>> x = np.zeros((1, 3, 4, 4))
        >>> x[0, 1, 2, 1] = 1.0  # one green pixel
        >>> found = image_statistics(xr.DataArray(x, dims=["image", "channel", "row", "column"]))
        >>> {name: round(value.item(), 2) for name, value in found.items()}
        {'ink': 0.33, 'row': 2.0, 'column': 1.0, 'spread': 0.0, 'hue': 0.33}
    """
    bright = x.clip(min=0)
    ink = bright.mean("channel")
    total = ink.sum(["row", "column"])
    places = {side: xr.DataArray(np.arange(x.sizes[side], dtype=float), dims=side) for side in ("row", "column")}
    found, variance = {"ink": total}, xr.zeros_like(total)
    for side, place in places.items():
        mean = (ink * place).sum(["row", "column"]) / total
        variance = variance + (ink * (place - mean) ** 2).sum(["row", "column"]) / total
        found[side] = mean.where(total > 0, float(place.mean()))
    found["spread"] = (variance**0.5).where(total > 0, 0.0)
    if x.sizes["channel"] == 3:
        red, green, blue = (bright.sum(["row", "column"]).isel(channel=channel, drop=True) for channel in range(3))
        found["hue"] = xr.apply_ufunc(np.arctan2, 3**0.5 * (green - blue), 2 * red - green - blue) / (2 * np.pi) % 1
    return xr.Dataset(found)


def predictive_statistics(
    data: xr.DataTree, statistics: Callable[[xr.DataArray], xr.Dataset] = image_statistics
) -> xr.DataTree:
    """Statistics of observed and drawn images, as groups that the checks of arviz_plots take.

    The posterior predictive check holds a draw x' ~ p(x|z), z ~ q(z|x), to the image x that it came from: it shows
    whether reconstructions are off, and is too kind to be a calibration, as q has seen x. The prior predictive check
    holds it to draws from p(x): over images that the model has not seen, the share of draws below each image's own
    value, the probability integral transform, is uniform if they come from the model.

    Args:
        data: an `inference_data`.
        statistics: images → one number each, or several by name.

    Raises:
        UnsupportedError: there is not exactly one observed site, or its values are no images with channels.

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
    if shapes != [("image", *SIDES)]:
        raise UnsupportedError(f"expected one observed site over image, {', '.join(SIDES)}, got {shapes}")
    found = {}
    for group in GROUPS:
        (images,) = data[group].data_vars.values()
        found[group] = statistics(images)
    return xr.DataTree.from_dict(found)
