"""The tree of a study's results: groups and variables as the measures declare them, written and read."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import xarray as xr
from numpy.typing import NDArray
from xarray.core import indexing

from pyrovae.errors import InputError
from pyrovae.estimators import pareto_k_threshold
from pyrovae.measures.declared import shipped
from pyrovae.measures.evaluate import Evaluation
from pyrovae.measures.measure import NUMBER_DIMS, RESERVED_GROUPS, Quantity
from pyrovae.store import hdf, records
from pyrovae.study import PER_RUN, Cohort, Study
from pyrovae.study.probes import probe_steps
from pyrovae.system import atomic, memory

SPLITS = ("train", "test")
#: Learning curves, with what they show.
CURVES = {"loss": "D + beta R, at the final beta of a schedule", "distortion": "distortion D", "rate": "rate R"}
#: What is known about every run, with the value that means unknown.
_RUN_FACTS: dict[str, Any] = {
    "status": np.array("pending", dtype=object),
    "diverged_at": -1,
    "last_loss": np.nan,
    "seconds": np.nan,
    **{name: np.array("", dtype=object) for name in ("cohort", "rate_kind", "distortion_kind", "skipped")},
    **{name: np.array("", dtype=object) for name in ("mode", "device", "threads", "versions", "worker")},
}


def empty(study: Study, folder: Path | None = None) -> xr.DataTree:
    """The tree of a study without results: the numbers of the measures that ship, all missing.

    Args:
        folder: of the study, which will hold the details; None if there is none.

    Raises:
        InputError: it would not fit into memory.
    """
    tree = _empty(study, _shipped_numbers())
    attach_details(tree, study, folder or Path())
    return tree


def evaluation(study: Study, prior: str | None = None, only: Sequence[str] = (), sources: str = "") -> xr.DataTree:
    """The tree of a later evaluation without results and without details.

    Args:
        study: with the measure settings of the evaluation.
        prior: the prior that replaces that of each pair, if any.
        only: the measures that are evaluated; all of the study if empty.
        sources: checksums of the user's measures, so that changed code makes another evaluation.
    """
    swapped = {} if prior is None else {"prior": prior}
    chosen = {"only": json.dumps(list(only))} if only else {}
    chosen |= {"sources": sources} if sources else {}
    root = xr.Dataset(attrs={"measure": study.measure.model_dump_json(), **swapped, **chosen})
    return xr.DataTree.from_dict({"/": root, **_unmeasured(study, [] if only else _shipped_numbers())})


def attach_details(tree: xr.DataTree, study: Study, folder: Path, measurement: str = "") -> None:
    """Adds values per image and pictures to a tree, to be read from their files on demand.

    The first file tells their names and sizes; pictures of another size, as of another data set, are left out.

    Args:
        folder: of the study, whose settings the details were measured with.
        measurement: name of a later evaluation; empty for the study's own.
    """
    cohorts, axes = tree["runs"].to_dataset()["cohort"].values, study.dimensions()
    files = [records.file_of(folder, measurement, cohort) for cohort in dict.fromkeys(cohorts.flat) if cohort]
    layouts = next((records.layouts(file, study) for file in files if file.exists()), {})
    per_image = records.per_image(study.measure.per_image)
    groups: dict[str, dict[str, records.Layout]] = {"images": {}} | layouts
    for group, variables in groups.items():
        existing = tree[group].to_dataset() if group in tree.children else xr.Dataset(coords=axes)
        lazy = {}
        for name, layout in (per_image | variables if group == "images" else variables).items():
            if name not in existing or existing[name].attrs.get("source") == "details":
                grid = records.Grid(folder, measurement, study, cohorts, (group, name), layout)
                values: Any = indexing.CopyOnWriteArray(indexing.LazilyIndexedArray(grid))  # type: ignore[arg-type]
                lazy[name] = xr.Variable([*axes, *layout.dims], values, {**layout.attributes, "source": "details"})
        tree[group] = xr.DataTree(existing.assign(lazy))
    images = tree["images"].to_dataset().assign_coords(split=list(SPLITS), image=range(study.measure.per_image))
    images["pareto_k"].attrs["threshold"] = pareto_k_threshold(study.measure.particles)
    tree["images"] = xr.DataTree(images)


def check_size(study: Study) -> None:
    """Raises InputError if the numbers of a study would not fit into memory."""
    runs = prod(study.shape())
    together = prod(len(values) for key, values in study.axes.items() if key in PER_RUN)
    of_images = together * len(records.per_image(1)) * study.measure.per_image
    memory.check_memory(
        8 * len(SPLITS) * (of_images + 3 * runs * study.measure.points), f"measure: the numbers of {runs:,} runs"
    )


def enter(tree: xr.DataTree, study: Study, cohort: Cohort, measured: Evaluation) -> None:
    """Enters the numbers of the runs of a cohort."""
    _add_variables(tree, study, [each for each in measured.quantities if each.is_number], measured.sites)
    for group, variables in measured.groups.items():
        if group == "images":
            continue
        data = tree[group].to_dataset()
        rows = [data["level"].values.tolist().index(site) for site in measured.sites] if "level" in data.dims else []
        for number, run in enumerate(cohort.runs):
            cell: tuple[Any, ...] = study.position(run)
            for name, values in variables.items():
                place = (rows, ..., *cell) if "level" in data[name].dims else (..., *cell)
                data[name].values[place] = values[number]


def quantities(tree: xr.DataTree) -> list[Quantity]:
    """Declarations of the numbers in a tree: those of the measures that ship, and the user's from their attributes."""
    known = {(each.group, each.variable): each for each in _shipped_numbers()}
    found = [each for place, each in known.items() if place[0] in tree.children and place[1] in tree[place[0]]]
    for group in (name for name in tree.children if name not in RESERVED_GROUPS):
        for name, values in tree[group].data_vars.items():
            if (group, str(name)) not in known and "heading" in values.attrs and values.attrs.get("source") is None:
                dims = tuple(str(dim) for dim in values.dims if dim in ("split", "level"))
                found.append(_of_attributes(group, str(name), dims, values.attrs))
    return found


def numbers(group: Any) -> xr.Dataset:
    """A group of a tree without details."""
    data = group.to_dataset(inherit=False)
    return data.drop_vars([name for name, each in data.items() if each.attrs.get("source") == "details"])


def save(tree: xr.DataTree, file: Path) -> None:
    """Writes a tree without the details, which have their own files.

    Raises:
        OSError: the file cannot be written; its previous content is intact.
    """
    nodes = {}
    for node in tree.subtree:
        data = node.to_dataset(inherit=False)
        if numbers(node).data_vars or not data.data_vars:
            nodes[node.path] = numbers(node)
    atomic.write(file, atomic.with_checksum(xr.DataTree.from_dict(nodes).to_netcdf(engine="h5netcdf")))


def load(file: Path, study: Study) -> xr.DataTree:
    """Reads the tree of a study into memory, without the details.

    Raises:
        InputError: the file is damaged, or belongs to another study.
    """
    with hdf.reading(file, "results") as found:
        before = hdf.text(found.attrs["study"], lines=True)
        if before != study.to_yaml():
            raise InputError(
                f"{file}: expected results of the study in study.yaml, got those of another: "
                f"{study.difference(before)}; one of the two files was changed by hand, or is of another version"
            )
        return _loaded(found, study, file.parent)


def side_by_side(trees: Mapping[str, xr.DataTree]) -> xr.DataTree:
    """What the last of some evaluations of a study measured, with an axis ``measured`` of their names."""
    *_, last = trees.values()
    groups = dict.fromkeys(each.group for each in quantities(last))
    joined = {}
    for group in groups:
        parts = {name: numbers(tree[group]) for name, tree in trees.items() if group in tree.children}
        joined[group] = xr.concat(parts.values(), xr.Variable("measured", list(parts)), combine_attrs="override")
    return xr.DataTree.from_dict(joined | {"runs": next(iter(trees.values()))["runs"].to_dataset()})


def _shipped_numbers() -> list[Quantity]:
    return [each for measure in shipped() for each in measure.quantities if each.is_number]


def _empty(study: Study, declared: Sequence[Quantity]) -> xr.DataTree:
    """The tree of a study without results and without details."""
    steps = sorted({step for run in study.runs() for step in probe_steps(run.steps, study.measure.points)})
    coords: dict[str, list[Any]] = {"split": list(SPLITS), "step": steps, **study.dimensions()}
    missing = np.full([len(values) for values in coords.values()], np.nan)
    attributes = {name: {"units": "nats per image", "long_name": text} for name, text in CURVES.items()}
    curves = xr.Dataset({name: (list(coords), missing.copy(), attributes[name]) for name in CURVES}, coords)
    root = xr.Dataset(attrs={"study": study.to_yaml()})
    return xr.DataTree.from_dict({"/": root, **_unmeasured(study, declared), "/curves": curves})


def _unmeasured(study: Study, declared: Sequence[Quantity]) -> dict[str, xr.Dataset]:
    """Missing numbers by group, except those of latent sites, which only a pair knows, and the facts of the runs."""
    check_size(study)
    axes = study.dimensions()
    shape = [len(values) for values in axes.values()]
    runs = {name: (list(axes), np.full(shape, missing)) for name, missing in _RUN_FACTS.items()}
    groups = _grids(study, [each for each in declared if "level" not in each.dims], [])
    return groups | {"/runs": xr.Dataset(runs, axes)}


def _grids(study: Study, declared: Iterable[Quantity], sites: Sequence[str]) -> dict[str, xr.Dataset]:
    """Missing numbers over their dimensions and the axes of the grid, by group."""
    sizes: dict[str, list[Any]] = {"level": list(sites), "split": list(SPLITS), **study.dimensions()}
    groups: dict[str, dict[str, Any]] = {}
    for each in declared:
        dims = [*each.dims, *study.dimensions()]
        for name in each.variables:
            values = np.full([len(sizes[str(dim)]) for dim in dims], np.nan)
            groups.setdefault(each.group, {})[name] = xr.Variable(dims, values, each.attributes(name))
    return {
        f"/{group}": xr.Dataset(found, {dim: sizes[str(dim)] for each in found.values() for dim in each.dims})
        for group, found in groups.items()
    }


def _add_variables(tree: xr.DataTree, study: Study, declared: Iterable[Quantity], sites: Sequence[str]) -> None:
    """Adds missing variables of declared numbers, and missing latent sites."""
    for path, new in _grids(study, declared, sites).items():
        group = path.removeprefix("/")
        existing = tree[group].to_dataset() if group in tree.children else xr.Dataset()
        if "level" in existing.dims:
            known = existing["level"].values.tolist()
            existing = existing.reindex(level=[*known, *(site for site in sites if site not in known)])
        added = new[[name for name in new.data_vars if name not in existing]]
        tree[group] = xr.DataTree(existing.merge(added) if added.data_vars else existing)


def _loaded(found: h5py.Group, study: Study, folder: Path) -> xr.DataTree:
    """The tree of a study with its results; those that the file lacks are missing."""
    tree = _filled(_empty(study, _shipped_numbers()), found, study, folder, "")
    for name in found:
        if re.fullmatch(r"evaluation_[1-9]\d*", name):
            node = found[name]
            measure = json.loads(node.attrs["measure"])
            of = study.replace(**{f"measure.{key}": value for key, value in measure.items()})
            prior, only = (node.attrs.get(key) for key in ("prior", "only"))
            chosen = [] if only is None else [hdf.text(each) for each in json.loads(only)]
            sources = hdf.text(node.attrs.get("sources", ""))
            missing = evaluation(of, None if prior is None else hdf.text(prior), chosen, sources)
            tree[name] = _filled(missing, node, of, folder, name)
    return tree


def _filled(tree: xr.DataTree, found: h5py.Group, study: Study, folder: Path, measurement: str) -> xr.DataTree:
    """A tree with the values in a file, and the details in their folder."""
    sites = [hdf.text(site) for site in found["levels/level"].asstr()[()]] if "levels" in found else []
    known = [each for each in _shipped_numbers() if each.group in found]
    _add_variables(tree, study, [*known, *_declared_in(found, len(study.axes))], sites)
    for group in [name for name in tree.children if name in found]:
        cells = tree[group].to_dataset()
        values = {
            name: each.copy(data=_converted(found[group][name], each))
            for name, each in cells.items()
            if name in found[group]
        }
        tree[group] = xr.DataTree(cells.assign(values))
    for name in set(tree["runs"].to_dataset()["cohort"].values.flat):
        if not re.fullmatch(r"(\d{3,}(-[01])*)?", name):
            raise ValueError(f"expected the name of a cohort, got {name!r:.60}")
    attach_details(tree, study, folder, measurement)
    return tree


def _declared_in(found: h5py.Group, axes: int) -> list[Quantity]:
    """Declarations of the numbers in a file, from their attributes."""
    declared = []
    groups = [name for name in found if isinstance(found[name], h5py.Group) and "measure" not in found[name].attrs]
    for group in (name for name in groups if name not in RESERVED_GROUPS):
        for name, values in found[group].items():
            if "long_name" in values.attrs and not (name.endswith("_se") and name[:-3] in found[group]):
                dims = {len(each): each for each in NUMBER_DIMS}[values.ndim - axes]
                try:
                    declared.append(_of_attributes(group, name, dims, values.attrs))
                except InputError as error:
                    raise ValueError(str(error)) from error
    return declared


def _of_attributes(group: str, name: str, dims: tuple[str, ...], attributes: Mapping[str, Any]) -> Quantity:
    """The declaration that `Quantity.attributes` wrote."""
    shown: dict[str, Any] = {key: str(attributes[key]) for key in ("heading", "format") if key in attributes}
    headline, kind = bool(attributes.get("headline", False)), attributes.get("kind")
    unit, long_name = (str(attributes[key]) for key in ("units", "long_name"))
    return Quantity(name, long_name, unit, kind, dims, group, headline=headline, **shown)


def _converted(values: h5py.Dataset, cell: xr.DataArray) -> NDArray[Any]:
    """Values in the type of the variable that they fill."""
    text = cell.dtype == object
    if not (text or np.can_cast(values.dtype, cell.dtype, "same_kind")):
        raise ValueError(f"{values.name}: expected {cell.dtype}, got {values.dtype}")
    return np.vectorize(hdf.text, otypes=[object])(values.asstr()[()]) if text else values[()].astype(cell.dtype)
