"""Takes runs out of a study, merges two parts of one, and exports its numbers."""

import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from pyrovae.analysis.report.export import frame
from pyrovae.build import assemble
from pyrovae.data import memory
from pyrovae.errors import InputError
from pyrovae.runner import reporting
from pyrovae.runner.jobs import covered
from pyrovae.runner.open import attach_theory, open_results
from pyrovae.store import schema
from pyrovae.store.checkpoint import Checkpoint, load_header
from pyrovae.store.layout import RUNS, RunFolder, moving_checkpoints
from pyrovae.store.records import load_header as load_record_header
from pyrovae.store.results import Results, study_in
from pyrovae.study import Study, key_of
from pyrovae.study.grid import values_of
from pyrovae.study.growth import FREE, VARIED
from pyrovae.system import atomic

#: Formats of an export.
Format = Literal["csv", "parquet", "netcdf", "zarr"]
_SUFFIXES: Mapping[Format, str] = {"csv": ".csv", "parquet": ".parquet", "netcdf": ".nc", "zarr": ".zarr"}


def remove(folder: str | Path, **select: Any) -> list[str]:
    """Takes runs out of a study: their weights and numbers are deleted.

    Values of an axis that is the only one in ``select`` leave the grid; otherwise, the cells stay, without runs.

    Args:
        folder: the folder of the study.
        select: a value, or a list of values, along some axes of the grid, such as ``beta=4``.

    Returns:
        The keys of the runs.

    Raises:
        InputError: no axis is given, an axis or a value is not in the grid, or no value of an axis would be left.

    Example:
        >>> from pyrovae import Study, run
        >>> tiny = {"steps": 2, "depth": 1, "width": 8, "train_images": 64, "test_images": 64, "seed": 0}
        >>> _ = run(Study.load("quick", **tiny, beta=[0.1, 1]), out=tmp_path / "mine", quiet=True)
        >>> len(remove(tmp_path / "mine", beta=0.1)), open_results(tmp_path / "mine").study.axes["beta"]
        (1, (1.0,))
    """
    folder = Path(folder)
    study_in(folder)  # otherwise the lock would create the folder
    with atomic.locked(folder):
        before = open_results(folder).study
        study, keys = _without(before, {axis: values_of(value) for axis, value in select.items()})
        results = Results(folder, study, assemble)
        results.save_study()
        for key in keys:
            _delete(RunFolder.of(folder, key).path)
        for file in moving_checkpoints(folder):
            if set(load_header(file)[0].keys) <= set(keys):
                file.unlink()
        _draw_again(results)
    return keys


def merge(folders: Sequence[str | Path], out: str | Path, prefer: str | Path | None = None) -> Results:
    """Merges parts of one study, trained on several machines, into one folder.

    Of a run that several parts have, the one that has done the most steps is taken.

    Args:
        folders: the folders of the parts.
        out: the folder of the whole. A study that is there already is one of the parts.
        prefer: the part whose runs are taken where others have done as many steps, with other weights, and whose
            measure settings are taken.

    Raises:
        InputError: the parts are not of one study, or have the same run with other weights and none is preferred.

    Example:
        >>> from pyrovae import Study, run
        >>> tiny = {"steps": 2, "depth": 1, "width": 8, "train_images": 64, "test_images": 64}
        >>> parts = [tmp_path / "first", tmp_path / "second"]
        >>> for seed, part in enumerate(parts):
        ...     _ = run(Study.load("quick", **tiny, beta=1, seed=seed), out=part, quiet=True)
        >>> merge(parts, tmp_path / "both").tree["runs"]["status"].values.tolist()
        [['done', 'done']]
    """
    parts = [Path(folder) for folder in folders]
    if Path(out) not in parts and (Path(out) / "study.yaml").exists():
        parts.append(Path(out))
    preferred = None if prefer is None else Path(prefer)
    if preferred is not None and preferred not in parts:
        raise InputError(f"prefer: expected one of {', '.join(map(str, parts))}, got {prefer}")
    study = _union([(part, study_in(part)) for part in sorted(parts, key=lambda part: part != preferred)], prefer)
    keys = list(dict.fromkeys(key_of(run) for run in study.runs()))
    chosen = {key: _furthest([_Copy.of(part, key) for part in parts], preferred) for key in keys}
    with atomic.locked(Path(out)):
        results = Results(Path(out), study, assemble)
        results.save_study()
        for key, copy in chosen.items():
            if copy is not None:
                copy.into(RunFolder.of(Path(out), key))
        for kept in [part / memory.FILE for part in parts if (part / memory.FILE).exists()][:1]:
            atomic.copy(kept, Path(out) / memory.FILE)
        for file in list(covered(Path(out))):
            file.unlink()
        _draw_again(results)
        return results


def export(folder: str | Path, to: Format | None = None, out: str | Path | None = None) -> Path:
    """Writes the numbers of a study to a file: a table with one row per run, or the tree of results.

    Args:
        folder: the folder of the study.
        to: "csv" or "parquet" for the table, "netcdf" or "zarr" for the tree, with values per image that are condensed
            to as few as findings need; by default, what the suffix of ``out`` says, or "csv".
        out: the file; ``export`` for a tree and ``results`` for a table, with the suffix of the format, in the folder
            of the study, by default.

    Returns:
        The file.

    Raises:
        InputError: the format is unknown or not that of the suffix, a package that it needs is missing, or the file
            would replace something else than an earlier export.
    """
    if to is None:
        to = "csv" if out is None else _format_of(Path(out))
    if to not in _SUFFIXES:
        raise InputError(f"to: expected {', '.join(_SUFFIXES)}, got {to!r}")
    results = open_results(folder)
    stem = "export" if to in ("netcdf", "zarr") else "results"
    file = Path(folder) / f"{stem}{_SUFFIXES[to]}" if out is None else Path(out)
    if file.suffix != _SUFFIXES[to]:
        raise InputError(f"out: expected a file that ends in {_SUFFIXES[to]}, as {to} does, got '{file}'")
    own = [results.folder / name for name in ("results.nc", RUNS)]
    if any(file.resolve().is_relative_to(each.resolve()) for each in own):
        raise InputError(f"{file}: expected another file than those in which the study keeps its results")
    if file.is_dir() and not (file / ".zgroup").exists():
        raise InputError(f"{file}: expected a new file, or an earlier export, got a folder of other files")
    writers: dict[str, Callable[[], Any]] = {
        "csv": lambda: atomic.write(file, frame(results.tree).to_csv(index=False).encode()),
        "parquet": lambda: atomic.write(file, frame(results.tree).to_parquet(index=False)),
        "netcdf": lambda: schema.save(results.condensed(), file),
        "zarr": lambda: results.condensed().to_zarr(file, mode="w", zarr_format=2),
    }
    try:
        writers[to]()
    except ImportError as error:
        raise InputError(f"to: {to} needs a package, got {error}; pip install 'pyrovae[export]'") from error
    return file


def _format_of(file: Path) -> Format:
    """The format of an export by its suffix.

    Raises:
        InputError: no format has this suffix.
    """
    for to, suffix in _SUFFIXES.items():
        if file.suffix == suffix:
            return to
    raise InputError(f"out: expected a file that ends in {', '.join(_SUFFIXES.values())}, got '{file}'")


@dataclass(frozen=True)
class _Copy:
    """A run in one of several folders.

    Attributes:
        step: steps done.
        weights: checksum of the weights.
    """

    folder: RunFolder
    step: int
    weights: str

    @classmethod
    def of(cls, part: Path, key: str) -> "_Copy | None":
        """The run with a key, by its weights, or by its record where they are missing."""
        folder = RunFolder.of(part, key)
        if folder.weights.exists():
            header, checksum = load_header(folder.weights)
            return cls(folder, header.step, checksum)
        if folder.record().exists():
            record = load_record_header(folder.record())
            return cls(folder, record.step, record.weights)
        return None

    def equals(self, other: "_Copy") -> bool:
        """Whether the weights are the same, perhaps trained in another cohort."""
        if self.weights == other.weights:
            return True
        files = [each.folder.weights for each in (self, other)]
        if not all(file.exists() for file in files):
            return False
        groups = [Checkpoint.load(file).groups for file in files]
        one, two = (each["params"] | each.get("buffers", {}) for each in groups)
        return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)

    def into(self, target: RunFolder) -> None:
        """Copies the files, each atomically, the record last."""
        files = [file for file in self.folder.path.rglob("[!.]*") if file.is_file()]
        if self.folder.path.resolve() == target.path.resolve():
            return
        for file in sorted(files, key=lambda file: file == self.folder.record()):
            atomic.copy(file, target.path / file.relative_to(self.folder.path))


def _furthest(copies: Iterable[_Copy | None], preferred: Path | None) -> _Copy | None:
    """The copy of a run that has done the most steps.

    Raises:
        InputError: several have done as many, with other weights, and none is preferred.
    """
    found = [copy for copy in copies if copy is not None]
    if not found:
        return None
    most = max(copy.step for copy in found)
    best = [copy for copy in found if copy.step == most]
    mine = [copy for copy in best if preferred is not None and copy.folder.path.is_relative_to(preferred)]
    if not mine and not all(copy.equals(best[0]) for copy in best):
        names = " and ".join(str(copy.folder.path) for copy in best)
        raise InputError(
            f"expected one version of each run, got {names} after {most:,} steps with different weights; "
            "take one with --prefer FOLDER"
        )
    return (mine or best)[0]


def _union(parts: Sequence[tuple[Path, Study]], prefer: object) -> Study:
    """The study whose runs are those of all parts.

    Raises:
        InputError: the parts differ in more than one setting, apart from β, γ, seed and steps, or in what is measured.
    """
    (first, whole), *others = parts
    for part, study in others:
        old, new = whole.settings(), study.settings()
        differing = [key for key in {**old, **new} if key not in FREE and old.get(key) != new.get(key)]
        outer = [key for key in differing if key not in VARIED]
        measured = [f"measure.{key}" for key in old["measure"] if old["measure"][key] != new["measure"][key]]
        if len(outer) > 1 or (measured and prefer is None) or whole.name != study.name:
            names = ["name"] * (whole.name != study.name) + (outer if len(outer) > 1 else []) + measured
            raise InputError(f"{part}: expected a part of the study in {first}, got another {', '.join(names)}")
        joined = {key: _joined(old.get(key), new.get(key)) for key in differing}
        whole = whole.replace(**joined, steps=max(whole.base.steps, study.base.steps))
    return whole


def _joined(first: Any, second: Any) -> list[Any]:
    """The values along an axis of two studies, numbers in their order."""
    values = list(dict.fromkeys([*values_of(first), *values_of(second)]))
    return sorted(values) if all(isinstance(each, int | float) for each in values) else values


def _without(study: Study, select: Mapping[str, Sequence[Any]]) -> tuple[Study, list[str]]:
    """A study without some runs, and the keys of these.

    Raises:
        InputError: as `remove`.
    """
    if not select:
        raise InputError("select: expected the runs to remove, such as beta=4, got none")
    for axis, values in select.items():
        if axis not in study.axes:
            raise InputError(f"unknown axis '{axis}'; valid: {', '.join(study.axes)}")
        if unknown := [value for value in values if value not in study.axes[axis]]:
            raise InputError(f"{axis}: expected one of {list(study.axes[axis])}, got {unknown[0]!r}")
    chosen = [run for run in study.runs() if all(getattr(run, axis) in values for axis, values in select.items())]
    keys = [key_of(run) for run in chosen]
    if len(select) > 1:
        return study, keys
    ((axis, values),) = select.items()
    left = [value for value in study.axes[axis] if value not in values]
    if not left:
        raise InputError(f"{axis}: expected some values to be left, got all; delete the folder to remove every run")
    return study.replace(**{axis: left}), keys


def _delete(folder: Path) -> None:
    """Deletes the folder of a run, which is gone at once."""
    if folder.exists():
        gone = atomic.partial_path(folder)
        os.replace(folder, gone)
        shutil.rmtree(gone)


def _draw_again(results: Results) -> None:
    results.refresh()
    attach_theory(results)
    results.save()
    reporting.draw(results)
