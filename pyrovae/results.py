"""The results of a study: an xarray DataTree, on disk as one netCDF file beside the checkpoints."""

import difflib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr

from pyrovae import checkpoint
from pyrovae.errors import InputError
from pyrovae.evaluate import INFORMATION, Measured
from pyrovae.files import replacing
from pyrovae.pair import Pair
from pyrovae.study import Cohort, Run, Study
from pyrovae.train import Training, probe_steps

SPLITS = ("train", "test")
_LONG_NAMES = {
    "distortion": "distortion D",
    "distortion_se": "standard error of D over images",
    "rate": "rate R",
    "rate_se": "standard error of R over images",
    "elbo": "-D - R",
    "elbo_se": "standard error of the ELBO over images",
    "floor": "smallest distortion that any decoder can reach",
    "loss": "D + beta R",
    "mutual_information": "mutual information I of training images and codes",
    "mutual_information_se": "standard error of I over images",
    "prior_gap": "prior gap G = KL(q(z) || p(z))",
    "prior_gap_se": "standard error of G over images",
    "marginal_rate": "rate of test images under the inference marginal of the training images",
    "marginal_rate_se": "standard error of that rate over images",
    "active_units": "latent dimensions whose posterior mean varies by more than 0.01 over training images",
    "log_n": "logarithm of the number of training images, the most that I can be",
}
#: What is known of every run, and how it says that it is not known yet.
_RUN_FACTS: dict[str, Any] = {
    "status": np.array("pending", dtype=object),
    "frozen_at": -1,
    "last_loss": np.nan,
    "cohort": -1,
    "seconds": np.nan,
    **{name: np.array("", dtype=object) for name in ("rate_kind", "way", "device", "versions")},
}
#: (run, event shape) → a pair with initial weights.
MakePair = Callable[[Run, torch.Size], Pair]


class Results:
    """What a study leaves behind in its folder.

    Attributes:
        folder: holds study.yaml, results.nc, checkpoints/ and figures/.
        study: the study, resolved.
        tree: ``/rate_distortion`` over split and the axes of the grid, ``/images`` the same per image,
            ``/information`` with mutual information, prior gap and their like, ``/curves`` over step, ``/runs`` with
            the state of every run; all but counts in nats per image.
    """

    def __init__(self, folder: Path, study: Study, tree: xr.DataTree, make_pair: MakePair) -> None:
        self.folder = folder
        self.study = study
        self.tree = tree
        self._make_pair = make_pair

    @classmethod
    def open(cls, folder: str | Path, make_pair: MakePair) -> "Results":
        """Opens the results in a folder.

        Raises:
            InputError: the folder holds no study, or a file in it is damaged.
        """
        folder = Path(folder)
        if not (folder / "study.yaml").is_file():
            raise InputError(f"{folder}: expected the folder of a study, but it has no study.yaml")
        study = Study.load(folder / "study.yaml")
        file = folder / "results.nc"
        tree = _load(file) if file.exists() else _empty(study)
        return cls(folder, study, tree, make_pair)

    @classmethod
    def create(cls, folder: str | Path, study: Study, make_pair: MakePair) -> "Results":
        """Opens the results of a study in its folder, or makes the folder.

        Raises:
            InputError: the folder holds another study, or other files.
        """
        folder = Path(folder)
        file = folder / "study.yaml"
        if not file.exists():
            with replacing(file) as beside:
                beside.write_text(study.to_yaml(), encoding="utf-8")
        elif (before := file.read_text(encoding="utf-8")) != study.to_yaml():
            raise InputError(f"{folder}: expected the same study, got other settings: {_changes(before, study)}")
        return cls.open(folder, make_pair)

    def checkpoint_file(self, cohort: Cohort) -> Path:
        """Where the weights of a cohort are."""
        return self.folder / "checkpoints" / f"cohort-{cohort.index:03d}.safetensors"

    def has(self, cohort: Cohort) -> bool:
        """Whether all runs of a cohort were measured."""
        states = [str(self.tree["runs"]["status"].sel(self.study.coordinates(run)).item()) for run in cohort.runs]
        return "pending" not in states

    def record(self, cohort: Cohort, measured: Measured, training: Training, provenance: Mapping[str, Any]) -> None:
        """Enters what was measured on a cohort, and writes the file."""
        _enter_measured(self.tree, self.study, cohort, measured)
        steps = [int(step) for step in training.curves["step"]]
        for number, run in enumerate(cohort.runs):
            here = self.study.coordinates(run)
            for name in ("loss", "distortion", "rate"):
                points = torch.stack(training.curves[name])[:, :, number].T.numpy()
                self.tree["curves"][name].loc[here | {"step": steps}] = points
            frozen = int(training.frozen_at[number])
            facts = {"status": "frozen" if frozen >= 0 else "done", "frozen_at": frozen, "cohort": cohort.index}
            for name, value in {**facts, "last_loss": float(training.last_loss[number]), **provenance}.items():
                self.tree["runs"][name].loc[here] = value
        self._save()

    def record_again(self, study: Study, measured: Sequence[Measured]) -> xr.DataTree:
        """Enters what was measured anew on every cohort, beside the rest, and writes the file.

        Args:
            study: the study, with the settings that were measured with now.
        """
        tree = xr.DataTree.from_dict(_unmeasured(study))
        for cohort, each in zip(study.cohorts(), measured, strict=True):
            _enter_measured(tree, study, cohort, each)
        tree.attrs["measure"] = study.measure.model_dump_json()
        name = f"evaluation_{1 + sum(child.startswith('evaluation_') for child in self.tree.children)}"
        self.tree[name] = tree
        self._save()
        return self.tree.children[name]

    def pair(self, **coordinates: Any) -> Pair:
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
            raise InputError(f"{self.folder}: the run at {self.study.coordinates(run)} is not trained yet") from None
        pair = self._make_pair(run, torch.Size(facts["event_shape"]))
        stacked = groups["params"] | groups.get("buffers", {})
        with torch.no_grad():
            for name, tensor in [*pair.named_parameters(), *pair.named_buffers()]:
                tensor.copy_(stacked[name][cohort.runs.index(run)])
        return pair

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
                if self.study.coordinates(run).items() >= dict(coordinates).items():
                    return run, cohort
        raise AssertionError("a grid holds every combination of its values")

    def _save(self) -> None:
        with replacing(self.folder / "results.nc") as beside:
            self.tree.to_netcdf(beside, engine="h5netcdf")


def _load(file: Path) -> xr.DataTree:
    try:
        with xr.open_datatree(file, engine="h5netcdf") as tree:
            loaded = tree.load()
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"{file}: expected results, but the file is damaged ({reason}); delete it, and the same command measures "
            "the trained runs again"
        ) from error
    # Text comes back with a fixed length, which would cut what is entered later.
    states = loaded["/runs"].to_dataset()
    text = {name: states[name].astype(object) for name in states if states[name].dtype.kind == "U"}
    loaded["/runs"] = xr.DataTree(states.assign(text))
    return loaded


def side_by_side(trees: Mapping[str, xr.DataTree]) -> xr.DataTree:
    """Measurements of one study with an axis ``measured`` that tells them apart, by the names given here."""
    names = xr.Variable("measured", list(trees))
    return xr.DataTree.from_dict(
        {
            group: xr.concat([tree[group].to_dataset() for tree in trees.values()], names)
            for group in ("rate_distortion", "information")
        }
    )


def _enter_measured(tree: xr.DataTree, study: Study, cohort: Cohort, measured: Measured) -> None:
    groups = {"rate_distortion": measured.cells, "information": measured.information, "images": measured.images}
    for number, run in enumerate(cohort.runs):
        for group, variables in groups.items():
            for name in variables.keys() & tree[group].data_vars:
                tree[group][name].loc[study.coordinates(run)] = variables[name][number]


def _empty(study: Study) -> xr.DataTree:
    """The tree with every cell of the grid missing."""
    steps = sorted({step for run in study.runs() for step in probe_steps(run.steps, study.measure.points)})
    shape = [len(values) for values in study.axes.values()]
    runs = {name: (list(study.axes), np.full(shape, missing)) for name, missing in _RUN_FACTS.items()}
    return xr.DataTree.from_dict(
        {
            "/": xr.Dataset(attrs={"study": study.to_yaml()}),
            **_unmeasured(study),
            "/curves": _grid(study, ["loss", "distortion", "rate"], {"split": SPLITS, "step": steps}),
            "/runs": xr.Dataset(runs, {key: list(values) for key, values in study.axes.items()}),
        }
    )


def _unmeasured(study: Study) -> dict[str, xr.Dataset]:
    """The groups that evaluation fills."""
    cells = [name for each in ("distortion", "rate", "elbo") for name in (each, f"{each}_se")]
    errors = [f"{name}_se" for name, kind in INFORMATION.items() if kind != "exact"]
    return {
        "/rate_distortion": _grid(study, [*cells, "floor"], {"split": SPLITS}),
        "/information": _grid(study, [*INFORMATION, *errors], {}),
        "/images": _grid(study, ["distortion", "rate"], {"split": SPLITS, "image": range(study.measure.images)}),
    }


def _grid(study: Study, names: Sequence[str], extra: Mapping[str, Sequence[Any]]) -> xr.Dataset:
    """Variables over the extra dimensions and the axes of the grid, all missing."""
    coords = {name: list(values) for name, values in {**extra, **study.axes}.items()}
    shape = [len(values) for values in coords.values()]
    return xr.Dataset({name: (list(coords), np.full(shape, np.nan), _attributes(name)) for name in names}, coords)


def _attributes(name: str) -> dict[str, str]:
    unit = "1" if name == "active_units" else "nats per image"
    kind = {"kind": INFORMATION[name]} if name in INFORMATION else {}
    return {"units": unit, "long_name": _LONG_NAMES[name], **kind}


def _changes(before: str, study: Study) -> str:
    """The lines in which two study files differ, on one line."""
    lines = difflib.ndiff(before.splitlines(), study.to_yaml().splitlines())
    return "; ".join(line for line in lines if line[0] in "+-")
