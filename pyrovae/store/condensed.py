"""Values per image, condensed to as few as have the same means with the same errors."""

import numpy as np
import xarray as xr
from numpy.typing import NDArray

#: Variables are condensed together in these families, because findings add them.
FAMILIES = (
    ("distortion", "rate", "joint"),
    ("log_likelihood",),
    ("reconstruction_distance",),
    ("split_log_likelihood",),
    ("inference_gap",),
)


def condensed(images: xr.Dataset) -> xr.Dataset:
    """Fewer values per image, from which every difference of settings has the same mean and the same error.

    The n values of m columns, one for each run and variable, become m + 1 values with the same mean x̄ and the same
    covariance matrix of x̄, S / (n (n − 1)), where S = (x − x̄)ᵀ(x − x̄). They are x̄ + c H R, with S = RᵀR, columns of H
    that are orthonormal and sum to zero, and c² = (m + 1) m / (n (n − 1)). Columns with values that are not finite are
    missing, and where m + 1 ≥ n, the values stay as they are. Other variables, and labels of images, are left out.

    Args:
        images: values per image over the axes of a grid, split and image, as of `Evaluation.images`.

    Example:
        >>> values = np.random.default_rng(0).normal(size=(1000, 2)) @ [[3, 1], [0, 2]]
        >>> few = condensed(xr.Dataset({"distortion": (("image", "beta"), values)}).expand_dims(split=["test"]))
        >>> error = lambda each: each.std("image", ddof=1) / np.sqrt(each.sizes["image"])
        >>> few.sizes["image"], bool(np.isclose(error(few.distortion[..., 0]), values[:, 0].std(ddof=1) / 1000**0.5))
        (3, True)
    """
    parts = []
    for family in FAMILIES:
        if names := [name for name in family if name in images]:
            stacked = images[names].to_array("variable").transpose("split", ..., "image")
            rows = [_few(split.reshape(-1, split.shape[-1]).T) for split in stacked.values]
            most = max(map(len, rows))
            values = np.stack([np.pad(each, ((0, most - len(each)), (0, 0)), constant_values=np.nan) for each in rows])
            shape = (*stacked.shape[:-1], most)
            found = xr.DataArray(values.transpose(0, 2, 1).reshape(shape), dims=stacked.dims)
            coords = {name: each for name, each in stacked.coords.items() if "image" not in each.dims}
            parts.append(found.assign_coords(coords).to_dataset("variable").transpose(*images[names[0]].dims))
    parts = [part.assign_coords(image=range(part.sizes["image"])) for part in parts]
    joined = xr.merge([images.drop_dims("image"), *parts], join="outer")
    return joined.assign({name: each.assign_attrs(images[name].attrs) for name, each in joined.items()})


def _few(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """The rows of a matrix, condensed; rows that are NaN in all columns are left out."""
    x = x[~np.isnan(x).all(1)]
    known = np.isfinite(x).all(0)
    n, m = len(x), int(known.sum())
    if m + 1 >= n:
        return x
    mean = x[:, known].mean(0)
    root = np.linalg.qr(x[:, known] - mean, mode="r")
    contrasts = np.linalg.qr(np.eye(m + 1)[:, :m] - 1 / (m + 1))[0]
    few = np.full((m + 1, x.shape[1]), np.nan)
    few[:, known] = mean + np.sqrt((m + 1) * m / (n * (n - 1))) * contrasts @ root
    return few
