"""The tree of a study's results: its groups, their variables, and how they get in and out of it."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import xarray as xr
from numpy.typing import NDArray
from xarray.core import indexing

from pyrovae.errors import InputError
from pyrovae.estimators import pareto_k_threshold
from pyrovae.measures import information, likelihood, memorisation
from pyrovae.measures.evaluate import Evaluation
from pyrovae.store import hdf, records
from pyrovae.study.grid import PER_RUN, Cohort, Study
from pyrovae.system import atomic, memory
from pyrovae.training.trainer import probe_steps

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
    "diverged_at": -1,
    "last_loss": np.nan,
    "seconds": np.nan,
    **{name: np.array("", dtype=object) for name in ("cohort", "rate_kind", "distortion_kind", "skipped")},
    **{name: np.array("", dtype=object) for name in ("mode", "device", "threads", "versions", "worker")},
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
_LEVELS = ["rate", "rate_se"]
_DIFFICULTY = ["images", "pixel_distance", "pixel_distance_se", "factor_distance", "factor_distance_se"]


def empty(study: Study, folder: Path | None = None) -> xr.DataTree:
    """The tree with every cell of the grid missing.

    Args:
        folder: of the study, where its details will be; None if there is none.

    Raises:
        InputError: it would not fit into memory.
    """
    tree = _empty(study)
    attach_details(tree, study, folder or Path())
    return tree


def evaluation(study: Study, prior: str | None) -> xr.DataTree:
    """The tree of a later measurement, with every cell of the grid missing, and without details.

    Args:
        study: with the settings that are measured with.
        prior: the prior that is put in the place of the pairs' own, if any.
    """
    swapped = {} if prior is None else {"prior": prior}
    root = xr.Dataset(attrs={"measure": study.measure.model_dump_json(), **swapped})
    return xr.DataTree.from_dict({"/": root, **_unmeasured(study)})


def attach_details(tree: xr.DataTree, study: Study, folder: Path, measurement: str = "") -> None:
    """Puts the details into a tree, to be read from their files where they are asked for.

    How large pictures are shows only once there are some; pictures of another size than the first, as of another data
    set, are left out.

    Args:
        folder: of the study, whose settings the details were measured with.
        measurement: the name of a later measurement; empty for the study's own.
    """
    cohorts, axes = tree["runs"].to_dataset()["cohort"].values, study.dimensions()
    places = [records.file_of(folder, measurement, cohort) for cohort in dict.fromkeys(cohorts.flat) if cohort]
    pictures = next((records.shapes(file, study) for file in places if file.exists()), {})
    shape = ((len(SPLITS), study.measure.per_image), np.dtype(float))
    shapes: dict[str, dict[str, Any]] = {"images": dict.fromkeys(records.PER_IMAGE, shape), **pictures}
    for group, variables in shapes.items():
        lazy = {}
        for name, (sides, dtype) in variables.items():
            grid = records.Grid(folder, measurement, study, cohorts, (group, name), sides, dtype)
            values: Any = indexing.CopyOnWriteArray(indexing.LazilyIndexedArray(grid))  # type: ignore[arg-type]
            lazy[name] = xr.Variable([*axes, *records.SIDES[group][name]], values)
        tree[group] = xr.DataTree(xr.Dataset(lazy, axes))
    images = tree["images"].to_dataset().assign_coords(split=list(SPLITS), image=range(study.measure.per_image))
    for name in records.PER_IMAGE:
        images[name].attrs = _attributes(name)
    images["pareto_k"].attrs["threshold"] = pareto_k_threshold(study.measure.particles)
    tree["images"] = xr.DataTree(images)


def _empty(study: Study) -> xr.DataTree:
    """The same without details."""
    steps = sorted({step for run in study.runs() for step in probe_steps(run.steps, study.measure.points)})
    curves = _grid(study, ["loss", "distortion", "rate"], {"split": SPLITS, "step": steps})
    root = xr.Dataset(attrs={"study": study.to_yaml()})
    return xr.DataTree.from_dict({"/": root, **_unmeasured(study), "/curves": curves})


def check_size(study: Study) -> None:
    """Raises InputError if the numbers of a study would not fit into memory."""
    runs = prod(study.shape())
    together = prod(len(values) for key, values in study.axes.items() if key in PER_RUN)
    of_images = together * len(records.PER_IMAGE) * study.measure.per_image
    memory.check_memory(
        8 * len(SPLITS) * (of_images + 3 * runs * study.measure.points), f"measure: the numbers of {runs:,} runs"
    )


def _unmeasured(study: Study) -> dict[str, xr.Dataset]:
    """What is measured, and what is known of the runs."""
    check_size(study)
    axes = study.dimensions()
    shape = [len(values) for values in axes.values()]
    runs = {name: (list(axes), np.full(shape, missing)) for name, missing in _RUN_FACTS.items()}
    cells = ["distortion", "rate", "elbo"]
    single = _grid(study, ["mixing_share"], {})
    return {
        "/rate_distortion": _grid(study, [*_with_errors(cells), "floor", "bits_per_dim"], {"split": SPLITS}),
        "/information": _grid(study, [*_with_errors(information.KINDS), "log_n"], {}),
        "/likelihood": _grid(study, _with_errors(likelihood.KINDS), {}),
        "/memorisation": _grid(study, _with_errors(memorisation.KINDS), {"split": SPLITS}).merge(single),
        "/difficulty": _grid(study, _DIFFICULTY, {"split": SPLITS}),
        "/runs": xr.Dataset(runs, axes),
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


def enter(tree: xr.DataTree, study: Study, cohort: Cohort, measured: Evaluation) -> None:
    """Enters what was measured on the runs of a cohort, but for the details."""
    _add_levels(tree, study, list(measured.levels))
    of_group = {group: tree[group].to_dataset() for group in (*measured.groups, "difficulty", "levels")}
    levels = of_group["levels"]
    sites = levels["level"].values.tolist()
    for number, run in enumerate(cohort.runs):
        place: tuple[Any, ...] = (..., *study.position(run))
        for group, variables in measured.groups.items():
            for name in variables.keys() & of_group[group].data_vars:
                of_group[group][name].values[place] = variables[name][number]
        for name, values in measured.difficulty.items():
            of_group["difficulty"][name].values[place] = values
        for site, variables in measured.levels.items():
            for name, values in variables.items():
                levels[name].values[(sites.index(site), *place)] = values[number]


def _add_levels(tree: xr.DataTree, study: Study, sites: list[str]) -> None:
    """Places for the rate of every latent site; what the sites are shows only once a pair is there."""
    before = tree["levels"].to_dataset() if "levels" in tree.children else None
    known = [] if before is None else before.level.values.tolist()
    union = [*known, *(site for site in sites if site not in known)]
    if before is None:
        tree["levels"] = xr.DataTree(_grid(study, _LEVELS, {"level": union, "split": SPLITS}))
    elif union != known:
        tree["levels"] = xr.DataTree(before.reindex(level=union))


def save(tree: xr.DataTree, file: Path) -> None:
    """Writes a tree, without the details, which have files of their own.

    Raises:
        OSError: the file cannot be written; what was there before is whole.
    """
    nodes = {node.path: node.to_dataset(inherit=False) for node in tree.subtree if node.name not in records.SIDES}
    atomic.write(file, atomic.with_checksum(xr.DataTree.from_dict(nodes).to_netcdf(engine="h5netcdf")))


def load(file: Path, study: Study) -> xr.DataTree:
    """Reads the tree of a study into memory, but for the details: what such a tree has, and nothing else.

    Raises:
        InputError: the file is damaged, or of another study.
    """
    with hdf.reading(file, "results") as found:
        before = hdf.text(found.attrs["study"], lines=True)
        if before != study.to_yaml():
            raise InputError(
                f"{file}: expected results of the study in study.yaml, got those of another: "
                f"{study.difference(before)}; one of the two files was changed by hand, or is of another version"
            )
        return _taken(found, study, file.parent)


def _taken(found: h5py.Group, study: Study, folder: Path) -> xr.DataTree:
    """The tree of a study with what was found; what was not found is missing in it."""
    tree = _filled(_empty(study), found, study, folder, "")
    for name in found:
        if re.fullmatch(r"evaluation_[1-9]\d*", name):
            node = found[name]
            measure = json.loads(node.attrs["measure"])
            of = study.replace(**{f"measure.{key}": value for key, value in measure.items()})
            prior = node.attrs.get("prior")
            missing = evaluation(of, None if prior is None else hdf.text(prior))
            tree[name] = _filled(missing, node, of, folder, name)
    return tree


def _filled(tree: xr.DataTree, found: h5py.Group, study: Study, folder: Path, measurement: str) -> xr.DataTree:
    """A tree with what was found for it, and the details in their folder."""
    if "levels" in found:
        sites = [hdf.text(site) for site in found["levels/level"].asstr()[()]]
        tree["levels"] = xr.DataTree(_grid(study, _LEVELS, {"level": sites, "split": SPLITS}))
    for group in [name for name in tree.children if name in found]:
        places = tree[group].to_dataset()
        taken = {
            name: each.copy(data=_fitting(found[group][name], each))
            for name, each in places.items()
            if name in found[group]
        }
        tree[group] = xr.DataTree(places.assign(taken))
    for name in set(tree["runs"].to_dataset()["cohort"].values.flat):
        if not re.fullmatch(r"(\d{3,}(-[01])*)?", name):
            raise ValueError(f"expected the name of a cohort, got {name!r:.60}")
    attach_details(tree, study, folder, measurement)
    return tree


def _fitting(values: h5py.Dataset, place: xr.DataArray) -> NDArray[Any]:
    """Values as the place for them has them."""
    text = place.dtype == object
    if not (text or np.can_cast(values.dtype, place.dtype, "same_kind")):
        raise ValueError(f"{values.name}: expected {place.dtype}, got {values.dtype}")
    return np.vectorize(hdf.text, otypes=[object])(values.asstr()[()]) if text else values[()].astype(place.dtype)


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
