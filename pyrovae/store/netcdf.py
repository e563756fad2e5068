"""netCDF files in which HDF5 verifies every byte: checksums of all values (fletcher32) and of all metadata."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from pyrovae.errors import InputError
from pyrovae.system import atomic, memory


def encoded(groups: Mapping[str, xr.Dataset]) -> memoryview:
    """The content of a netCDF file with these groups, "/" among them.

    netCDF-4 is HDF5 with a dimension scale for each dimension. Written by h5py, the twenty variables of a record take
    a fifth of the time that h5netcdf takes. HDF5 verifies metadata in the formats of version 1.10, except for
    attributes of more than 4 KiB, so that long text has to be a variable.
    """
    file = BytesIO()
    with h5py.File(file, "w", libver="v110", track_order=True) as opened:
        for path, data in groups.items():
            _fill(opened if path == "/" else opened.create_group(path, track_order=True), data)
    return file.getbuffer()


def _fill(group: h5py.Group, data: xr.Dataset) -> None:
    """Writes a dataset to a group."""
    _describe(group, data.attrs)
    items = {}
    for name, variable in data.variables.items():
        is_text = variable.dtype.kind in "UO"
        values = np.char.encode(variable.values.astype(str), "utf-8") if is_text else variable.values
        # Values of some images only are followed by NaN, which compression makes small.
        options = {"chunks": values.shape, **_CHECKED} if values.size else {}
        items[name] = group.create_dataset(name, data=values, track_order=True, **options)
        # By this attribute, xarray reads text and not bytes.
        _describe(items[name], {**variable.attrs, **({"_Encoding": "utf-8"} if is_text else {})})
    for dim, size in data.sizes.items():
        if dim in items:
            items[dim].make_scale(dim)
        else:
            items[dim] = group.create_dataset(dim, (size,), ">f4", track_order=True)
            items[dim].make_scale(f"{_NOT_A_VARIABLE}{size:10d}")
    for name, variable in data.variables.items():
        if variable.dims != (name,):
            for axis, dim in enumerate(variable.dims):
                items[name].dims[axis].attach_scale(items[dim])


def write(file: Path, groups: Mapping[str, xr.Dataset]) -> None:
    """Writes a netCDF file atomically.

    Raises:
        OSError: the file cannot be written; an earlier file of this name is unchanged.
    """
    atomic.write(file, encoded(groups))


#: How netCDF marks a dimension without coordinates.
_NOT_A_VARIABLE = "This is a netCDF dimension but not a netCDF variable."
#: Options of a variable.
_CHECKED: Mapping[str, Any] = {
    "fletcher32": True,
    "shuffle": True,
    "compression": "gzip",
    "compression_opts": 1,
}
#: Attributes by which netCDF describes dimensions and missing values.
_LAYOUT = {
    "CLASS",
    "NAME",
    "DIMENSION_LIST",
    "REFERENCE_LIST",
    "_Netcdf4Dimid",
    "_Netcdf4Coordinates",
    "_FillValue",
    "_NCProperties",
    "_Encoding",
}


@contextmanager
def reading(file: Path, remedy: str) -> Iterator[h5py.File]:
    """Opens a file, of which the block reads what it needs.

    Args:
        remedy: what to do if the file is damaged, for the message.

    Raises:
        FileNotFoundError: there is no such file.
        InputError: the file is damaged, or the block failed to read it.
    """
    memory.check_memory(2 * file.stat().st_size, str(file))
    try:
        with h5py.File(file, "r") as opened:
            yield opened
    except InputError:
        raise
    except Exception as error:  # h5py raises many types of error on damaged files
        if memory.is_out_of_memory(error):
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{file}: expected results, but the file is damaged ({reason[:200]}); {remedy}") from error


def groups(group: h5py.Group) -> Iterator[tuple[str, xr.Dataset]]:
    """The groups of a file by path, in memory, several times as fast as by xarray."""
    variables, items = {}, {name: group[name] for name in group}  # items() has None for what it cannot open
    names = {item: name for name, item in items.items()}  # HDF5 takes long to find the name of an object
    for name, item in items.items():
        if isinstance(item, h5py.Group) or (item.is_scale and item.attrs["NAME"].startswith(_NOT_A_VARIABLE.encode())):
            continue
        dims = [name] if item.is_scale else [names[dim[0]] for dim in item.dims]
        values = item.asstr("utf-8")[()] if h5py.check_string_dtype(item.dtype) else item[()]
        variables[name] = xr.Variable(dims, values, attributes(item))
    yield group.name, xr.Dataset(variables, attrs=attributes(group))
    for item in items.values():
        if isinstance(item, h5py.Group):
            yield from groups(item)


def attributes(item: h5py.Group | h5py.Dataset) -> dict[str, Any]:
    """Attributes as text and numbers, without those that are about the layout of the file."""
    return {name: _plain(item.attrs[name]) for name in item.attrs if name not in _LAYOUT}


def text(values: NDArray[Any]) -> list[str]:
    """Text that `encoded` wrote."""
    return [each.decode() for each in values.tolist()]


def _describe(item: h5py.Group | h5py.Dataset, attributes: Mapping[str, Any]) -> None:
    """Adds attributes; text is of fixed length, which is stored with the metadata and verified with them."""
    for name, value in attributes.items():
        if isinstance(value, str):
            content = value.encode()
            value = np.array(content, h5py.string_dtype("utf-8", max(1, len(content))))
        item.attrs[name] = value


def _plain(value: Any) -> Any:
    value = value.item() if isinstance(value, np.generic | np.ndarray) else value
    return value.decode() if isinstance(value, bytes) else value
