"""A user's own numbers: an ``.npy`` file of an array, or a table in a CSV or Parquet file."""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pyrovae.data import Source, memory
from pyrovae.data.fetch import reason
from pyrovae.errors import InputError
from pyrovae.system.memory import check_memory

#: Columns of a table that are no part of x.
LABEL, TRAIN = "label", "train"


def from_npy(path: str | Path) -> Source:
    """An array in an ``.npy`` file written by `numpy.save`: images or vectors, as in `memory.settings_of`.

    Raises:
        InputError: there is no such file, or it holds something else.

    Example:
        >>> np.save(tmp_path / "mine.npy", np.zeros((5, 8, 9)))
        >>> from_npy(tmp_path / "mine.npy").load(torch.arange(2)).shape
        torch.Size([2, 1, 8, 9])
    """
    path = _file(path)
    try:
        array = np.load(path, allow_pickle=False)
        if not isinstance(array, np.ndarray):
            raise ValueError("several arrays; call it .npz")
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path}: expected an array written by numpy.save, got: {reason(error)}") from error
    return _named(path, memory.source_of(array))


def from_table(path: str | Path) -> Source:
    """The rows of a CSV or Parquet file as vectors, one dimension for each column of numbers.

    A column ``label`` holds classes, integers ≥ 0, and a column ``train`` whether a row is in the published training
    set.

    Raises:
        InputError: there is no such file, or a column holds something else than numbers.

    Example:
        >>> people = pd.DataFrame({"height": [1.5, 1.8], "weight": [60, 80], "label": [0, 1]})
        >>> people.to_csv(tmp_path / "mine.csv", index=False)
        >>> source = from_table(tmp_path / "mine.csv")
        >>> source.load(torch.arange(2)).shape, source.labels
        (torch.Size([2, 2]), tensor([0, 1]))
    """
    path = _file(path)
    try:
        table = pd.read_parquet(path) if path.suffix.lower() == ".parquet" else _csv(path)
    except ImportError as error:
        raise InputError(f"{path}: Parquet needs a package, got {error}; pip install 'pyrovae[export]'") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: expected a table, got: {reason(error)}") from error
    _check_names(path, [str(name) for name in table.columns])
    labels, published = (_column(path, table, name, kinds) for name, kinds in ((LABEL, "iu"), (TRAIN, "b")))
    numbers = table.drop(columns=[LABEL, TRAIN], errors="ignore")
    if wrong := [str(name) for name, kind in numbers.dtypes.items() if kind.kind not in "iufb"]:
        raise InputError(f"{path}: expected columns of numbers, got {numbers[wrong[0]].dtype} in column '{wrong[0]}'")
    if numbers.empty:
        raise InputError(f"{path}: expected columns of numbers, got none")
    if gaps := [str(name) for name in numbers if numbers[name].isna().any()]:
        row = int(np.flatnonzero(numbers[gaps[0]].isna())[0])
        raise InputError(
            f"{path}: expected finite numbers, got none in column '{gaps[0]}' of row {row}: a value is missing or NaN, "
            "or the row has too few fields"
        )
    source = memory.source_of(numbers.to_numpy(np.float64), str(path))
    return _named(path, replace(source, labels=labels, published=published))


def _csv(path: Path) -> pd.DataFrame:
    """The table in a CSV file, without what pandas guesses: an index, and names for columns that have none.

    Raises:
        ValueError: rows have more fields than the header, or the header is no row of names.
    """
    with warnings.catch_warnings(action="error", category=pd.errors.ParserWarning):
        try:
            table = pd.read_csv(path, index_col=False, skipinitialspace=True)
        except pd.errors.ParserWarning:
            raise ValueError(
                "rows with more fields than the header; separate fields by commas, and decimals by points"
            ) from None
    header = pd.read_csv(path, index_col=False, skipinitialspace=True, header=None, nrows=1, dtype=str).iloc[0]
    if repeated := sorted(header[header.duplicated() & header.notna()]):
        raise ValueError(f"several columns called '{repeated[0]}'")
    names = [str(name) for name in table.columns]
    if len(names) == 1 and any(separator in names[0] for separator in ";\t"):
        raise ValueError(f"a single column, {names[0]!r}; separate fields by commas")
    if unnamed := [name for name in names if name.startswith("Unnamed: ")]:
        raise ValueError(
            f"no name for column {unnamed[0].removeprefix('Unnamed: ')}; if it is the index of a data frame, write it "
            "with to_csv(index=False)"
        )
    if pd.to_numeric(pd.Series(names), errors="coerce").notna().all():
        raise ValueError(f"the numbers {', '.join(names[:5])} in the header, where the names of columns belong")
    return table


def _check_names(path: Path, names: Sequence[str]) -> None:
    """Raises InputError if the name of a column looks like one of those that are no part of x."""
    for name in names:
        if name not in (LABEL, TRAIN) and (meant := name.strip().lower()) in (LABEL, TRAIN):
            raise InputError(
                f"{path}: expected column '{meant}', got {name!r}; write it so, or call it otherwise if it is part of x"
            )


def _column(path: Path, table: pd.DataFrame, name: str, kinds: str) -> Tensor | None:
    if name not in table:
        return None
    values = table[name].to_numpy()
    if values.dtype.kind not in kinds or not 0 <= values.min() <= values.max() <= np.iinfo(np.int64).max:
        expected = "integers ≥ 0" if name == LABEL else "true or false"
        got = "a missing value" if table[name].isna().any() else f"{values.dtype}"
        raise InputError(f"{path}: expected {expected} in column '{name}', got {got}; or call it otherwise")
    return torch.from_numpy(values.astype(np.int64 if name == LABEL else bool))


def _file(path: str | Path) -> Path:
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: expected a file, got {'a folder' if path.exists() else 'no such file'}")
    check_memory(4 * path.stat().st_size, str(path))
    return path


def _named(path: Path, source: Source) -> Source:
    return replace(source, name=path.stem)
