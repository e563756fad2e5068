"""What is kept of each image, and what there is to see of a run: a file for each cohort, read where it is asked for."""

from functools import lru_cache
from io import BytesIO
from math import prod
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray
from xarray.backends import BackendArray
from xarray.core import indexing

from pyrovae.measures.evaluate import Evaluation
from pyrovae.store import hdf
from pyrovae.study.grid import Cohort, Study
from pyrovae.system import atomic, memory

_IMAGES = ["sample", "channel", "row", "column"]
#: The sides of a picture.
PICTURES = {
    **dict.fromkeys(("image", "original", "reconstruction", "memorised", "nearest"), _IMAGES),
    "traversal": ["rank", *_IMAGES],
    "latent": ["rank"],
    "share": ["rank"],
    "z1": ["column"],
    "z2": ["row"],
    "log_q": ["row", "column"],
    "log_p": ["row", "column"],
}
#: The groups that hold pictures.
PICTURED = ("samples", "reconstructions", "traversals", "plane")
#: What is known of each image.
PER_IMAGE = ["distortion", "rate", "log_likelihood", "pareto_k", "annealed_log_likelihood", "memorising_distortion"]
PER_IMAGE += ["reconstruction_distance", "memorising_distance"]
#: The groups whose numbers are here, and their sides beside the axes of the grid.
SIDES = {"images": {name: ["split", "image"] for name in PER_IMAGE}, **dict.fromkeys(PICTURED, PICTURES)}

#: By group and name, the numbers of the runs of a cohort.
Content = dict[str, dict[str, NDArray[Any]]]


def file_of(folder: Path, measurement: str, cohort: str) -> Path:
    """The file of a cohort.

    Args:
        folder: of the study.
        measurement: the name of a later measurement; empty for the study's own.
        cohort: the name of the cohort.
    """
    return folder / "details" / measurement / f"cohort-{cohort}.h5"


def save(file: Path, study: Study, cohort: Cohort, measured: Evaluation) -> None:
    """Writes the details of a cohort as HDF5: variables by group, as in `SIDES` after a dimension for the runs.

    Raises:
        OSError: the file cannot be written; what was there before is whole.
    """
    images = {name: _trimmed(values) for name, values in measured.groups["images"].items()}
    content = BytesIO()
    with h5py.File(content, "w") as file_in_memory:
        file_in_memory.attrs.update(study=study.to_yaml(), cohort=cohort.name)
        file_in_memory["cell"] = [np.ravel_multi_index(study.position(run), study.shape()) for run in cohort.runs]
        for group, variables in {"images": images, **measured.pictures}.items():
            for name, values in variables.items():
                file_in_memory[f"{group}/{name}"] = values
    atomic.write(file, atomic.with_checksum(content.getbuffer()))


def shapes(file: Path, study: Study) -> dict[str, dict[str, tuple[tuple[int, ...], np.dtype[Any]]]]:
    """The shape of each picture of a run in a file, and its numbers' type."""
    _, content = _read(file, file.stat().st_mtime_ns, study.to_yaml())
    return {
        group: {name: (values.shape[1:], values.dtype) for name, values in content[group].items()}
        for group in content.keys() & PICTURED
    }


def _trimmed(values: NDArray[Any]) -> NDArray[Any]:
    """Numbers of images, ``[..., images]``, without images at the end of which nothing is known."""
    known = (~np.isnan(values)).any(axis=tuple(range(values.ndim - 1)))
    return values[..., : len(known) - int(known[::-1].argmax()) if known.any() else 1]


class Grid(BackendArray):
    """A variable over the whole grid, ``[*axes, *sides]``, of which those cohorts are read that are asked for.

    Cells of runs that were not measured are NaN, or 0 where the numbers are bytes.

    Args:
        folder: of the study.
        measurement: as in `file_of`.
        study: the study.
        cohorts: over the axes, the name of the cohort that a run was measured in, empty where it was not yet.
        name: group and name of the variable.
        shape: of its sides.
        dtype: of its numbers.
    """

    def __init__(
        self,
        folder: Path,
        measurement: str,
        study: Study,
        cohorts: NDArray[Any],
        name: tuple[str, str],
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
    ) -> None:
        self._folder, self._measurement, self._study = folder, measurement, study.to_yaml()
        self._cohorts = cohorts
        self._name = name
        self._sides = shape
        self.shape = (*cohorts.shape, *shape)
        self.dtype = dtype

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        # xarray writes −1 for the end of a slice that runs down to the first place, where Python takes it for the last.
        ended = (
            slice(each.start, None, each.step) if isinstance(each, slice) and each.stop == -1 else each
            for each in key.tuple
        )
        key = type(key)(tuple(ended))
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.OUTER, self._get)

    def _get(self, key: tuple[Any, ...]) -> NDArray[Any]:
        """The numbers at integers, slices or lists along each dimension."""
        axes = self._cohorts.ndim
        cells = np.asarray(_at(np.arange(self._cohorts.size).reshape(self._cohorts.shape), key[:axes]))
        blank = np.full(self._sides, 0 if self.dtype.kind == "u" else np.nan, self.dtype)
        one = np.asarray(_at(blank, key[axes:]))
        memory.check_memory(cells.size * one.nbytes, f"{'/'.join(self._name)} of {cells.size:,} runs")
        taken = np.empty((cells.size, *one.shape), self.dtype)
        names = self._cohorts.ravel()[cells.ravel()].astype(str)
        for row in np.argsort(names, kind="stable"):  # one file after the other
            taken[row] = _at(self._of_run(cells.flat[row], blank), key[axes:])
        return taken.reshape((*cells.shape, *one.shape))

    def _of_run(self, cell: int, blank: NDArray[Any]) -> NDArray[Any]:
        """The numbers of one run; blank where it has none, or they are of another size."""
        cohort = self._cohorts.flat[cell]
        file = file_of(self._folder, self._measurement, cohort)
        if not cohort or not file.exists():
            return blank
        rows, content = _read(file, file.stat().st_mtime_ns, self._study)
        group, name = self._name
        values = content.get(group, {}).get(name)
        if values is None or cell not in rows:
            return blank
        found = values[rows[cell]]
        if group == "images":
            padded = blank.copy()
            padded[:, : found.shape[-1]] = found
            return padded
        return found if found.shape == blank.shape else blank


def _at(values: NDArray[Any], key: tuple[Any, ...]) -> NDArray[Any]:
    """Values at a place along each dimension, one dimension after the other."""
    for axis, place in reversed(list(enumerate(key))):
        values = values[(slice(None),) * axis + (place,)]
    return values


@lru_cache(maxsize=8)
def _read(file: Path, changed: int, study: str) -> tuple[dict[int, int], Content]:
    """Where in a file each cell of the grid is, and what is in it.

    Raises:
        InputError: the file is damaged, or of another study.
    """
    with hdf.reading(file, "details") as found:
        if hdf.text(found.attrs["study"], lines=True) != study:
            raise ValueError("it is of another study")
        rows = {int(cell): row for row, cell in enumerate(found["cell"][()])}
        content: Content = {}
        for group in SIDES.keys() & found.keys():
            content[group] = {name: found[group][name][()] for name in SIDES[group].keys() & found[group].keys()}
            for name, values in content[group].items():
                _check(f"{group}/{name}", values, len(rows), len(SIDES[group][name]))
        return rows, content


def _check(name: str, values: NDArray[Any], runs: int, sides: int) -> None:
    if values.ndim != 1 + sides or len(values) != runs or values.dtype.kind not in "uif" or not prod(values.shape):
        raise ValueError(f"{name}: expected numbers of {runs} runs, got {values.dtype} of shape {list(values.shape)}")
