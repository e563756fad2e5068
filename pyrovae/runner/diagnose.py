"""Diagnoses the guide of a trained run: exact posteriors beside it, what it costs to be off, and predictive checks."""

import os
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pyro
import torch
import xarray as xr
from torch import Tensor

from pyrovae.analysis import figures
from pyrovae.analysis.diagnosis.diagnose import Diagnosis, diagnose
from pyrovae.analysis.diagnosis.predictive_checks import predictive_statistics
from pyrovae.analysis.figures import diagnosis
from pyrovae.analysis.inference_data import inference_data
from pyrovae.build import make_data, open_results, own_sources
from pyrovae.data import as_input
from pyrovae.errors import InputError, UnsupportedError
from pyrovae.estimators import Annealing, Optimisation
from pyrovae.programs.noise import derive_seed, fork_seed
from pyrovae.programs.pair import Pair
from pyrovae.study.grid import check_trust
from pyrovae.system import atomic
from pyrovae.system.progress import Watch
from pyrovae.system.provenance import software_versions

#: Images that predictive checks are made on, how many at once, and draws of each.
CHECKED, PIECE, DRAWS = 128, 16, 100


def diagnose_run(
    folder: str | Path,
    select: Mapping[str, Any],
    images: Sequence[int] = (0, 1, 2),
    *,
    split: str = "test",
    chains: int = 4,
    draws: int = 200,
    warmup: int = 200,
    annealing: Annealing = Annealing(chains=32),
    optimisation: Optimisation = Optimisation(),
    trust: Collection[str] = (),
    quiet: bool = True,
) -> tuple[Diagnosis, Path]:
    """Diagnoses the guide of one run of a study on some of its images, and writes down what it found.

    Args:
        folder: the folder of the study.
        select: the run, a value for each axis that has several; the first seed where none is given.
        images: rows of the split.
        split: "test" or "train".
        chains, draws, warmup, annealing, optimisation: as in `pyrovae.analysis.diagnosis.diagnose.diagnose`.
        trust: modules whose code may run, where the study names parts of its user's own.
        quiet: print nothing.

    Returns:
        What was found, and the folder that is new, ``diagnosis_1`` or the next free number in the folder of the study:
        guide.nc and exact.nc, which ArviZ reads, summary.nc, checks.nc with statistics of the first images and of
        images drawn, and figures.

    Raises:
        InputError: the study has no such run, it is not trained yet, an image does not exist, or code is not trusted.

    Example:
        >>> from pyrovae import Study, run
        >>> tiny = {"steps": 2, "depth": 1, "width": 8, "train_images": 64, "test_images": 64, "seed": 0}
        >>> results = run(Study.load("quick", **tiny), out=tmp_path / "mine", quiet=True)
        >>> few = {"annealing": Annealing(10), "optimisation": Optimisation(10), "draws": 20, "warmup": 20}
        >>> found, place = diagnose_run(tmp_path / "mine", {"beta": 1}, images=[5], chains=2, **few)
        >>> found.summary.attrs["beta"], sorted(file.name for file in place.glob("*.nc"))
        (1.0, ['checks.nc', 'exact.nc', 'guide.nc', 'summary.nc'])
    """
    results = open_results(folder, trust)
    check_trust(results.study.settings(), trust)
    select = {"seed": results.study.axes["seed"][0], **select}
    run = results.run(**select)
    pair, data = results.pair(**select), make_data(run)
    chosen = dict(data.splits())[split]
    rows = list(dict.fromkeys(images))
    if not rows or not all(0 <= row < len(chosen) for row in rows):
        raise InputError(f"images: expected rows of the {len(chosen):,} {split} images, from 0 on, got {rows}")
    coordinates = results.study.coordinates(run)
    told = {
        key: value if isinstance(value, int | float) else str(value)
        for key, value in coordinates.items()
        if value is not None
    }
    _check_finite(pair, as_input(chosen[rows]), f"the run at {coordinates}")
    versions = ", ".join([software_versions(), *own_sources(run)])
    attrs = {"study": results.study.name, "split": split, "versions": versions, **told}
    steps = count(1)
    work = len(rows) * chains * (draws + warmup) + optimisation.steps + 2 * annealing.temperatures
    try:
        with Watch(work, quiet=quiet) as watch:
            watcher = watch.begin(", ".join(f"{key} {value}" for key, value in coordinates.items()), work, 0)
            found = diagnose(
                pair,
                as_input(chosen[rows]),
                chains=chains,
                draws=draws,
                warmup=warmup,
                annealing=annealing,
                optimisation=optimisation,
                images=rows,
                attrs=attrs,
                seed=run.seed,
                stepped=lambda: watcher.stepped(next(steps)),
            )
    except UnsupportedError as error:
        raise InputError(f"no diagnosis of such pairs: {error}") from None
    beside = results.folder / f".diagnosis-{os.getpid()}.part"
    shutil.rmtree(beside, ignore_errors=True)  # of a killed process that had the same number
    try:
        _write(beside, {"guide": found.guide, "exact": found.exact, "summary": found.summary})
        drawn = {
            "marginals": diagnosis.marginals(found),
            "inference_gap": diagnosis.inference_gap(found),
        }
        try:
            checks = _statistics(pair, as_input(chosen[:CHECKED]), run.seed, attrs)
        except UnsupportedError as error:
            found = replace(found, notes=(*found.notes, f"there are no predictive checks: {error}"))
        else:
            _write(beside, {"checks": checks})
            for group in ("prior_predictive", "posterior_predictive"):
                drawn[group] = diagnosis.predictive_checks(checks, group)
        figures.write(drawn, beside)
        places = (results.folder / f"diagnosis_{number}" for number in count(1))
        return found, beside.rename(next(place for place in places if not place.exists()))
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _check_finite(pair: Pair, x: Tensor, what: str) -> None:
    """Raises InputError if a pair, as one that diverged, has no finite ELBO for images."""
    with torch.no_grad(), fork_seed(0), pyro.validation_enabled(False):  # which would raise where a scale is infinite
        loss = pair(x).loss
    if not loss.isfinite().all():
        raise InputError(f"{what}: expected a finite ELBO of these images, got none: the run has diverged")


def _statistics(pair: Pair, x: Tensor, seed: int, attrs: Mapping[str, Any]) -> xr.DataTree:
    """Statistics of images and of draws, some images at a time, because draws take memory."""
    pieces = []
    for number, part in enumerate(x.split(PIECE)):
        rows = range(number * PIECE, number * PIECE + len(part))
        data = inference_data(pair, part, draws=DRAWS, images=rows, seed=derive_seed(seed, "predictive checks", number))
        pieces.append(predictive_statistics(data))
    groups = {group: [piece[group].to_dataset() for piece in pieces] for group in pieces[0].children}
    whole = {group: xr.concat(parts, "image") for group, parts in groups.items()}
    return xr.DataTree.from_dict({"/": xr.Dataset(attrs=attrs), **whole})


def _write(place: Path, trees: Mapping[str, xr.DataTree | xr.Dataset]) -> None:
    for name, tree in trees.items():
        atomic.write(place / f"{name}.nc", tree.to_netcdf(engine="h5netcdf"))
