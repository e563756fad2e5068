"""The record of a run: its numbers, learning curves, values per image and pictures, and what they were made from."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import xarray as xr
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Json

from pyrovae.errors import InputError
from pyrovae.measures.evaluate import Groups, Measurements
from pyrovae.measures.measure import PER_IMAGE_DIMS, Quantity
from pyrovae.store import netcdf
from pyrovae.study import EVERY_SPLIT

#: Version of the layout of a record.
FORMAT = 1
#: Learning curves: what they show, their unit and dimensions.
CURVES = {
    "loss": ("D + beta R, at the final beta of a schedule", "nats per image", ("step", "split")),
    "distortion": ("distortion D", "nats per image", ("step", "split")),
    "rate": ("rate R", "nats per image", ("step", "split")),
    "weight": ("weight beta of the rate in force", "1", ("step",)),
}
#: What to do about a damaged record.
REMEDY = "delete it, and 'pyrovae run' measures the run again"


class RecordHeader(BaseModel):
    """What a record says of its run: attributes of the file, and declarations.

    Attributes:
        format: version of the layout of the file.
        key: of the run.
        run: settings of the run.
        step: steps that the run had done.
        measured_step: step of the weights that were measured; −1 in records of earlier versions.
        weights: checksum of the weights that were measured.
        measure: settings of the measurement.
        only: measures that were applied; all of the study if empty.
        prior: the prior that replaces that of the pair, if any.
        sources: checksums of the user's measures.
        diverged_at: the step at which the run diverged; −1 if it did not.
        last_loss: the last finite loss.
        seconds: duration of the training of the cohort; NaN if it was not trained by this process.
        cohort: key of the runs that it was trained with.
        skipped: what was not measured and why.
        rate_kind, distortion_kind: how R and D were computed.
        mode, device, threads, matmul, versions, worker: provenance.
        classes: the names of the classes of the data set, by label.
        quantities: declarations of what was measured, as JSON.
        sites: latent sites.
    """

    model_config = ConfigDict(frozen=True)
    format: int = FORMAT
    key: str
    run: Json[dict[str, Any]]
    step: int
    measured_step: int = -1
    weights: str
    measure: Json[dict[str, Any]]
    only: Json[list[str]]
    prior: str = ""
    sources: str = ""
    diverged_at: int
    last_loss: float
    seconds: float = np.nan
    cohort: str
    skipped: str
    rate_kind: str = ""
    distortion_kind: str = ""
    mode: str
    device: str
    threads: str
    matmul: str = ""
    versions: str
    worker: str
    classes: str = ""
    quantities: str
    sites: Json[list[str]]

    @property
    def declared(self) -> tuple[Quantity, ...]:
        """Declarations, without caveats, of what was measured."""
        return _declared(self.quantities)


@dataclass(frozen=True)
class Record:
    """The numbers of a run.

    Attributes:
        numbers: by group and variable, ``[]``, ``[split]`` or ``[level, split]``, for every split that a run may have.
        curves: ``step``, ``[points]``, and the learning curves by name, ``[points, split]`` or ``[points]``; empty for
            a later evaluation.
    """

    header: RecordHeader
    numbers: Groups
    curves: dict[str, NDArray[Any]]


def header_of(measured: Measurements, **facts: Any) -> RecordHeader:
    """The header of a record; ``facts`` as the fields of `RecordHeader`."""
    structured = {key: facts.pop(key) for key in ("run", "measure", "only")} | {"sites": measured.sites}
    facts |= {key: json.dumps(each) for key, each in structured.items()}
    return RecordHeader(**facts, skipped=measured.note, quantities=_as_json(measured.quantities))


def save(file: Path, header: RecordHeader, measured: Measurements, curves: Mapping[str, NDArray[Any]]) -> None:
    """Writes the record of a run.

    Raises:
        OSError: the file cannot be written; an earlier file of this name is unchanged.
    """
    labels = list(_labels(measured))
    values = [measured.numbers[group][name][place] for _, group, name, place in labels]
    named = {"quantity": [label for label, *_ in labels]}
    declarations = ("record", [header.quantities])
    groups = {
        "/": xr.Dataset(attrs=header.model_dump(round_trip=True, exclude={"quantities"})),
        "numbers": xr.Dataset({"value": ("quantity", np.array(values, float)), "declarations": declarations}, named),
    }
    if curves:
        data = {name: (dims, curves[name], {"long_name": text}) for name, (text, _, dims) in CURVES.items()}
        groups["curves"] = xr.Dataset(data, {"step": curves["step"], "split": measured.splits})
    if measured.images:
        stacked = np.stack(list(measured.images.values()))
        coords = {"name": list(measured.images), "split": measured.splits}
        groups["images"] = xr.Dataset({"value": (("name", *PER_IMAGE_DIMS), stacked)}, coords)
    declared = {(each.group, each.variable): each for each in measured.quantities if each.is_picture}
    for group, pictures in measured.pictures.items():
        groups[group] = xr.Dataset(
            {
                name: (declared[group, name].dims, values, declared[group, name].attributes(name))
                for name, values in pictures.items()
            }
        )
    netcdf.write(file, groups)


def load_header(file: Path) -> RecordHeader:
    """The header of a record.

    Raises:
        FileNotFoundError: there is no such file.
        InputError: the file is damaged, or of another format.
    """
    with netcdf.reading(file, REMEDY) as opened:
        return _header(opened)


def load(file: Path) -> Record:
    """The numbers and learning curves of a run; errors as in `load_header`."""
    with netcdf.reading(file, REMEDY) as opened:
        header = _header(opened)
        found = dict(zip(netcdf.text(opened["numbers/quantity"][()]), opened["numbers/value"][()], strict=True))
        numbers: Groups = {}
        for quantity in header.declared:
            for name in quantity.variables if quantity.is_number else ():
                shape = [{"split": len(EVERY_SPLIT), "level": len(header.sites)}[dim] for dim in quantity.dims]
                values = np.full(shape, np.nan)
                for label, place in _places(quantity, name, header.sites, EVERY_SPLIT):
                    values[place] = found.get(label, np.nan)
                numbers.setdefault(quantity.group, {})[name] = values
        curves = {name: opened["curves"][name][()] for name in ("step", *CURVES)} if "curves" in opened else {}
        return Record(header, numbers, curves)


def load_images(file: Path) -> dict[str, NDArray[Any]]:
    """The values per image of a run by name, ``[split, images]``; errors as in `load_header`."""
    with netcdf.reading(file, REMEDY) as opened:
        if "images" not in opened:
            return {}
        return dict(zip(netcdf.text(opened["images/name"][()]), opened["images/value"][()], strict=True))


def load_pictures(file: Path, group: str) -> dict[str, xr.Variable]:
    """The pictures and curves of a group by name; errors as in `load_header`."""
    with netcdf.reading(file, REMEDY) as opened:
        if group not in opened:
            return {}
        declared = _header(opened).declared
        return {
            each.variable: xr.Variable(each.dims, opened[group][each.variable][()], each.attributes(each.variable))
            for each in declared
            if each.is_picture and each.group == group and each.variable in opened[group]
        }


def _header(opened: h5py.File) -> RecordHeader:
    attributes = netcdf.attributes(opened)
    if (found := attributes.get("format")) != FORMAT:
        raise InputError(
            f"{opened.filename}: expected a record of format {FORMAT}, got {found}; open it with the version of "
            "pyrovae that wrote it, or a later one"
        )
    (quantities,) = netcdf.text(opened["numbers/declarations"][()])
    return RecordHeader.model_validate(attributes | {"quantities": quantities})


def _labels(measured: Measurements) -> Iterator[tuple[str, str, str, tuple[int, ...]]]:
    """For each number, its label, and its group, variable and place in the array."""
    for quantity in measured.quantities:
        for name in quantity.variables if quantity.is_number else ():
            if name in measured.numbers.get(quantity.group, {}):
                for label, place in _places(quantity, name, measured.sites, measured.splits):
                    yield label, quantity.group, name, place


def _places(
    quantity: Quantity, name: str, sites: list[str], splits: Sequence[str]
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The label and the place of each number of a variable, such as ``rate_distortion/distortion/test``."""
    names = [{"split": splits, "level": sites}[dim] for dim in quantity.dims]
    for place in np.ndindex(*map(len, names)):
        yield "/".join([quantity.group, name, *(each[at] for each, at in zip(names, place, strict=True))]), place


@lru_cache(maxsize=64)
def _declared(text: str) -> tuple[Quantity, ...]:
    return tuple(Quantity(**each | {"dims": tuple(each["dims"])}) for each in json.loads(text))


@lru_cache(maxsize=64)
def _as_json(quantities: tuple[Quantity, ...]) -> str:
    return json.dumps(
        [{name: value for name, value in asdict(each).items() if name != "caveats"} for each in quantities]
    )
