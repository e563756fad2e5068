"""Data in memory: tensors, arrays and torch data sets, which a run names by a checksum of what is in them."""

import hashlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from pyrovae import parts
from pyrovae.data import Source
from pyrovae.errors import InputError
from pyrovae.parts import MEMORY
from pyrovae.system import tensor_file

#: The file in the folder of a study that keeps its data, and the most bytes that are kept.
FILE, LIMIT = "data.safetensors", 200_000_000
#: The data known to this process, by name: those in memory, or the file that keeps them, which is read when used.
_KNOWN: dict[str, Source | Path] = {}
#: Numbers of channels by which images with channels last are recognised.
COLOURS = (1, 3)
#: Largest standard deviation of a column, relative to 1 and to the smallest, without a warning.
SCALES = 30
_COLUMNS = ("factors", "labels", "published")


def settings_of(x: Any, test: Any = None, labels: Any = None, factors: Any = None) -> dict[str, str]:
    """The settings by which a run names data, which are then known to this process.

    Args:
        x: images ``[N, H, W]``, ``[N, C, H, W]`` or ``[N, H, W, C]``, or vectors ``[N, D]``: a tensor, an array, a
            torch data set (whose items may have a label) or a `Source`; or the name or the path of a data set.
            uint8 means pixels from 0 to 255, which programs see in [0, 1]; all other numbers are used unscaled.
        test: the test images, in the same form; None for data that a split divides.
        labels: class of each item, integers ≥ 0, ``[N]``; with ``test``, a pair of those of x and those of ``test``.
        factors: known factors of variation in [0, 1], ``[N, factors]``; with ``test``, also a pair.

    Raises:
        InputError: they are of another type, shape or length, or not finite.

    Example:
        >>> settings_of(torch.zeros(5, 1, 8, 8), test=np.zeros((2, 8, 8)))
        {'data': 'memory-5a0c008e7e1aa623', 'split': 'published'}
        >>> settings_of("photos/")
        {'data': 'photos/'}
    """
    if x is None:
        raise InputError("data: expected training images with the test images, got none")
    if isinstance(x, str | Path) and test is None and labels is None and factors is None:
        return {"data": str(x)}
    given = {"data": x} if test is None else {"data": x, "test": test}
    first, *more = (source_of(each, name) for name, each in given.items())
    for name, column in {"labels": labels, "factors": factors}.items():
        if column is not None:
            first, *more = _with_column((first, *more), name, column)
    source = _joined(first, *more) if more else first
    name = f"{MEMORY}{_checksum(source)}"
    _KNOWN[name] = source
    return {"data": name} | ({} if source.published is None else {"split": "published"})


def batch_size(settings: Mapping[str, Any], most: int) -> int:
    """The size of a batch, if it is not set: ``most``, or all training images of data in memory if they are fewer."""
    source = _KNOWN.get(settings["data"])
    if not isinstance(source, Source):
        return most
    if source.published is not None:
        return min(most, int(source.published.sum()))
    return max(
        1,
        min(
            most,
            int(source.size * settings.get("train_ratio", parts.settings_of("split", "random")["train_ratio"].default)),
        ),
    )


def find(name: str) -> Source:
    """The data with a name that `settings_of` gave.

    Raises:
        InputError: they are not known to this process.
    """
    known = _KNOWN.get(name)
    if known is None:
        raise InputError(
            f"data: expected the data in memory of this study, {name}, which are not kept in its folder; give them "
            "with pyrovae.open_results(folder, data=x, test=x_test)"
        )
    if isinstance(known, Path):
        known = _KNOWN[name] = _read(known, name)
    return known


def keep(folder: Path, name: str) -> None:
    """Writes data in memory to the folder of a study, unless they are there or take more than `LIMIT` bytes."""
    file = folder / FILE
    if not name.startswith(MEMORY) or file.exists():
        return
    source = find(name)
    tensors = _tensors(source)
    kept = sum(tensor.nbytes for tensor in tensors.values()) <= LIMIT
    facts = {"name": name, "kept": kept, "shapes": {each: list(tensor.shape) for each, tensor in tensors.items()}}
    tensor_file.save(file, {"data": tensors if kept else {}}, facts)


def attach(folder: Path) -> None:
    """Makes the data that the folder of a study keeps known to this process; they are read when they are used."""
    name = _kept(folder)
    if name and not isinstance(_KNOWN.get(name), Source):
        _KNOWN[name] = folder / FILE


def check_kept(folder: Path, name: str) -> None:
    """Raises InputError if the folder of a study does not keep its data in memory, so that workers lack them."""
    if name.startswith(MEMORY) and _kept(folder) != name:
        raise InputError(
            f"data: expected data that the study's folder keeps, from which workers get them, but {folder / FILE} does "
            f"not hold them (more than {LIMIT // 10**6} MB are not kept); write them to a file that all workers see, "
            "such as .npy, and give its path"
        )


def _kept(folder: Path) -> str | None:
    """The name of the data that the folder of a study keeps."""
    with suppress(FileNotFoundError, InputError):  # results can be read without their data
        facts, _ = tensor_file.load_metadata(folder / FILE)
        return str(facts.get("name")) if facts.get("kept") else None
    return None


def source_of(x: Any, name: str = "data") -> Source:
    """Data as a data set: arguments and errors as for `settings_of`; ``name`` says in errors which data they are."""
    if isinstance(x, Source):
        return replace(x, images=_rows(x.load(torch.arange(x.size))))
    if isinstance(x, str | Path):
        return parts.resolve("data", parts.reader(str(x)))(x)
    labels = None
    if isinstance(x, TorchDataset):
        x, labels = _items(x)
    if isinstance(x, tuple):
        raise InputError(f"{name}: expected images or vectors alone, got {len(x)} things; give labels by labels=y")
    x = _tensor(x, name)
    values = _images(x, name)
    if values.dim() == 2 and values.is_floating_point():
        _warn_of_offsets(x, values, name)
        _warn_of_scales(values, name)
    source = Source("memory", len(values), _rows(values))
    return source if labels is None else _labelled(source, "labels", labels)


def _with_column(sources: Sequence[Source], name: str, column: Any) -> list[Source]:
    """Data sets with labels or factors: those of the training images, and those of the test images if there are any."""
    parts = [column] if len(sources) == 1 else column
    if len(sources) == 2 and not (isinstance(parts, tuple | list) and len(parts) == 2):
        raise InputError(f"{name}: expected a pair, those of x and those of test, got {type(column).__name__}")
    return [_labelled(source, name, _tensor(part, name)) for source, part in zip(sources, parts, strict=True)]


def _labelled(source: Source, name: str, values: Tensor) -> Source:
    whole = not values.is_floating_point() and values.dtype != torch.bool
    classes = values.long()  # below 0 if it does not fit
    if name == "labels" and not (values.dim() == 1 and whole and len(values) == source.size and (classes >= 0).all()):
        raise InputError(
            f"labels: expected integers ≥ 0, one for each of the {source.size:,} items, got {values.dtype} of shape "
            f"{list(values.shape)}" + (", some below 0 or beyond 63 bits" if whole and (classes < 0).any() else "")
        )
    if name == "labels":
        return replace(source, labels=classes)
    values = values.float()
    if values.dim() != 2 or len(values) != source.size or not ((values >= 0) & (values <= 1)).all():
        raise InputError(
            f"factors: expected numbers in [0, 1], [{source.size}, factors], got shape {list(values.shape)}"
            + ("" if values.dim() != 2 else f", from {values.min():.4g} to {values.max():.4g}")
        )
    return replace(source, factors=values)


def _rows(values: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda rows: values[rows]


def _items(data: TorchDataset[Any]) -> tuple[list[Tensor], Tensor | None]:
    """The items of a torch data set, and their labels if they have any."""
    try:
        items = [data[number] for number in range(len(data))]  # type: ignore[arg-type]
    except TypeError:
        raise InputError(
            f"data: expected a torch data set with a length and items by number, got {type(data).__name__}"
        ) from None
    pairs = [item if isinstance(item, tuple | list) else (item,) for item in items]
    labels = [pair[1] for pair in pairs if len(pair) > 1]
    whole = [np.asarray(label) for label in labels]
    found = len(whole) == len(pairs) and all(each.dtype.kind in "iub" and each.size == 1 for each in whole)
    return [_tensor(pair[0]) for pair in pairs], torch.tensor([int(each) for each in whole]) if found else None


def _tensor(x: Any, name: str = "data") -> Tensor:
    """A copy of numbers, so that later changes of the user's do not reach it."""
    if np.ma.is_masked(x):
        raise InputError(f"{name}: expected numbers without gaps, got {np.ma.count_masked(x):,} masked ones")
    try:
        if isinstance(x, list):
            return torch.stack([_tensor(each, name) for each in x])
        if isinstance(x, Tensor):
            return x.detach().to_dense().cpu().clone()
        array = np.array(x)
        if array.dtype.kind not in "biufc":
            raise TypeError(f"{type(x).__name__} of {'text' if array.dtype.kind in 'SU' else array.dtype}")
        return torch.from_numpy(_native(array))
    except InputError:
        raise
    except (TypeError, ValueError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(
            f"{name}: expected numbers of one shape, as a tensor, an array or a torch data set, got {reason}"
        ) from None


def _native(array: NDArray[Any]) -> NDArray[Any]:
    """An array in the byte order of this machine."""
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _images(x: Tensor, name: str) -> Tensor:
    """Images ``[N, C, H, W]`` or vectors ``[N, D]``, uint8 or float32."""
    if x.dim() == 3:
        x = x[:, None]
    if x.dim() == 4 and is_channels_last(x.shape):
        x = x.movedim(-1, 1).contiguous()
    if x.dim() not in (2, 4) or not x.numel() or x.is_complex():
        raise InputError(
            f"{name}: expected images [N, H, W], [N, C, H, W] or [N, H, W, C], or vectors [N, D], got "
            f"{x.dtype} of shape {list(x.shape)}"
        )
    if x.dtype == torch.uint8 and x.dim() == 4 and x.max() <= 1:
        raise InputError(
            f"{name}: expected uint8 pixels from 0 to 255, got only values up to {int(x.max())}; give a mask as bool "
            "or as floats"
        )
    values = x if x.dtype == torch.uint8 else x.float()
    if (huge := x.isfinite() & ~values.isfinite()).any():
        raise InputError(f"{name}: expected numbers that float32 can hold, got {float(x[huge][0]):.3g}; scale them")
    if not (finite := values.flatten(1).isfinite().all(1)).all():
        row = int((~finite).nonzero()[0])
        raise InputError(
            f"{name}: expected finite numbers, got NaN or ∞ in {int((~finite).sum()):,} of {len(x):,} items, first in "
            f"item {row}; replace these values, or leave the items out"
        )
    return values


def _warn_of_offsets(x: Tensor, values: Tensor, name: str) -> None:
    """Warns of columns in which different numbers become one in float32, such as times since 1970."""
    constant = (values == values[0]).all(0) & (x != x[0]).any(0)
    if constant.any():
        column = int(constant.nonzero()[0])
        warnings.warn(
            f"{name}: expected columns whose numbers differ in float32, got column {column}, from "
            f"{x[:, column].min()} to {x[:, column].max()}, which becomes constant; subtract its mean",
            stacklevel=2,
        )


def _warn_of_scales(values: Tensor, name: str) -> None:
    """Warns of real numbers that are far from 1 in size, or differ in size between columns."""
    spread = values.std(0)
    if len(values) < 2 or (values == values.round()).all(0).any() or not (spread := spread[spread > 0]).numel():
        return
    low, high = float(spread.min()), float(spread.max())
    if high > SCALES * min(low, 1.0):
        warnings.warn(
            f"{name}: expected columns with standard deviations near 1, got {low:.3g} to {high:.3g}; standardise them, "
            "or training sees little but the largest",
            stacklevel=2,
        )


def is_channels_last(shape: Sequence[int]) -> bool:
    """Whether a shape ends in 1 or 3 colours, and has no such number where channels belong.

    Example:
        >>> is_channels_last((10, 28, 28, 3)), is_channels_last((10, 3, 28, 28)), is_channels_last((10, 1, 4, 3))
        (True, False, False)
    """
    return shape[-1] in COLOURS and shape[-3] not in COLOURS


def _joined(train: Source, test: Source) -> Source:
    """Training and test images as one data set with a published split."""
    first, second = (_tensors(each) for each in (train, test))
    if (shapes := [list(each["images"].shape[1:]) for each in (first, second)])[0] != shapes[1]:
        raise InputError(f"test: expected items of shape {shapes[0]}, as for training, got {shapes[1]}")
    if (types := [each["images"].dtype for each in (first, second)])[0] != types[1]:
        raise InputError(f"test: expected {types[0]}, as for training, got {types[1]}; give both in the same form")
    if torch.equal(first["images"], second["images"]):
        raise InputError("test: expected images that are not trained on, got the training images again")
    both = {name: torch.cat([first[name], second[name]]) for name in first.keys() & second.keys()}
    both["published"] = torch.arange(train.size + test.size) < train.size
    return _of_tensors(train.name, both)


def _tensors(source: Source) -> dict[str, Tensor]:
    columns = {name: getattr(source, name) for name in _COLUMNS}
    found = {name: column for name, column in columns.items() if column is not None}
    return {"images": source.load(torch.arange(source.size)), **found}


def _of_tensors(name: str, tensors: Mapping[str, Tensor]) -> Source:
    values = tensors["images"]
    factors, labels, published = (tensors.get(each) for each in _COLUMNS)
    return Source(name, len(values), _rows(values), factors, labels, published)


def _checksum(source: Source) -> str:
    digest = hashlib.sha256()
    for name, tensor in _tensors(source).items():
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()[:16]


def _read(file: Path, name: str) -> Source:
    try:
        source = _of_tensors("memory", tensor_file.load(file)[0]["data"])
        if f"{MEMORY}{_checksum(source)}" == name:
            return source
    except (FileNotFoundError, KeyError, InputError):
        pass
    raise InputError(
        f"{file}: expected the data of this study, {name}, but the file is missing or damaged; give them with "
        "pyrovae.open_results(folder, data=x, test=x_test)"
    )
