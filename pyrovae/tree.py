"""The tree of a study's results: its groups, their variables, and how they get in and out of it."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from io import BytesIO
from math import prod
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from pyrovae import files, machine
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
    "seconds": np.nan,
    **{name: np.array("", dtype=object) for name in ("cohort", "rate_kind", "distortion_kind", "unmeasured")},
    **{name: np.array("", dtype=object) for name in ("way", "device", "threads", "versions", "worker")},
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
#: The groups that hold pictures.
PICTURED = ("samples", "reconstructions", "traversals", "plane")
_LEVELS = ["rate", "rate_se"]
_PER_IMAGE = ["distortion", "rate", "log_likelihood", "pareto_k", "annealed_log_likelihood", "memorising_distortion"]
_PER_IMAGE += ["reconstruction_distance", "memorising_distance"]
_DIFFICULTY = ["images", "pixel_distance", "pixel_distance_se", "factor_distance", "factor_distance_se"]


def empty(study: Study) -> xr.DataTree:
    """The tree with every cell of the grid missing.

    Raises:
        InputError: it would not fit into memory.
    """
    steps = sorted({step for run in study.runs() for step in probe_steps(run.steps, study.measure.points)})
    curves = _grid(study, ["loss", "distortion", "rate"], {"split": SPLITS, "step": steps})
    root = xr.Dataset(attrs={"study": study.to_yaml()})
    return xr.DataTree.from_dict({"/": root, **_unmeasured(study), "/curves": curves})


def evaluation(study: Study, prior: str | None) -> xr.DataTree:
    """The tree of a later measurement, with every cell of the grid missing.

    Args:
        study: with the settings that are measured with.
        prior: the prior that is put in the place of the pairs' own, if any.
    """
    swapped = {} if prior is None else {"prior": prior}
    root = xr.Dataset(attrs={"measure": study.measure.model_dump_json(), **swapped})
    return xr.DataTree.from_dict({"/": root, **_unmeasured(study)})


def check_size(study: Study) -> None:
    """Raises InputError if the numbers of a study would not fit into memory."""
    runs = prod(map(len, study.axes.values()))
    numbers = len(SPLITS) * (len(_PER_IMAGE) * study.measure.per_image + 3 * study.measure.points)
    machine.check_memory(8 * runs * numbers, f"measure: the numbers of {runs:,} runs")


def _unmeasured(study: Study) -> dict[str, xr.Dataset]:
    """What is measured, and what is known of the runs."""
    check_size(study)
    axes = study.dimensions()
    shape = [len(values) for values in axes.values()]
    runs = {name: (list(axes), np.full(shape, missing)) for name, missing in _RUN_FACTS.items()}
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
    grid = _grid(study, _LEVELS, sites)
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


def save(tree: xr.DataTree, file: Path) -> None:
    """Writes a tree.

    Raises:
        OSError: the file cannot be written; what was there before is whole.
    """
    files.write(file, files.sealed(tree.to_netcdf(engine="h5netcdf")))


def load(file: Path, study: Study) -> xr.DataTree:
    """Reads the tree of a study into memory: what such a tree has, and nothing else.

    Raises:
        InputError: the file is damaged, or of another study.
    """
    machine.check_memory(2 * file.stat().st_size, f"{file}: the results")
    try:
        content = files.unsealed(file.read_bytes())
        with h5py.File(BytesIO(content)) as found:
            _check_extent(found, content)
            before = _text(found.attrs["study"], lines=True)
            if before == study.to_yaml():
                return _taken(found, study)
    except Exception as error:  # the readers of a damaged file raise errors of many kinds
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"{file}: expected results, but the file is damaged ({reason[:200]}); delete it, and 'pyrovae run' "
            "measures the trained runs again"
        ) from error
    raise InputError(
        f"{file}: expected results of the study in study.yaml, got those of another: {study.difference(before)}; "
        "one of the two files was changed by hand, or is of another version"
    )


def _check_extent(file: h5py.File, content: bytes) -> None:
    """Raises ValueError if an HDF5 file says that it holds more than it does, or has parts in other places."""
    groups, extent = [file], 0
    while groups:
        group = groups.pop()
        for name in group:
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise ValueError(f"'{name}' is a link")
            part = group[name]
            extent += 40  # bytes that any part takes at the least, so that a circle of groups ends
            if isinstance(part, h5py.Group):
                groups.append(part)
            elif isinstance(part, h5py.Dataset):
                if part.is_virtual or part.external:
                    raise ValueError(f"'{name}' is in another place")
                extent += part.nbytes + _lengths(part, content)
            if extent > len(content):
                raise ValueError("it says that it holds more than it does")


def _lengths(part: h5py.Dataset, content: bytes) -> int:
    """Bytes of the texts of a dataset, which lie apart from it: it has the length and the place of each."""
    if part.dtype.kind != "O" or not part.size:
        return 0
    place = part.id.get_offset()
    if place is None or h5py.check_string_dtype(part.dtype) is None:
        raise ValueError(f"'{part.name}' is of a kind that is not expected")
    told = np.frombuffer(content, [("length", "<u4"), ("place", "V12")], part.size, place)
    return int(told["length"].sum(dtype=np.int64))


def _taken(found: h5py.Group, study: Study) -> xr.DataTree:
    """The tree of a study with what was found; what was not found is missing in it."""
    tree = _filled(empty(study), found, study)
    for name in found:
        if re.fullmatch(r"evaluation_[1-9]\d*", name):
            node = found[name]
            measure = json.loads(node.attrs["measure"])
            of = study.replace(**{f"measure.{key}": value for key, value in measure.items()})
            prior = node.attrs.get("prior")
            tree[name] = _filled(evaluation(of, None if prior is None else _text(prior)), node, study)
    return tree


def _filled(tree: xr.DataTree, found: h5py.Group, study: Study) -> xr.DataTree:
    """A tree with what was found for it."""
    if "levels" in found:
        sites = [_text(site) for site in found["levels/level"].asstr()[()]]
        tree["levels"] = xr.DataTree(_grid(study, _LEVELS, {"level": sites, "split": SPLITS}))
    for group in [name for name in tree.children if name in found]:
        places = tree[group].to_dataset()
        taken = {
            name: place.copy(data=_fitting(found[group][name], place))
            for name, place in places.items()
            if name in found[group]
        }
        tree[group] = xr.DataTree(places.assign(taken))
    axes = study.dimensions()
    shape = tuple(map(len, axes.values()))
    for group in [name for name in PICTURED if name in found]:
        canvas = {}
        for name in PICTURES.keys() & found[group].keys():
            values, dims = found[group][name], [*axes, *PICTURES[name]]
            if values.shape[: len(shape)] != shape or values.ndim != len(dims) or values.dtype.kind not in "uif":
                got = f"{values.dtype} of shape {list(values.shape)}"
                raise ValueError(f"{values.name}: expected a picture of each run, got {got}")
            canvas[name] = (dims, values[()])
        tree[group] = xr.DataTree(xr.Dataset(canvas, axes))
    return tree


def _fitting(values: h5py.Dataset, place: xr.DataArray) -> NDArray[Any]:
    """Values as the place for them has them."""
    text = place.dtype == object
    if not (text or np.can_cast(values.dtype, place.dtype, "same_kind")):
        raise ValueError(f"{values.name}: expected {place.dtype}, got {values.dtype}")
    return np.vectorize(_text, otypes=[object])(values.asstr()[()]) if text else values[()].astype(place.dtype)


def _text(value: Any, lines: bool = False) -> str:
    """Text that a terminal and a page can show."""
    if not isinstance(value, str) or not "".join(value.splitlines() if lines else [value]).isprintable():
        raise ValueError(f"expected text, got {value!r:.60}")
    return value


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
