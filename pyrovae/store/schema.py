"""The tree of a study's results, assembled from the records of its runs: a group for each measure, over the grid."""

import json
from collections.abc import Iterable, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from pyrovae.measures.declared import shipped
from pyrovae.measures.measure import RESERVED_GROUPS, Quantity
from pyrovae.store import netcdf
from pyrovae.store.layout import EVALUATIONS
from pyrovae.store.records import CURVES, Record, RecordHeader
from pyrovae.study import Measure, Study
from pyrovae.study.probes import probe_steps
from pyrovae.system import memory

#: What is known about every run, with the value that means unknown.
_RUN_FACTS: dict[str, Any] = {
    "status": "pending",
    "step": -1,
    "measured_step": -1,
    "diverged_at": -1,
    "last_loss": np.nan,
    "seconds": np.nan,
    **dict.fromkeys(("key", "cohort", "rate_kind", "distortion_kind", "skipped"), ""),
    **dict.fromkeys(("mode", "device", "threads", "matmul", "versions", "worker", "classes"), ""),
    **dict.fromkeys(("weights", "measured", "file"), ""),
}


class Grid:
    """Numbers over the grid of a study, entered run by run. Those of other runs are missing.

    Args:
        study: the study.
        declared: numbers that are there even if no run has them.
    """

    def __init__(self, study: Study, declared: Iterable[Quantity] = ()) -> None:
        self._study, self._shape, self._splits = study, study.shape(), list(study.splits)
        self._declared: dict[tuple[str, str], Quantity] = {}
        self._values: dict[tuple[str, ...], NDArray[Any]] = {}  # by group and variable, and site if it has levels
        self._sites: list[str] = []
        self._curves: dict[tuple[int, ...], dict[str, NDArray[Any]]] = {}
        self._seen: set[tuple[str, ...]] = set()
        self._facts = {name: np.full(self._shape, missing, _type(missing)) for name, missing in _RUN_FACTS.items()}
        self._declare(declared, [])

    def enter(self, cell: tuple[int, ...], record: Record, **facts: Any) -> None:
        """Enters the record of a run, and facts about it."""
        header = record.header
        if (seen := (header.quantities, *header.sites)) not in self._seen:
            self._seen.add(seen)
            self._declare(header.declared, header.sites)
        place: Any = (..., *cell)
        for group, variables in record.numbers.items():
            for name, values in variables.items():
                dims = self._declared[group, name].dims
                values = values[..., : len(self._splits)] if "split" in dims else values
                if "level" in dims:
                    for site, each in zip(header.sites, values, strict=True):
                        self._values[group, name, site][place] = each
                else:
                    self._values[group, name][place] = values
        if record.curves:
            self._curves[cell] = record.curves
        known = header.model_dump(include=set(_RUN_FACTS))
        finished = header.step >= self._study.base.steps
        status = ("done" if header.diverged_at < 0 else "diverged") if finished else "pending"
        self.note(cell, **known | facts | {"status": status})

    def note(self, cell: tuple[int, ...], **facts: Any) -> None:
        """Enters facts about a run."""
        for name, value in facts.items():
            self._facts[name][cell] = value

    def groups(self) -> dict[str, xr.Dataset]:
        """The numbers by group, and the facts about the runs."""
        axes = self._study.dimensions()
        coords: dict[str, list[Any]] = {"level": self._sites, "split": self._splits, **axes}
        groups: dict[str, dict[str, xr.Variable]] = {}
        for (group, name), quantity in self._declared.items():
            if "level" in quantity.dims:
                if not self._sites:
                    continue
                values = np.stack([self._values[group, name, site] for site in self._sites])
            else:
                values = self._values[group, name]
            variable = xr.Variable([*quantity.dims, *axes], values, quantity.attributes(name))
            groups.setdefault(group, {})[name] = variable
        found = {
            group: xr.Dataset(each, {str(dim): coords[str(dim)] for variable in each.values() for dim in variable.dims})
            for group, each in groups.items()
        }
        facts = {name: (list(axes), values) for name, values in self._facts.items()}
        return found | {"runs": xr.Dataset(facts, axes)}

    def curves(self, points: int) -> xr.Dataset:
        """The learning curves, over all steps at which some run has a point.

        Args:
            points: points for every tenfold of steps, where no run has any yet.
        """
        steps = {step for each in self._curves.values() for step in each["step"].tolist()}
        steps |= set(probe_steps(self._study.base.steps, points)) if not steps else set()
        coords: dict[str, Any] = {"split": self._splits, "step": sorted(steps), **self._study.dimensions()}
        variables = {}
        for name, (text, unit, of_curve) in CURVES.items():
            dims = [dim for dim in coords if dim in (*of_curve, *self._study.dimensions())]
            values = np.full([len(coords[dim]) for dim in dims], np.nan)
            for cell, curves in self._curves.items():
                place: Any = (..., np.searchsorted(coords["step"], curves["step"]), *cell)
                values[place] = curves[name].T
            variables[name] = (dims, values, {"units": unit, "long_name": text})
        return xr.Dataset(variables, coords)

    def _declare(self, quantities: Iterable[Quantity], sites: Sequence[str]) -> None:
        """Makes room for the numbers that these quantities declare, over these latent sites."""
        self._sites += [site for site in sites if site not in self._sites]
        for quantity in quantities:
            for name in quantity.variables if quantity.is_number else ():
                self._declared.setdefault((quantity.group, name), quantity)
                shape = (*(len(self._splits) for dim in quantity.dims if dim == "split"), *self._shape)
                places = [(site,) for site in self._sites] if "level" in quantity.dims else [()]
                for place in places:
                    self._values.setdefault((quantity.group, name, *place), np.full(shape, np.nan))


def empty(study: Study) -> xr.DataTree:
    """The tree of a study without results: the numbers of the measures that ship, all missing.

    Raises:
        InputError: it would not fit into memory.
    """
    check_size(study)
    return tree_of(study, Grid(study, shipped_numbers()))


def tree_of(study: Study, own: Grid, later: Mapping[str, tuple[Grid, Mapping[str, Any]]] | None = None) -> xr.DataTree:
    """The tree of a study.

    Args:
        own: the numbers that were measured after training.
        later: the numbers of later evaluations, and what they were measured with, by name.
    """
    nodes: dict[str, xr.Dataset] = {"/": xr.Dataset(attrs={"study": study.to_yaml()}), **own.groups()}
    nodes["curves"] = own.curves(study.measure.points)
    for name, (grid, attributes) in (later or {}).items():
        nodes[f"{EVALUATIONS}/{name}"] = xr.Dataset(attrs=dict(attributes))
        nodes |= {f"{EVALUATIONS}/{name}/{group}": data for group, data in grid.groups().items()}
    return xr.DataTree.from_dict(nodes)


def evaluated_with(measure: Measure, only: Sequence[str] = (), prior: str = "", sources: str = "") -> dict[str, str]:
    """What tells a later evaluation from others, as attributes of its node."""
    chosen = json.dumps(list(only)) if only else ""
    found = {"measure": measure.model_dump_json(), "prior": prior, "sources": sources, "only": chosen}
    return {key: value for key, value in found.items() if value}


def attributes_of(header: RecordHeader) -> dict[str, str]:
    """What a record of a later evaluation was made with."""
    return evaluated_with(Measure.model_validate(header.measure), header.only, header.prior, header.sources)


def check_size(study: Study) -> None:
    """Raises InputError if the numbers of a study would not fit into memory."""
    runs, points = prod(study.shape()), len(probe_steps(study.base.steps, study.measure.points))
    numbers = len(study.splits) * (len(CURVES) * points + len(shipped_numbers()))
    of_images = len(study.splits) * study.measure.per_image * sum(each.per_image for each in shipped_numbers())
    memory.check_memory(8 * (numbers * runs + of_images), f"measure: the numbers of {runs:,} runs")


def quantities(tree: xr.DataTree) -> list[Quantity]:
    """Declarations of the numbers in a tree: those of the measures that ship, and the user's from their attributes."""
    known = {(each.group, each.variable): each for each in shipped_numbers()}
    found = [each for place, each in known.items() if place[0] in tree.children and place[1] in tree[place[0]]]
    for group in (name for name in tree.children if name not in RESERVED_GROUPS):
        for name, values in tree[group].data_vars.items():
            if (group, str(name)) not in known and "heading" in values.attrs:
                dims = tuple(str(dim) for dim in values.dims if dim in ("split", "level"))
                found.append(_of_attributes(group, str(name), dims, values.attrs))
    return found


def shipped_numbers() -> list[Quantity]:
    """Declarations of the numbers of the measures that ship."""
    return [each for measure in shipped() for each in measure.quantities if each.is_number]


def save(tree: xr.DataTree, file: Path) -> None:
    """Writes a tree.

    Raises:
        OSError: the file cannot be written; its previous content is intact.
    """
    netcdf.write(file, {node.path: node.to_dataset(inherit=False) for node in tree.subtree})


def load(file: Path) -> xr.DataTree:
    """Reads a tree into memory; errors as in `netcdf.reading`."""
    with netcdf.reading(file, "delete it: it is assembled again from the records of the runs") as opened:
        return xr.DataTree.from_dict(dict(netcdf.groups(opened)))


def side_by_side(trees: Mapping[str, xr.DataTree]) -> xr.DataTree:
    """What the last of some evaluations measured in another way, with an axis ``measured`` of their names.

    Groups whose numbers are the same in all of them are left out.
    """
    *_, last = trees.values()
    groups = dict.fromkeys(each.group for each in quantities(last))
    joined = {}
    for group in groups:
        parts = {name: tree[group].to_dataset() for name, tree in trees.items() if group in tree.children}
        if len(parts) > 1 and all(part.equals(last[group].to_dataset()) for part in parts.values()):
            continue
        joined[group] = xr.concat(parts.values(), xr.Variable("measured", list(parts)), combine_attrs="override")
    return xr.DataTree.from_dict(joined | {"runs": next(iter(trees.values()))["runs"].to_dataset()})


def _of_attributes(group: str, name: str, dims: tuple[str, ...], attributes: Mapping[str, Any]) -> Quantity:
    """The declaration that `Quantity.attributes` wrote."""
    shown: dict[str, Any] = {key: str(attributes[key]) for key in ("heading", "format") if key in attributes}
    headline, kind = bool(attributes.get("headline", False)), attributes.get("kind")
    unit, long_name = (str(attributes[key]) for key in ("units", "long_name"))
    return Quantity(name, long_name, unit, kind, dims, group, headline=headline, **shown)


def _type(missing: Any) -> Any:
    return object if isinstance(missing, str) else type(missing)
