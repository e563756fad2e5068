"""The tree of a study's results: its groups, their variables, and how they get in and out of it."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from pyrovae.errors import InputError
from pyrovae.estimators import pareto_k_threshold
from pyrovae.evaluate import Measured
from pyrovae.measures import information, likelihood, memorisation
from pyrovae.study import Cohort, Study
from pyrovae.train import probe_steps

SPLITS = ("train", "test")
_KINDS = {**information.KINDS, **likelihood.KINDS, **memorisation.KINDS}
_LONG_NAMES = {
    "distortion": "distortion D",
    "rate": "rate R",
    "elbo": "-D - R",
    "bits_per_dim": "negative ELBO in bits per dimension of x",
    "images": "number of images",
    "pixel_distance": "distance to the nearest (other) training image, in pixels of [0, 1]",
    "factor_distance": "distance to the nearest (other) training image, in factors of [0, 1]",
    "floor": "smallest distortion that any decoder can reach",
    "loss": "D + beta R, at the beta that a schedule ends at",
    "mutual_information": "mutual information I of training images and codes",
    "prior_gap": "prior gap G = KL(q(z) || p(z))",
    "marginal_rate": "rate of test images under the inference marginal of the training images",
    "active_units": "latent dimensions whose posterior mean varies by more than 0.01 over training images",
    "test_mutual_information": "mutual information of test images and codes, under their own q(z)",
    "test_prior_gap": "prior gap of the test images, KL(q_test(z) || p(z))",
    "log_likelihood": "importance-weighted bound of log p(x) of test images",
    "high_pareto_k": "share of these images with a Pareto k above its threshold, where the bound may be loose by far",
    "pareto_k": "Pareto k of the importance weights",
    "effective_draws": "effective number of draws behind the importance-weighted bound, mean over images",
    "annealed_log_likelihood": "bound of log p(x) of these images by annealed importance sampling",
    "annealed_gain": "how far annealing is above importance weighting on the same images",
    "acceptance": "share of the moves of annealing that were accepted",
    "sandwich_gap": "bound from above less bound from below, on images simulated from the model",
    "memorising_distortion": "distortion of the decoder of infinite capacity with a share of the mean image",
    "infinite_share": "share of images for which that distortion is infinite without the mean image",
    "perplexity": "number of training images that the decoder of infinite capacity mixes, exp of the entropy",
    "mixing_share": "share of the mean image, fitted to training images each left out of its own reconstruction",
    "reconstruction_distance": "distance of reconstructions to the nearest training image, in pixels of [0, 1]",
    "memorising_distance": "the same for reconstructions by the decoder of infinite capacity",
    "log_n": "logarithm of the number of training images, the most that I can be",
}
#: What is known of every run, and how it says that it is not known yet.
_RUN_FACTS: dict[str, Any] = {
    "status": np.array("pending", dtype=object),
    "frozen_at": -1,
    "last_loss": np.nan,
    "cohort": -1,
    "seconds": np.nan,
    **{name: np.array("", dtype=object) for name in ("rate_kind", "distortion_kind", "unmeasured")},
    **{name: np.array("", dtype=object) for name in ("way", "device", "versions")},
}
#: Variables with a unit other than nats per image.
_UNITS = {
    "bits_per_dim": "bits per dimension",
    **dict.fromkeys(
        (
            "active_units",
            "images",
            "pixel_distance",
            "factor_distance",
            "high_pareto_k",
            "pareto_k",
            "effective_draws",
            "acceptance",
            "infinite_share",
            "perplexity",
            "mixing_share",
            "reconstruction_distance",
            "memorising_distance",
        ),
        "1",
    ),
}
_IMAGES = ["sample", "channel", "row", "column"]
#: The sides of a picture.
PICTURES = {
    **dict.fromkeys(("image", "original", "reconstruction", "memorised", "nearest"), _IMAGES),
    "traversal": ["rank", *_IMAGES],
    "latent": ["rank"],
    "share": ["rank"],
    "z1": ["column"],
    "z2": ["row"],
    "log_q": ["row", "column"],
    "log_p": ["row", "column"],
}
_PER_IMAGE = ["distortion", "rate", "log_likelihood", "pareto_k", "annealed_log_likelihood", "memorising_distortion"]
_PER_IMAGE += ["reconstruction_distance", "memorising_distance"]
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
    images = _grid(study, _PER_IMAGE, {"split": SPLITS, "image": range(study.measure.per_image)})
    images["pareto_k"].attrs["threshold"] = pareto_k_threshold(study.measure.particles)
    cells = ["distortion", "rate", "elbo"]
    single = _grid(study, ["mixing_share"], {})
    return {
        "/rate_distortion": _grid(study, [*_with_errors(cells), "floor", "bits_per_dim"], {"split": SPLITS}),
        "/information": _grid(study, [*_with_errors(information.KINDS), "log_n"], {}),
        "/likelihood": _grid(study, _with_errors(likelihood.KINDS), {}),
        "/memorisation": _grid(study, _with_errors(memorisation.KINDS), {"split": SPLITS}).merge(single),
        "/difficulty": _grid(study, _DIFFICULTY, {"split": SPLITS}),
        "/images": images,
    }


def _with_errors(names: Iterable[str]) -> list[str]:
    """The variables and their standard errors; what is exact for the images at hand has none."""
    return [each for name in names for each in (name, f"{name}_se") if each == name or _KINDS.get(name) != "exact"]


def _grid(study: Study, names: Sequence[str], extra: Mapping[str, Sequence[Any]]) -> xr.Dataset:
    """Variables over the extra dimensions and the axes of the grid, all missing."""
    coords = {name: list(values) for name, values in {**extra, **study.dimensions()}.items()}
    shape = [len(values) for values in coords.values()]
    return xr.Dataset({name: (list(coords), np.full(shape, np.nan), _attributes(name)) for name in names}, coords)


def _attributes(name: str) -> dict[str, str]:
    of = name.removesuffix("_se")
    long_name = _LONG_NAMES[of] if name == of else f"standard error over images of: {_LONG_NAMES[of]}"
    kind = {"kind": _KINDS[name]} if name in _KINDS else {}
    return {"units": _UNITS.get(of, "nats per image"), "long_name": long_name, **kind}


def enter(tree: xr.DataTree, study: Study, cohort: Cohort, measured: Measured) -> None:
    """Enters what was measured on the runs of a cohort."""
    for number, run in enumerate(cohort.runs):
        for group, variables in measured.groups.items():
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
        groups = (
            "rate_distortion",
            "information",
            "likelihood",
            "memorisation",
            "difficulty",
            "images",
            "curves",
            "runs",
        )
        lacking = set(groups) - set(loaded.children)
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
            for group in ("rate_distortion", "information", "likelihood", "memorisation", "levels")
            if all(group in tree.children for tree in trees.values())
        }
        | {"runs": next(iter(trees.values()))["runs"].to_dataset()}
    )
