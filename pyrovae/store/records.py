"""Values per image and pictures of the runs of a cohort: one file each, loaded on demand."""

from collections.abc import Mapping
from functools import lru_cache
from io import BytesIO
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
from numpy.typing import NDArray
from xarray.backends import BackendArray
from xarray.core import indexing

from pyrovae.measures.declared import shipped
from pyrovae.measures.evaluate import Evaluation, Groups
from pyrovae.measures.measure import PER_IMAGE_DIMS, RESERVED_GROUPS, Quantity
from pyrovae.store import hdf
from pyrovae.study import Cohort, Study
from pyrovae.system import atomic, memory


class Layout(NamedTuple):
    """How a variable of one run is laid out.

    Attributes:
        dims: its dimensions.
        shape: its shape.
        dtype: type of its values.
        attributes: its unit and long name.
    """

    dims: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    attributes: Mapping[str, str]


def per_image(images: int) -> dict[str, Layout]:
    """The values per image of the measures that ship, for so many images of a split."""
    declared = [each for measure in shipped() for each in measure.quantities if _is_per_image(each)]
    shape, dtype = (2, images), np.dtype(float)
    return {each.name: Layout(PER_IMAGE_DIMS, shape, dtype, each.attributes(each.variable)) for each in declared}


def picture_groups() -> set[str]:
    """The groups of pictures of the measures that ship."""
    return {each.group for measure in shipped() for each in measure.quantities if _is_picture(each)}


def _is_per_image(quantity: Quantity) -> bool:
    return quantity.per_image or quantity.dims == PER_IMAGE_DIMS


def _is_picture(quantity: Quantity) -> bool:
    return not quantity.is_number and quantity.dims != PER_IMAGE_DIMS


def file_of(folder: Path, measurement: str, cohort: str) -> Path:
    """The file of a cohort.

    Args:
        folder: of the study.
        measurement: the name of a later measurement; empty for the study's own.
        cohort: the name of the cohort.
    """
    return folder / "details" / measurement / f"cohort-{cohort}.h5"


def save(file: Path, study: Study, cohort: Cohort, measured: Evaluation) -> None:
    """Writes values per image and pictures as HDF5, by group and variable, ``[runs, ...]``.

    Raises:
        OSError: the file cannot be written; its previous content is intact.
    """
    images = {name: _trimmed(values) for name, values in measured.groups.get("images", {}).items()}
    declared = {("images", each.name): each for each in measured.quantities if _is_per_image(each)}
    declared |= {(each.group, each.variable): each for each in measured.quantities if _is_picture(each)}
    content = BytesIO()
    with h5py.File(content, "w") as opened:
        opened.attrs.update(study=study.to_yaml(), cohort=cohort.name)
        opened["cell"] = [np.ravel_multi_index(study.position(run), study.shape()) for run in cohort.runs]
        for group, variables in {"images": images, **measured.pictures}.items():
            for name, values in variables.items():
                quantity = declared[group, name]
                opened[f"{group}/{name}"] = values
                dims = PER_IMAGE_DIMS if group == "images" else quantity.dims
                opened[f"{group}/{name}"].attrs.update(
                    dims=" ".join(dims), units=quantity.unit, long_name=quantity.long_name
                )
    atomic.write(file, atomic.with_checksum(content.getbuffer()))


def layouts(file: Path, study: Study) -> dict[str, dict[str, Layout]]:
    """The layout of each variable in a file, for one run, by group."""
    _, content, attributes = _read(file, file.stat().st_mtime_ns, study.to_yaml())
    found: dict[str, dict[str, Layout]] = {}
    for (group, name), (dims, known) in attributes.items():
        values = content[group][name]
        shape = (2, study.measure.per_image) if group == "images" else values.shape[1:]
        found.setdefault(group, {})[name] = Layout(dims, shape, values.dtype, known)
    return found


def _trimmed(values: NDArray[Any]) -> NDArray[Any]:
    """Numbers of images, ``[..., images]``, without images at the end of which nothing is known."""
    known = (~np.isnan(values)).any(axis=tuple(range(values.ndim - 1)))
    return values[..., : len(known) - int(known[::-1].argmax()) if known.any() else 1]


class Grid(BackendArray):
    """A variable over the whole grid, ``[*axes, *dims]``, which reads the cohorts that are asked for.

    Cells of runs that were not measured are NaN, or 0 if the values are bytes.

    Args:
        folder: of the study.
        measurement: as in `file_of`.
        study: the study.
        cohorts: over the axes, the cohort that a run was measured in; empty if it was not measured.
        name: group and name of the variable.
        layout: its layout for one run.
    """

    def __init__(
        self,
        folder: Path,
        measurement: str,
        study: Study,
        cohorts: NDArray[Any],
        name: tuple[str, str],
        layout: Layout,
    ) -> None:
        self._folder, self._measurement, self._study = folder, measurement, study.to_yaml()
        self._cohorts = cohorts
        self._name = name
        self._cell_shape = layout.shape
        self.shape = (*cohorts.shape, *layout.shape)
        self.dtype = layout.dtype

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
        blank = np.full(self._cell_shape, 0 if self.dtype.kind == "u" else np.nan, self.dtype)
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
        rows, content, _ = _read(file, file.stat().st_mtime_ns, self._study)
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


Attributes = dict[tuple[str, str], tuple[tuple[str, ...], dict[str, str]]]


@lru_cache(maxsize=8)
def _read(file: Path, changed: int, study: str) -> tuple[dict[int, int], Groups, Attributes]:
    """The row of each cell of the grid in a file, its values by group and name, and their dimensions and attributes.

    Raises:
        InputError: the file is damaged, or belongs to another study.
    """
    with hdf.reading(file, "details") as found:
        if hdf.text(found.attrs["study"], lines=True) != study:
            raise ValueError("it belongs to another study")
        rows = {int(cell): row for row, cell in enumerate(found["cell"][()])}
        content: Groups = {}
        attributes: Attributes = {}
        for group in found.keys() - {"cell"}:
            content[group] = {name: values[()] for name, values in found[group].items()}
            for name, values in content[group].items():
                attributes[group, name] = _attributes(group, name, found[group][name].attrs)
                _check(f"{group}/{name}", values, len(rows), len(attributes[group, name][0]))
        return rows, content, attributes


def _attributes(group: str, name: str, attributes: Mapping[str, Any]) -> tuple[tuple[str, ...], dict[str, str]]:
    """Dimensions and attributes of a variable in a file."""
    dims = tuple(hdf.text(attributes["dims"]).split())
    own = group if group == "images" or group not in RESERVED_GROUPS else ""
    if not all(each.isidentifier() for each in (own, name, *dims)) or (own == "images") != (dims == PER_IMAGE_DIMS):
        raise ValueError(f"{group}/{name}: expected other names than {', '.join(map(repr, dims))}")
    return dims, {key: hdf.text(attributes[key]) for key in ("units", "long_name")}


def _check(name: str, values: NDArray[Any], runs: int, dims: int) -> None:
    if values.ndim != 1 + dims or len(values) != runs or values.dtype.kind not in "uif" or not prod(values.shape):
        raise ValueError(f"{name}: expected numbers of {runs} runs, got {values.dtype} of shape {list(values.shape)}")
