"""The tree of a study's results: its groups, their variables, and how they get in and out of it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from pyrovae.errors import InputError
from pyrovae.evaluate import INFORMATION, Measured
from pyrovae.study import Cohort, Study
from pyrovae.train import probe_steps

SPLITS = ("train", "test")
_LONG_NAMES = {
    "distortion": "distortion D",
    "distortion_se": "standard error of D over images",
    "rate": "rate R",
    "rate_se": "standard error of R over images",
    "elbo": "-D - R",
    "elbo_se": "standard error of the ELBO over images",
    "bits_per_dim": "negative ELBO in bits per dimension of x",
    "images": "number of images",
    "pixel_distance": "distance to the nearest (other) training image, in pixels of [0, 1]",
    "pixel_distance_se": "standard error of that distance over images",
    "factor_distance": "distance to the nearest (other) training image, in factors of [0, 1]",
    "factor_distance_se": "standard error of that distance over images",
    "floor": "smallest distortion that any decoder can reach",
    "loss": "D + beta R, at the beta that a schedule ends at",
    "mutual_information": "mutual information I of training images and codes",
    "mutual_information_se": "standard error of I over images",
    "prior_gap": "prior gap G = KL(q(z) || p(z))",
    "prior_gap_se": "standard error of G over images",
    "marginal_rate": "rate of test images under the inference marginal of the training images",
    "marginal_rate_se": "standard error of that rate over images",
    "active_units": "latent dimensions whose posterior mean varies by more than 0.01 over training images",
    "test_mutual_information": "mutual information of test images and codes, under their own q(z)",
    "test_mutual_information_se": "standard error of that information over images",
    "test_prior_gap": "prior gap of the test images, KL(q_test(z) || p(z))",
    "test_prior_gap_se": "standard error of that gap over images",
    "log_likelihood": "importance-weighted bound of log p(x) of test images",
    "log_likelihood_se": "standard error of that bound over images",
    "log_n": "logarithm of the number of training images, the most that I can be",
}
#: What is known of every run, and how it says that it is not known yet.
_RUN_FACTS: dict[str, Any] = {
    "status": np.array("pending", dtype=object),
    "frozen_at": -1,
    "last_loss": np.nan,
    "cohort": -1,
    "seconds": np.nan,
    **{name: np.array("", dtype=object) for name in ("rate_kind", "distortion_kind", "information")},
    **{name: np.array("", dtype=object) for name in ("way", "device", "versions")},
}
#: Variables with a unit other than nats per image.
_UNITS = {
    "active_units": "1",
    "bits_per_dim": "bits per dimension",
    "images": "1",
    **{f"{space}_distance{se}": "1" for space in ("pixel", "factor") for se in ("", "_se")},
}
#: The sides of a picture.
PICTURES = {
    "image": ["sample", "channel", "row", "column"],
    "z1": ["column"],
    "z2": ["row"],
    "log_q": ["row", "column"],
    "log_p": ["row", "column"],
}
_PER_IMAGE = ["distortion", "rate", "log_likelihood"]
_DIFFICULTY = ["images", "pixel_distance", "pixel_distance_se", "factor_distance", "factor_distance_se"]


def empty(study: Study) -> xr.DataTree:
    """The tree with every cell of the grid missing."""
    steps = sorted({step for run in study.runs() for step in probe_steps(run.steps, study.measure.points)})
    dimensions = study.dimensions()
    shape = [len(values) for values in dimensions.values()]
    runs = {name: (list(dimensions), np.full(shape, missing)) for name, missing in _RUN_FACTS.items()}
    return xr.DataTree.from_dict(
        {
            "/": xr.Dataset(attrs={"study": study.to_yaml()}),
            **unmeasured(study),
            "/curves": _grid(study, ["loss", "distortion", "rate"], {"split": SPLITS, "step": steps}),
            "/runs": xr.Dataset(runs, dimensions),
        }
    )


def unmeasured(study: Study) -> dict[str, xr.Dataset]:
    """The groups that evaluation fills."""
    cells = [name for each in ("distortion", "rate", "elbo") for name in (each, f"{each}_se")]
    errors = [f"{name}_se" for name, kind in INFORMATION.items() if kind != "exact"]
    return {
        "/rate_distortion": _grid(study, [*cells, "floor", "bits_per_dim"], {"split": SPLITS}),
        "/information": _grid(study, [*INFORMATION, *errors], {}),
        "/difficulty": _grid(study, _DIFFICULTY, {"split": SPLITS}),
        "/images": _grid(study, _PER_IMAGE, {"split": SPLITS, "image": range(study.measure.images)}),
    }


def _grid(study: Study, names: Sequence[str], extra: Mapping[str, Sequence[Any]]) -> xr.Dataset:
    """Variables over the extra dimensions and the axes of the grid, all missing."""
    coords = {name: list(values) for name, values in {**extra, **study.dimensions()}.items()}
    shape = [len(values) for values in coords.values()]
    return xr.Dataset({name: (list(coords), np.full(shape, np.nan), _attributes(name)) for name in names}, coords)


def _attributes(name: str) -> dict[str, str]:
    unit = _UNITS.get(name, "nats per image")
    kind = {"kind": INFORMATION[name]} if name in INFORMATION else {}
    return {"units": unit, "long_name": _LONG_NAMES[name], **kind}


def enter(tree: xr.DataTree, study: Study, cohort: Cohort, measured: Measured) -> None:
    """Enters what was measured on the runs of a cohort."""
    groups = {"rate_distortion": measured.cells, "information": measured.information, "images": measured.images}
    for number, run in enumerate(cohort.runs):
        for group, variables in groups.items():
            for name in variables.keys() & tree[group].data_vars:
                tree[group][name].loc[study.coordinates(run)] = variables[name][number]
        for name, values in measured.difficulty.items():
            tree["difficulty"][name].loc[study.coordinates(run)] = values
    _enter_levels(tree, study, cohort, measured)
    _enter_pictures(tree, study, cohort, measured)


def _enter_levels(tree: xr.DataTree, study: Study, cohort: Cohort, measured: Measured) -> None:
    """Enters the rate of every latent site; what the sites are shows only once a pair is there."""
    sites = {"level": list(measured.levels), "split": SPLITS}
    grid = _grid(study, ["rate", "rate_se"], sites)
    if "levels" in tree.children:
        before = tree["levels"].to_dataset()
        union = [*before.level.values, *(site for site in measured.levels if site not in before.level)]
        grid = before.reindex(level=union)
    for site, variables in measured.levels.items():
        for name, values in variables.items():
            for number, run in enumerate(cohort.runs):
                grid[name].loc[study.coordinates(run) | {"level": site}] = values[number]
    tree["levels"] = xr.DataTree(grid)


def _enter_pictures(tree: xr.DataTree, study: Study, cohort: Cohort, measured: Measured) -> None:
    """Enters what there is to see of a run; how large a picture is shows only once one is there.

    Pictures of another size than the first, as of another data set, are left out.
    """
    for group, variables in measured.pictures.items():
        if group not in tree.children:
            tree[group] = xr.DataTree(_canvas(study, variables))
        for name, values in variables.items():
            for number, run in enumerate(cohort.runs):
                place = tree[group][name].loc[study.coordinates(run)]
                if place.shape == values[number].shape:
                    tree[group][name].loc[study.coordinates(run)] = values[number]


def _canvas(study: Study, variables: Mapping[str, NDArray[Any]]) -> xr.Dataset:
    """Variables over the axes of the grid and the sides of a picture, all missing."""
    axes = study.dimensions()
    shape = [len(values) for values in axes.values()]
    canvas = {}
    for name, values in variables.items():
        canvas[name] = ([*axes, *PICTURES[name]], np.full([*shape, *values.shape[1:]], _blank(values), values.dtype))
    return xr.Dataset(canvas, axes)


def _blank(values: NDArray[Any]) -> float:
    return 0 if values.dtype.kind == "u" else np.nan


def load(file: Path) -> xr.DataTree:
    """Reads a tree into memory.

    Raises:
        InputError: the file is damaged.
    """
    try:
        with xr.open_datatree(file, engine="h5netcdf") as tree:
            loaded = tree.load()
        lacking = {"rate_distortion", "information", "difficulty", "images", "curves", "runs"} - set(loaded.children)
        if lacking:
            raise ValueError(f"no group {', '.join(sorted(lacking))}")
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"{file}: expected results, but the file is damaged ({reason}); delete it, and 'pyrovae run' measures the "
            "trained runs again"
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
            for group in ("rate_distortion", "information", "levels")
            if all(group in tree.children for tree in trees.values())
        }
        | {"runs": next(iter(trees.values()))["runs"].to_dataset()}
    )
