"""The numbers that findings are tested on, cell by cell of a study's grid."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import xarray as xr

from pyrovae.measures.likelihood import is_loose
from pyrovae.store.results import Evaluation

#: Values per image, and numbers of a run, that findings are tested on.
PER_IMAGE = ("distortion", "rate", "log_likelihood", "reconstruction_distance")
PER_RUN = ("mutual_information", "log_n", "prior_gap", "prior_gap_se")


@dataclass(frozen=True)
class StudyCells:
    """Numbers of the finished runs of a study, or of a later evaluation of it. Those of other runs are missing.

    Attributes:
        images: values per image, over split, image and the axes of the grid.
        information: mutual information and prior gap per run, and ``loose``, whether the bound of log p(x) may be.
        prior_swapped: whether the prior was replaced after training, so that the axis ``prior`` names the old one.
    """

    images: xr.Dataset
    information: xr.Dataset
    prior_swapped: bool

    @classmethod
    def of(cls, results: Evaluation) -> "StudyCells":
        """The cells of the results of a study, or of a later evaluation of it."""
        runs, information, likelihood = (
            results.tree[group].to_dataset() for group in ("runs", "information", "likelihood")
        )
        done, images = runs["status"] == "done", results.images()
        missing = (tuple(images.sizes), np.full(tuple(images.sizes.values()), np.nan))
        images = images.assign({name: missing for name in PER_IMAGE if name not in images})[list(PER_IMAGE)].where(done)
        information = information[list(PER_RUN)].where(done).assign(loose=is_loose(likelihood))
        return cls(images, information, "prior" in results.tree.attrs)

    def values(self, axis: str) -> list[Any]:
        """The values of an axis in ascending order; empty if the study has no such axis."""
        return sorted(self.images[axis].values.tolist()) if axis in self.images.dims else []

    def along(self, axis: str, split: str = "test", **at: Any) -> Iterator[tuple[str, xr.Dataset]]:
        """Each cell within which only one axis varies, apart from seeds and images, and its name.

        Args:
            axis: the axis that varies.
            split: "test" or "train".
            at: values at which other axes are fixed.
        """
        data = self.images.sel(split=split, drop=True).merge(self.information).sel(at, drop=True)
        varying = ("seed", "image", axis)
        return cells(data, [str(dim) for dim in data["distortion"].dims if dim not in varying])


def cells(data: xr.Dataset, axes: Iterable[str]) -> Iterator[tuple[str, xr.Dataset]]:
    """The data at every combination of values of some axes, and the name of the combination."""
    axes = list(axes)
    for values in product(*(data[axis].values.tolist() for axis in axes)):
        place = dict(zip(axes, values, strict=True))
        yield ", ".join(f"{axis} {value}" for axis, value in place.items()), data.sel(place)
