"""The results of a study: an xarray DataTree, stored as one netCDF file next to the checkpoints."""

import json
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray

from pyrovae import parts
from pyrovae.errors import InputError
from pyrovae.measures.evaluate import Evaluation
from pyrovae.programs.pair import Pair
from pyrovae.store import records, schema
from pyrovae.store.checkpoint import checkpoint_mismatch, load_checkpoint, split_checkpoint
from pyrovae.study import Cohort, Run, Study
from pyrovae.system import atomic

#: (run, event shape) → a pair with initial weights.
MakePair = Callable[[Run, torch.Size], Pair]


@dataclass(frozen=True)
class CohortResult:
    """The results of a trained cohort, as a worker returns them.

    Attributes:
        measured: measured numbers, without per-image values and pictures, which are stored separately.
        curves: the learning curves, by name, ``[points]`` or ``[points, split, runs]``.
        diverged_at: the step at which each run diverged, ``[runs]``; −1 where it did not.
        last_loss: the last finite loss of each run, ``[runs]``.
        provenance: provenance of the cohort, by variable of ``/runs``.
    """

    measured: Evaluation
    curves: dict[str, NDArray[Any]]
    diverged_at: NDArray[np.int64]
    last_loss: NDArray[np.float32]
    provenance: dict[str, Any]


class Results:
    """The results of a study in its folder.

    Attributes:
        folder: contains study.yaml, results.nc, details/, checkpoints/ and figures/.
        study: the study, with all defaults filled in.
        tree: ``/rate_distortion`` over split and the axes of the grid, ``/images`` the same per image, ``/levels`` with
            the rate of each latent site, ``/information`` with mutual information and prior gap, ``/likelihood`` with
            bounds on log p(x), ``/memorisation`` with the infinite-capacity decoder, ``/difficulty`` with sizes and
            distances to the training images, ``/curves`` over steps, ``/runs`` with the status of every run. Units are
            nats per image unless ``attrs["units"]`` says otherwise.
    """

    def __init__(self, folder: Path, study: Study, content: xr.DataTree, make_pair: MakePair) -> None:
        self.folder = folder
        self.study = study
        self.tree = content
        self._make_pair = make_pair

    @classmethod
    def open(cls, folder: str | Path, make_pair: MakePair) -> "Results":
        """Opens the results in a folder.

        Raises:
            InputError: the folder contains no study, or one of its files is damaged.
        """
        folder = Path(folder)
        study = study_in(folder)
        file = folder / "results.nc"
        content = schema.load(file, study) if file.exists() else schema.empty(study, folder)
        return cls(folder, study, content, make_pair)

    @classmethod
    def create(cls, folder: str | Path, study: Study, make_pair: MakePair) -> "Results":
        """Opens the results of a study, after creating the folder where there is none.

        Raises:
            InputError: the folder contains another study, or one of its files is damaged.
        """
        folder = Path(folder)
        if not (folder / "study.yaml").exists():
            atomic.write(folder / "study.yaml", study.to_yaml().encode())
        elif (existing := study_in(folder).to_yaml()) != study.to_yaml():
            raise InputError(
                f"{folder}: expected the same study, got other settings: {study.difference(existing)}; "
                "choose another --out, or delete the folder"
            )
        return cls.open(folder, make_pair)

    def checkpoint_file(self, cohort: Cohort) -> Path:
        """The checkpoint of a cohort."""
        return self.folder / "checkpoints" / f"cohort-{cohort.name}.safetensors"

    def lock_file(self, cohort: Cohort) -> Path:
        """The lock that a process holds while it trains a cohort."""
        return self.folder / ".locks" / f".{cohort.name}"

    def cohorts(self) -> list[Cohort]:
        """The cohorts of the study; one that did not fit into memory is replaced by the parts it was split into."""
        parts = [file.stem.split("-")[1:] for file in self.folder.glob("checkpoints/cohort-*-*.safetensors")]
        cut = {"-".join(part[:end]) for part in parts for end in range(1, len(part))}
        return [part for cohort in self.study.cohorts() for part in self._parts(cohort, cut)]

    def _parts(self, cohort: Cohort, cut: Set[str]) -> list[Cohort]:
        if len(cohort.runs) == 1 or cohort.name not in cut or self.checkpoint_file(cohort).exists():
            return [cohort]
        return [part for half in cohort.halves() for part in self._parts(half, cut)]

    def cut(self, cohort: Cohort) -> list[Cohort]:
        """Splits a cohort, and its checkpoint if there is one, into halves.

        Waits for a process that still trains the whole cohort, because it would write the checkpoint again.
        """
        halves, file = cohort.halves(), self.checkpoint_file(cohort)
        if file.exists():
            with atomic.exclusive(self.lock_file(cohort), lambda: True):
                for half in halves:
                    split_checkpoint(file, cohort, half, self.checkpoint_file(half))
                file.unlink()
        return halves

    def has(self, cohort: Cohort) -> bool:
        """Whether all runs of a cohort are measured and their weights exist."""
        return self.checkpoint_file(cohort).exists() and self.is_measured(self.tree, cohort)

    def details_file(self, measurement: xr.DataTree, cohort: Cohort) -> Path:
        """The file with per-image values and pictures of a cohort, for the study's own measurement or a later one."""
        return records.file_of(self.folder, measurement.name or "", cohort.name)

    def is_measured(self, measurement: xr.DataTree, cohort: Cohort) -> bool:
        """Whether a measurement, the study's own or a later one, is complete for a cohort, details included.

        The details are in the file of the cohort that the runs were measured in, which may have been split since.
        """
        runs = measurement["runs"].to_dataset()
        cells = [self.study.position(run) for run in cohort.runs]
        if not all(runs["status"].values[cell] in ("done", "diverged") for cell in cells):
            return False
        names = {runs["cohort"].values[cell] for cell in cells}
        return all(records.file_of(self.folder, measurement.name or "", name).exists() for name in names)

    def record(self, measurement: xr.DataTree, cohort: Cohort, outcome: CohortResult) -> None:
        """Adds the results of a cohort to a measurement and saves it. The file with its details must exist.

        Args:
            measurement: the study's own or a later one.
        """
        schema.enter(measurement, self.study, cohort, outcome.measured)
        runs = measurement["runs"].to_dataset()
        curves = measurement["curves"].to_dataset() if "curves" in measurement.children else None
        for number, run in enumerate(cohort.runs):
            cell = self.study.position(run)
            if curves is not None:
                steps = np.isin(curves["step"].values, outcome.curves["step"])
                cells: Any = (slice(None), steps, *cell)
                for name in ("loss", "distortion", "rate"):
                    curves[name].values[cells] = outcome.curves[name][:, :, number].T
            diverged_at = int(outcome.diverged_at[number])
            state = {
                "status": "diverged" if diverged_at >= 0 else "done",
                "diverged_at": diverged_at,
                "last_loss": outcome.last_loss[number],
                "cohort": cohort.name,
                "skipped": outcome.measured.notes[number],
            }
            for name, value in (state | outcome.provenance).items():
                runs[name].values[cell] = value
        if not measurement.children.keys() & records.picture_groups():
            self._attach_details(measurement)
        self.save()

    def mark(self, cohort: Cohort, status: str) -> None:
        """Sets the status of runs that have no results."""
        for run in cohort.runs:
            self.tree["runs"].to_dataset()["status"].values[self.study.position(run)] = status
        self.save()

    def evaluation(self, study: Study, prior: str | None = None, only: Sequence[str] = ()) -> xr.DataTree:
        """The later measurement with these settings, existing or new.

        Args:
            study: the study with the measure settings in use.
            prior: the prior that replaces that of each pair, if any.
            only: the measures that are evaluated; all of the study if empty.
        """
        new = schema.evaluation(study, prior, only, ", ".join(parts.user_sources(only or study.measure.also)))
        names = [name for name in self.tree.children if name.startswith("evaluation_")]
        for name in names:
            if self.tree[name].attrs == new.attrs:
                return self.tree.children[name]
        name = f"evaluation_{len(names) + 1}"
        self.tree[name] = new
        self._attach_details(self.tree.children[name])
        return self.tree.children[name]

    def run(self, /, **coordinates: Any) -> Run:
        """The run at one point of the grid, trained or not; arguments and errors as for `pair`."""
        return self._find(coordinates)[0]

    def pair(self, /, **coordinates: Any) -> Pair:
        """The trained pair at one point of the grid, ready for Pyro.

        Args:
            coordinates: a value for each axis, such as ``beta=1, depth=3, seed=0``; optional for an axis with only
                one value.

        Raises:
            InputError: an axis or a value is not in the grid, or the run is not trained yet.
        """
        run, cohort = self._find(coordinates)
        file = self.checkpoint_file(cohort)
        try:
            groups, header = load_checkpoint(file, cohort)
        except FileNotFoundError:
            raise InputError(
                f"{self.folder}: the run at {self.study.coordinates(run)} is not trained yet, or its checkpoint is "
                "missing"
            ) from None
        if header.step < run.steps:
            raise InputError(f"{self.folder}: the training of the run at {self.study.coordinates(run)} is not finished")
        pair = self._make_pair(run, torch.Size(header.event_shape))
        stacked = groups.get("params", {}) | groups.get("buffers", {})
        for name, tensor in pair.state_dict(keep_vars=True).items():
            found = stacked.get(name)
            if found is None or found.dtype != tensor.dtype:
                raise checkpoint_mismatch(file, name)
            # In a new pair, the bank of encodings is empty.
            shape = tensor.shape if tensor.numel() else found.shape[1:]
            if found.shape != (len(cohort.runs), *shape):
                raise checkpoint_mismatch(file, name)
            tensor.data = found[cohort.runs.index(run)].clone()
            if not tensor.isfinite().all():
                raise checkpoint_mismatch(file, name)
        return pair.eval()

    def _find(self, coordinates: Mapping[str, Any]) -> tuple[Run, Cohort]:
        axes = self.study.axes
        for key, value in coordinates.items():
            if key not in axes:
                raise InputError(f"unknown axis '{key}'; valid: {', '.join(axes)}")
            if value not in axes[key]:
                raise InputError(f"{key}: expected one of {list(axes[key])}, got {value!r}")
        for key, values in axes.items():
            if key not in coordinates and len(values) > 1:
                raise InputError(f"{key}: expected one of {list(values)}, got no {key}: the grid runs over it")
        for cohort in self.cohorts():
            for run in cohort.runs:
                if all(getattr(run, key) == value for key, value in coordinates.items()):
                    return run, cohort
        raise AssertionError("a grid contains every combination of its values")

    def _attach_details(self, measurement: xr.DataTree) -> None:
        """Attaches per-image values and pictures to a measurement, to be loaded on demand."""
        measure = json.loads(measurement.attrs.get("measure", "{}"))
        study = self.study.replace(**{f"measure.{key}": value for key, value in measure.items()})
        schema.attach_details(measurement, study, self.folder, measurement.name or "")

    def save(self) -> None:
        """Writes results.nc, and study.yaml if it is missing."""
        if not (self.folder / "study.yaml").exists():
            atomic.write(self.folder / "study.yaml", self.study.to_yaml().encode())
        schema.save(self.tree, self.folder / "results.nc")


def study_in(folder: Path) -> Study:
    """The study in a folder.

    Raises:
        InputError: the folder contains no study.
    """
    atomic.check_no_links(folder)
    if not (folder / "study.yaml").is_file():
        problem = "it has no study.yaml" if folder.exists() else "there is no such folder"
        raise InputError(f"{folder}: expected the folder of a study, but {problem}")
    return Study.load(folder / "study.yaml", trust=None)
