"""The results of a study: an xarray DataTree, on disk as one netCDF file beside the checkpoints."""

import json
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray

from pyrovae.errors import InputError
from pyrovae.measures.evaluate import Evaluation
from pyrovae.programs.pair import Pair
from pyrovae.store import records, schema
from pyrovae.study.grid import Cohort, Run, Study
from pyrovae.system import atomic, tensor_file
from pyrovae.training.trainer import CheckpointHeader, Training, checkpoint_mismatch, split_checkpoint

#: (run, event shape) → a pair with initial weights.
MakePair = Callable[[Run, torch.Size], Pair]


@dataclass(frozen=True)
class CohortResult:
    """What the runs of a cohort came to, as it travels from where they were trained to where it is written down.

    Attributes:
        measured: what was measured, without the details, which have a file of their own.
        curves: the learning curves, by name, ``[points]`` or ``[points, split, runs]``.
        diverged_at: steps done when each run diverged, ``[runs]``; −1 where it did not.
        last_loss: last finite loss of each run, ``[runs]``.
        provenance: what is known of the whole cohort, by the names of ``/runs``.
    """

    measured: Evaluation
    curves: dict[str, NDArray[Any]]
    diverged_at: NDArray[np.int64]
    last_loss: NDArray[np.float32]
    provenance: dict[str, Any]

    @classmethod
    def of(cls, training: Training, measured: Evaluation, provenance: dict[str, Any]) -> "CohortResult":
        """The outcome of a training that is over."""
        curves = {name: torch.stack(points).numpy() for name, points in training.curves.items()}
        groups = {group: values for group, values in measured.groups.items() if group != "images"}
        light = measured._replace(groups=groups, pictures={})
        return cls(light, curves, training.diverged_at.numpy(), training.last_loss.numpy(), provenance)


class Results:
    """What a study leaves behind in its folder.

    Attributes:
        folder: holds study.yaml, results.nc, details/, checkpoints/ and figures/.
        study: the study, resolved.
        tree: ``/rate_distortion`` over split and the axes of the grid, ``/images`` the same per image, ``/levels`` with
            the rate of each latent site, ``/information`` with mutual information, prior gap and their like,
            ``/likelihood`` with bounds of log p(x), ``/memorisation`` with the decoder of infinite capacity,
            ``/difficulty`` with sizes and distances to the training images, ``/curves`` over step, ``/runs`` with the
            state of every run; in nats per image where no other unit is told.
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
            InputError: the folder holds no study, or a file in it is damaged.
        """
        folder = Path(folder)
        study = study_in(folder)
        file = folder / "results.nc"
        content = schema.load(file, study) if file.exists() else schema.empty(study, folder)
        return cls(folder, study, content, make_pair)

    @classmethod
    def create(cls, folder: str | Path, study: Study, make_pair: MakePair) -> "Results":
        """Opens the results of a study in its folder, or makes the folder.

        Raises:
            InputError: the folder holds another study, or a file in it is damaged.
        """
        folder = Path(folder)
        if not (folder / "study.yaml").exists():
            atomic.write(folder / "study.yaml", study.to_yaml().encode())
        elif (before := study_in(folder).to_yaml()) != study.to_yaml():
            raise InputError(
                f"{folder}: expected the same study, got other settings: {study.difference(before)}; "
                "choose another --out, or delete the folder"
            )
        return cls.open(folder, make_pair)

    def checkpoint_file(self, cohort: Cohort) -> Path:
        """Where the weights of a cohort are."""
        return self.folder / "checkpoints" / f"cohort-{cohort.name}.safetensors"

    def lock_file(self, cohort: Cohort) -> Path:
        """Which tells other processes that one is at work on a cohort."""
        return self.folder / ".locks" / f".{cohort.name}"

    def cohorts(self) -> list[Cohort]:
        """The cohorts of the study, those that did not fit into memory in the parts that they were trained in."""
        parts = [file.stem.split("-")[1:] for file in self.folder.glob("checkpoints/cohort-*-*.safetensors")]
        cut = {"-".join(part[:end]) for part in parts for end in range(1, len(part))}
        return [part for cohort in self.study.cohorts() for part in self._parts(cohort, cut)]

    def _parts(self, cohort: Cohort, cut: Set[str]) -> list[Cohort]:
        if len(cohort.runs) == 1 or cohort.name not in cut or self.checkpoint_file(cohort).exists():
            return [cohort]
        return [part for half in cohort.halves() for part in self._parts(half, cut)]

    def cut(self, cohort: Cohort) -> list[Cohort]:
        """The halves of a cohort, and for each the checkpoint that it goes on from, if there is one of the whole.

        A process that is still at work on the whole is waited for: it would write the checkpoint again.
        """
        halves, file = cohort.halves(), self.checkpoint_file(cohort)
        if file.exists():
            with atomic.held(self.lock_file(cohort), lambda: True):
                for half in halves:
                    split_checkpoint(file, cohort, half, self.checkpoint_file(half))
                file.unlink()
        return halves

    def has(self, cohort: Cohort) -> bool:
        """Whether all runs of a cohort were measured, and their weights are there."""
        return self.checkpoint_file(cohort).exists() and self.is_measured(self.tree, cohort)

    def details_file(self, measurement: xr.DataTree, cohort: Cohort) -> Path:
        """Where the details of a cohort go, of the study's own measurement or of a later one."""
        return records.file_of(self.folder, measurement.name or "", cohort.name)

    def is_measured(self, measurement: xr.DataTree, cohort: Cohort) -> bool:
        """Whether a measurement, the study's own or a later one, has all runs of a cohort, and their details.

        These are in the file of the cohort that the runs were measured in, which may have been cut since.
        """
        runs = measurement["runs"].to_dataset()
        places = [self.study.position(run) for run in cohort.runs]
        if not all(runs["status"].values[place] in ("done", "diverged") for place in places):
            return False
        names = {runs["cohort"].values[place] for place in places}
        return all(records.file_of(self.folder, measurement.name or "", name).exists() for name in names)

    def record(self, measurement: xr.DataTree, cohort: Cohort, outcome: CohortResult) -> None:
        """Enters the outcome of a cohort, whose details are written, into a measurement, and writes the file.

        Args:
            measurement: the study's own or a later one.
        """
        schema.enter(measurement, self.study, cohort, outcome.measured)
        runs = measurement["runs"].to_dataset()
        curves = measurement["curves"].to_dataset() if "curves" in measurement.children else None
        for number, run in enumerate(cohort.runs):
            place = self.study.position(run)
            if curves is not None:
                steps = np.isin(curves["step"].values, outcome.curves["step"])
                cells: Any = (slice(None), steps, *place)
                for name in ("loss", "distortion", "rate"):
                    curves[name].values[cells] = outcome.curves[name][:, :, number].T
            frozen = int(outcome.diverged_at[number])
            facts = {
                "status": "diverged" if frozen >= 0 else "done",
                "diverged_at": frozen,
                "last_loss": outcome.last_loss[number],
                "cohort": cohort.name,
                "skipped": outcome.measured.notes[number],
            }
            for name, value in (facts | outcome.provenance).items():
                runs[name].values[place] = value
        if not measurement.children.keys() & records.PICTURED:
            self._attach_details(measurement)
        self.save()

    def mark(self, cohort: Cohort, status: str) -> None:
        """Enters that the runs of a cohort have a status, and nothing else is known of them."""
        for run in cohort.runs:
            self.tree["runs"].to_dataset()["status"].values[self.study.position(run)] = status
        self.save()

    def evaluation(self, study: Study, prior: str | None = None) -> xr.DataTree:
        """The later measurement with these settings: one that was begun or finished, or a new one.

        Args:
            study: the study, with the settings that are measured with now.
            prior: the prior that is put in the place of the pairs' own, if any.
        """
        new = schema.evaluation(study, prior)
        names = [name for name in self.tree.children if name.startswith("evaluation_")]
        for name in names:
            if self.tree[name].attrs == new.attrs:
                return self.tree.children[name]
        name = f"evaluation_{len(names) + 1}"
        self.tree[name] = new
        self._attach_details(self.tree.children[name])
        return self.tree.children[name]

    def run(self, /, **coordinates: Any) -> Run:
        """The run at one point of the grid, trained or not; arguments and errors as of `pair`."""
        return self._find(coordinates)[0]

    def pair(self, /, **coordinates: Any) -> Pair:
        """The trained pair at one point of the grid, ready for Pyro.

        Args:
            coordinates: a value for each axis, such as ``beta=1, depth=3, seed=0``; one may be left out where an
                axis has one value.

        Raises:
            InputError: an axis or a value is not in the grid, or the run is not trained yet.
        """
        run, cohort = self._find(coordinates)
        file = self.checkpoint_file(cohort)
        try:
            groups, told = tensor_file.load(file)
        except FileNotFoundError:
            raise InputError(
                f"{self.folder}: the run at {self.study.coordinates(run)} is not trained yet, or its checkpoint is gone"
            ) from None
        facts = CheckpointHeader.of(told, cohort, file)
        if facts.step < run.steps:
            raise InputError(f"{self.folder}: the run at {self.study.coordinates(run)} is not trained to its end yet")
        pair = self._make_pair(run, torch.Size(facts.event_shape))
        stacked = groups.get("params", {}) | groups.get("buffers", {})
        for name, tensor in pair.state_dict(keep_vars=True).items():
            found = stacked.get(name)
            if found is None or found.dtype != tensor.dtype:
                raise checkpoint_mismatch(file, name)
            # A bank of encodings is still empty here.
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
        raise AssertionError("a grid holds every combination of its values")

    def _attach_details(self, measurement: xr.DataTree) -> None:
        """Puts what there is of each image and to see into a measurement."""
        told = json.loads(measurement.attrs.get("measure", "{}"))
        study = self.study.replace(**{f"measure.{key}": value for key, value in told.items()})
        schema.attach_details(measurement, study, self.folder, measurement.name or "")

    def save(self) -> None:
        """Writes the results, and the study that they are of if its file is gone."""
        if not (self.folder / "study.yaml").exists():
            atomic.write(self.folder / "study.yaml", self.study.to_yaml().encode())
        schema.save(self.tree, self.folder / "results.nc")


def study_in(folder: Path) -> Study:
    """The study whose folder it is.

    Raises:
        InputError: the folder holds no study.
    """
    atomic.check_plain(folder)
    if not (folder / "study.yaml").is_file():
        lacking = "it has no study.yaml" if folder.exists() else "there is no such folder"
        raise InputError(f"{folder}: expected the folder of a study, but {lacking}")
    return Study.load(folder / "study.yaml", trust=None)
