"""The results of a study: an xarray DataTree, on disk as one netCDF file beside the checkpoints."""

import difflib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import xarray as xr

from pyrovae import checkpoint, tree
from pyrovae.errors import InputError
from pyrovae.evaluate import Measured
from pyrovae.files import replacing
from pyrovae.pair import Pair
from pyrovae.study import Cohort, Run, Study
from pyrovae.train import Training

#: (run, event shape) → a pair with initial weights.
MakePair = Callable[[Run, torch.Size], Pair]


class Results:
    """What a study leaves behind in its folder.

    Attributes:
        folder: holds study.yaml, results.nc, checkpoints/ and figures/.
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
        content = tree.load(file) if file.exists() else tree.empty(study)
        if content.attrs.get("study") != study.to_yaml():
            raise InputError(
                f"{folder}: expected results of the study in study.yaml, got those of another: "
                f"{_changes(str(content.attrs.get('study')), study)}; "
                "one of the two files was changed by hand, or is of another version"
            )
        return cls(folder, study, content, make_pair)

    @classmethod
    def create(cls, folder: str | Path, study: Study, make_pair: MakePair) -> "Results":
        """Opens the results of a study in its folder, or makes the folder.

        Raises:
            InputError: the folder holds another study, or a file in it is damaged.
        """
        folder = Path(folder)
        file = folder / "study.yaml"
        if not file.exists():
            with replacing(file) as beside:
                beside.write_text(study.to_yaml(), encoding="utf-8")
        elif (before := Study.load(file, trust=None).to_yaml()) != study.to_yaml():
            raise InputError(
                f"{folder}: expected the same study, got other settings: {_changes(before, study)}; "
                "choose another --out, or delete the folder"
            )
        return cls.open(folder, make_pair)

    def checkpoint_file(self, cohort: Cohort) -> Path:
        """Where the weights of a cohort are."""
        return self.folder / "checkpoints" / f"cohort-{cohort.index:03d}.safetensors"

    def has(self, cohort: Cohort) -> bool:
        """Whether all runs of a cohort were measured, and their weights are there."""
        if not self.checkpoint_file(cohort).exists():
            return False
        states = [str(self.tree["runs"]["status"].sel(self.study.coordinates(run)).item()) for run in cohort.runs]
        return "pending" not in states

    def record(self, cohort: Cohort, measured: Measured, training: Training, provenance: Mapping[str, Any]) -> None:
        """Enters what was measured on a cohort, and writes the file."""
        tree.enter(self.tree, self.study, cohort, measured)
        steps = [int(step) for step in training.curves["step"]]
        for number, run in enumerate(cohort.runs):
            here = self.study.coordinates(run)
            for name in ("loss", "distortion", "rate"):
                points = torch.stack(training.curves[name])[:, :, number].T.numpy()
                self.tree["curves"][name].loc[here | {"step": steps}] = points
            frozen = int(training.frozen_at[number])
            facts = {
                "status": "frozen" if frozen >= 0 else "done",
                "frozen_at": frozen,
                "cohort": cohort.index,
                "unmeasured": measured.notes[number],
            }
            for name, value in {**facts, "last_loss": float(training.last_loss[number]), **provenance}.items():
                self.tree["runs"][name].loc[here] = value
        self._save()

    def record_again(self, study: Study, measured: Sequence[Measured], prior: str | None = None) -> xr.DataTree:
        """Enters what was measured anew on every cohort, beside the rest, and writes the file.

        Args:
            study: the study, with the settings that were measured with now.
            prior: the prior that was put in the place of the pairs' own, if any.
        """
        again = xr.DataTree.from_dict(tree.unmeasured(study))
        for cohort, each in zip(study.cohorts(), measured, strict=True):
            tree.enter(again, study, cohort, each)
        again.attrs["measure"] = study.measure.model_dump_json()
        if prior is not None:
            again.attrs["prior"] = prior
        name = f"evaluation_{1 + sum(child.startswith('evaluation_') for child in self.tree.children)}"
        self.tree[name] = again
        self._save()
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
        try:
            groups, facts = checkpoint.load(self.checkpoint_file(cohort))
        except FileNotFoundError:
            facts = {"step": -1}
        if facts["step"] < run.steps:
            raise InputError(f"{self.folder}: the run at {self.study.coordinates(run)} is not trained to its end yet")
        cohort.check(facts.get("runs"), self.checkpoint_file(cohort))
        pair = self._make_pair(run, torch.Size(facts["event_shape"]))
        stacked = groups["params"] | groups.get("buffers", {})
        for name, tensor in [*pair.named_parameters(), *pair.named_buffers()]:
            # Put in place of what is there, which may have another size, as a bank that is still empty.
            tensor.data = stacked[name][cohort.runs.index(run)].clone()
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
        for cohort in self.study.cohorts():
            for run in cohort.runs:
                if all(getattr(run, key) == value for key, value in coordinates.items()):
                    return run, cohort
        raise AssertionError("a grid holds every combination of its values")

    def _save(self) -> None:
        with replacing(self.folder / "results.nc") as beside:
            self.tree.to_netcdf(beside, engine="h5netcdf")


def study_in(folder: Path) -> Study:
    """The study whose folder it is.

    Raises:
        InputError: the folder holds no study.
    """
    if not (folder / "study.yaml").is_file():
        lacking = "it has no study.yaml" if folder.exists() else "there is no such folder"
        raise InputError(f"{folder}: expected the folder of a study, but {lacking}")
    return Study.load(folder / "study.yaml", trust=None)


def _changes(before: str, study: Study) -> str:
    """The lines in which two study files differ, on one line."""
    lines = difflib.ndiff(before.splitlines(), study.to_yaml().splitlines())
    return "; ".join(line for line in lines if line[0] in "+-")
