"""The numbers that findings are tested on, cell by cell of a study's grid."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import xarray as xr

from pyrovae.analysis.findings.statistics import REPEATED, effect
from pyrovae.analysis.findings.verdicts import UNFINISHED, Contrast
from pyrovae.measures.likelihood import is_loose
from pyrovae.store.results import Evaluation
from pyrovae.study import Study
from pyrovae.training.target_rate import TOLERANCE

#: Symbols of axes.
SYMBOLS = {"beta": "β", "gamma": "γ", "target_rate": "R*"}
#: Values per image, and numbers of a run, that findings are tested on.
PER_IMAGE = ("distortion", "rate", "log_likelihood", "reconstruction_distance")
#: Values per image that only some studies have.
ON_REQUEST = ("split_log_likelihood", "inference_gap", "joint")
PER_RUN = ("mutual_information", "log_n", "prior_gap", "prior_gap_se")


@dataclass(frozen=True)
class StudyCells:
    """Numbers of the finished runs of a study, or of a later evaluation of it.

    Those of other runs, and of runs that have missed their target rate, are missing.

    Attributes:
        images: values per image, over split, image and the axes of the grid.
        information: mutual information and prior gap per run; ``loose``, whether the bound of log p(x) may be;
            ``diverged``, whether training has; and ``missed``, whether it has missed its target rate.
        prior_swapped: whether the prior was replaced after training, so that the axis ``prior`` names the old one.
        margin: the size below which a difference has no meaning, as a share of the mean.
        sources: what errors cover.
    """

    images: xr.Dataset
    information: xr.Dataset
    prior_swapped: bool
    margin: float
    sources: str

    @classmethod
    def of(cls, results: Evaluation) -> "StudyCells":
        """The cells of the results of a study, or of a later evaluation of it."""
        runs, information, likelihood = (_group(results, name) for name in ("runs", "information", "likelihood"))
        missed, images = missed_targets(results.tree.root), results.images()
        done = (runs["status"] == "done") & ~missed
        missing = (tuple(images.sizes), np.full(tuple(images.sizes.values()), np.nan))
        images = images.assign({name: missing for name in PER_IMAGE if name not in images})
        images = images[[*PER_IMAGE, *(name for name in ON_REQUEST if name in images)]].where(done)
        information = information[list(PER_RUN)].where(done)
        flags = {"diverged": runs["status"] == "diverged", "missed": missed, "loose": is_loose(likelihood)}
        information = information.assign(flags)
        study = Study.of_yaml(results.tree.root.attrs["study"])
        return cls(images, information, "prior" in results.tree.attrs, study.margin, sources_of_error(study))

    def values(self, axis: str) -> list[Any]:
        """The values of an axis in ascending order; empty if the study has no such axis."""
        return sorted(self.images[axis].values.tolist()) if axis in self.images.dims else []

    def along(self, axis: str, split: str | list[str] = "test", **at: Any) -> Iterator[tuple[str, xr.Dataset]]:
        """Each cell within which only one axis varies, apart from seeds and images, and its name.

        Args:
            axis: the axis that varies.
            split: "test" or "train", or both as a list.
            at: values at which other axes are fixed.
        """
        data = self.images.sel(split=split, drop=True).merge(self.information).sel(at, drop=True)
        varying = (*REPEATED, "split", "image", axis)
        return cells(data, [str(dim) for dim in data["distortion"].dims if dim not in varying])

    def contrast(
        self,
        where: str,
        values: xr.DataArray,
        axis: str,
        weights: Mapping[Any, float],
        *,
        unit: str = "nats",
        **terms: Any,
    ) -> Contrast:
        """The contrast of settings along an axis: arguments as of `effect`, and terms for the text of the finding."""
        found = effect(values, axis, weights, self.margin)
        return Contrast(where, found, "" if np.isfinite(found.estimate) else UNFINISHED, unit, terms)


def comparable(cell: xr.Dataset, axis: str) -> tuple[xr.Dataset, str]:
    """The settings along an axis that compare, if there are two, and a clause that names the others.

    Settings do not compare if a run has diverged or missed its target rate.
    """
    clauses = []
    for flag, reason in (("diverged", "of which a run diverged"), ("missed", "of which a run missed its target rate")):
        left_out = cell[flag].any([dim for dim in cell[flag].dims if dim != axis])
        if left_out.any() and (~left_out).sum() > 1:
            clauses.append(f"without {', '.join(map(plain, cell[axis].values[left_out].tolist()))}, {reason}")
            cell = cell.sel({axis: ~left_out})
    return cell, ", and ".join(clauses)


def missed_targets(study: xr.DataTree) -> xr.DataArray:
    """Which runs of a study have missed their target rate, on training images and under their own prior."""
    status = study["runs"].to_dataset()["status"]
    if "target_rate" not in status.dims:
        return xr.zeros_like(status, dtype=bool)
    rate = study["rate_distortion"].to_dataset()["rate"].sel(split="train", drop=True)
    return abs(rate - status["target_rate"]) > TOLERANCE * status["target_rate"]


def _group(results: Evaluation, name: str) -> xr.Dataset:
    """The numbers of a group; those of the study, if a later evaluation applied other measures only."""
    tree = results.tree if name in results.tree.children else results.tree.root
    return tree[name].to_dataset()


def sources_of_error(study: Study) -> str:
    """What the error of a difference between settings of a study covers.

    Example:
        >>> sources_of_error(Study(name="mine", seed=[0, 1, 2]))
        'images and 3 seeds, for this training set'
        >>> sources_of_error(Study(name="mine", seed=[0, 1, 2], data_seed="seed"))
        'images and 3 seeds with training sets of their own'
        >>> sources_of_error(Study(name="mine", seed=[0, 1], data_seed=[0, 1, 2]))
        'images, 2 seeds and 3 training sets'
        >>> sources_of_error(Study(name="mine"))
        'images only'
    """
    own = " with training sets of their own" if study.base.data_seed == "seed" else ""
    counts = {name: len(study.axes.get(axis, ())) for axis, name in (("seed", "seeds"), ("data_seed", "training sets"))}
    varied = [f"{count} {name}" for name, count in counts.items() if count > 1]
    if not varied:
        return "images only"
    over = f"images, {' and '.join(varied)}" if len(varied) > 1 else f"images and {varied[0]}{own}"
    return over if own or counts["training sets"] > 1 else f"{over}, for this training set"


def cells(data: xr.Dataset, axes: Iterable[str]) -> Iterator[tuple[str, xr.Dataset]]:
    """The data at every combination of values of some axes, and the name of the combination."""
    axes = list(axes)
    for values in product(*(data[axis].values.tolist() for axis in axes)):
        place = dict(zip(axes, values, strict=True))
        yield ", ".join(f"{_named(axis)} {plain(value)}" for axis, value in place.items()), data.sel(place)


def plain(value: Any) -> str:
    """A value of an axis in text.

    Example:
        >>> plain(1.0), plain(0.1), plain("flow")
        ('1', '0.1', 'flow')
    """
    return str(value).removesuffix(".0") if isinstance(value, float) else str(value)


def _named(axis: str) -> str:
    return f"{SYMBOLS[axis]} =" if axis in SYMBOLS else axis
