"""Diagnoses the guide of a trained run: exact posteriors, inference gap and predictive checks."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pyro
import torch
import xarray as xr
from torch import Tensor

from pyrovae.analysis.diagnosis.chains import ChainSettings
from pyrovae.analysis.diagnosis.diagnose import Diagnosis, diagnose
from pyrovae.analysis.diagnosis.predictive_checks import image_statistics, predictive_statistics, vector_statistics
from pyrovae.analysis.figures import diagnosis, style
from pyrovae.analysis.inference_data import inference_data
from pyrovae.build import make_data, user_sources
from pyrovae.data import as_input
from pyrovae.errors import InputError, UnsupportedError
from pyrovae.estimators import Annealing, Optimisation
from pyrovae.programs.noise import derive_seed, fork_seed
from pyrovae.programs.pair import Pair
from pyrovae.runner.open import open_results
from pyrovae.store.results import Results
from pyrovae.study import Run, check_trust
from pyrovae.system import atomic
from pyrovae.system.device import float32_by_default
from pyrovae.system.progress import Expected, StudyProgress
from pyrovae.system.provenance import software_versions

#: Images of the predictive checks, how many at once, and draws for each.
CHECKED, CHUNK, DRAWS = 128, 16, 100


def diagnose_run(
    folder: str | Path,
    select: Mapping[str, Any],
    images: Sequence[int] = (0, 1, 2),
    *,
    split: str = "test",
    chains: int = ChainSettings.chains,
    draws: int = ChainSettings.draws,
    warmup: int = ChainSettings.warmup,
    annealing: Annealing = Annealing(chains=32),
    optimisation: Optimisation = Optimisation(),
    trust: Collection[str] = (),
    quiet: bool = True,
) -> tuple[Diagnosis, Path]:
    """Diagnoses the guide of one run of a study on some images, and saves the result.

    Args:
        folder: the folder of the study.
        select: the run, by a value for each axis with several values; by default the first seed.
        images: rows of the split.
        split: "test" or "train".
        chains, draws, warmup: as in `pyrovae.analysis.diagnosis.chains.ChainSettings`.
        annealing, optimisation: as in `pyrovae.analysis.diagnosis.diagnose.diagnose`.
        trust: modules whose code may run, if the study names components of the user.
        quiet: print nothing.

    Returns:
        The diagnosis, and a new folder, ``diagnosis_1`` or the next free number in the folder of the study, with
        guide.nc and exact.nc for ArviZ, summary.nc, checks.nc (statistics of observed and drawn images), and figures.

    Raises:
        InputError: the study has no such run, it is not trained yet, an image does not exist, or code is not trusted.

    Example:
        >>> from pyrovae import Study, run
        >>> tiny = {"steps": 2, "depth": 1, "width": 8, "train_images": 64, "test_images": 64, "seed": 0}
        >>> results = run(Study.load("quick", **tiny), out=tmp_path / "mine", quiet=True)
        >>> few = {"annealing": Annealing(10), "optimisation": Optimisation(10), "draws": 20, "warmup": 20}
        >>> found, folder = diagnose_run(tmp_path / "mine", {"beta": 1}, images=[5], chains=2, **few)
        >>> found.summary.attrs["beta"], sorted(file.name for file in folder.glob("*.nc"))
        (1.0, ['checks.nc', 'exact.nc', 'guide.nc', 'summary.nc'])
    """
    results = open_results(folder, trust)
    check_trust(results.study.settings(), trust)
    with float32_by_default():
        subject = _Subject.of(results, select, split, images)
        _check_finite(subject.pair, subject.x, f"the run at {subject.label}")
        found = _diagnose(subject, ChainSettings(chains, draws, warmup), annealing, optimisation, quiet)
        return _save(found, subject, results.folder)


@dataclass(frozen=True)
class _Subject:
    """A trained run, and the images on which it is diagnosed.

    Attributes:
        label: the coordinates of the run in the grid, as text.
        split: the images of a split, as in the data set.
        rows: the images to diagnose.
        attrs: attributes of everything that is saved.
    """

    run: Run
    pair: Pair
    label: str
    split: Tensor
    rows: list[int]
    attrs: dict[str, Any]

    @classmethod
    def of(cls, results: Results, select: Mapping[str, Any], split: str, images: Sequence[int]) -> "_Subject":
        """Loads a run of a study and the images of a split."""
        select = {"seed": results.study.axes["seed"][0], **select}
        run = results.run(**select)
        pair, chosen = results.pair(**select), dict(make_data(run).splits())[split]
        rows = list(dict.fromkeys(images))
        if not rows or not all(0 <= row < len(chosen) for row in rows):
            raise InputError(f"images: expected rows of the {len(chosen):,} {split} images, from 0 on, got {rows}")
        coordinates = results.study.coordinates(run)
        label = ", ".join(f"{key} {value}" for key, value in coordinates.items())
        versions = ", ".join([software_versions(), *user_sources(run)])
        attrs: dict[str, Any] = {"study": results.study.name, "split": split, "versions": versions}
        attrs |= {key: _as_attribute(value) for key, value in coordinates.items() if value is not None}
        return cls(run, pair, label, chosen, rows, attrs)

    @property
    def x(self) -> Tensor:
        """The images to diagnose, as a program takes them."""
        return as_input(self.split[self.rows])


def _as_attribute(value: Any) -> int | float | str:
    return value if isinstance(value, int | float) else str(value)


def _check_finite(pair: Pair, x: Tensor, label: str) -> None:
    """Raises InputError if images have no finite ELBO, because the run diverged."""
    # Validation would raise where a scale is infinite.
    with torch.no_grad(), fork_seed(0), pyro.validation_enabled(False):
        loss = pair(x).loss
    if not loss.isfinite().all():
        raise InputError(f"{label}: expected a finite ELBO of these images, got none: the run has diverged")


def _diagnose(
    subject: _Subject, nuts: ChainSettings, annealing: Annealing, optimisation: Optimisation, quiet: bool
) -> Diagnosis:
    steps = len(subject.rows) * nuts.trajectories + optimisation.steps + 2 * annealing.temperatures
    try:
        with StudyProgress([Expected("diagnose", subject.label, steps)], timed=False, quiet=quiet) as progress:
            return diagnose(
                subject.pair,
                subject.x,
                nuts=nuts,
                annealing=annealing,
                optimisation=optimisation,
                images=subject.rows,
                attrs=subject.attrs,
                seed=subject.run.seed,
                stepped=progress.start(subject.label, steps, phase="diagnose").advance,
            )
    except UnsupportedError as error:
        raise InputError(f"this pair cannot be diagnosed: {error}") from None


def _save(found: Diagnosis, subject: _Subject, folder: Path) -> tuple[Diagnosis, Path]:
    """Writes a diagnosis and its predictive checks to a new folder; what a check does not support becomes a note."""
    trees = {"guide": found.guide, "exact": found.exact, "summary": found.summary}
    drawn = {"marginals": diagnosis.marginals(found), "inference_gap": diagnosis.inference_gap(found)}
    try:
        checks = _predictive_checks(subject)
    except UnsupportedError as error:
        found = replace(found, notes=(*found.notes, f"there are no predictive checks: {error}"))
    else:
        trees["checks"] = checks
        for group in ("prior_predictive", "posterior_predictive"):
            drawn[group] = diagnosis.predictive_checks(checks, group)
    with atomic.exclusive(folder / ".locks" / "diagnosis", lambda _: True):
        partial = folder / ".diagnosis.part"
        atomic.remove(partial)  # of a killed process
        partial.mkdir()
        try:
            for name, tree in trees.items():
                atomic.write(partial / f"{name}.nc", tree.to_netcdf(engine="h5netcdf"))
            style.write(drawn, partial)
            targets = (folder / f"diagnosis_{number}" for number in count(1))
            return found, partial.rename(next(target for target in targets if not target.exists()))
        finally:
            atomic.remove(partial)


def _predictive_checks(subject: _Subject) -> xr.DataTree:
    """Statistics of observed and drawn images, a few images at a time, because draws take memory."""
    likelihood = getattr(subject.pair.model, "likelihood", None)
    vectors = partial(vector_statistics, dimensions=getattr(likelihood, "dimensions", None))
    statistics, chunks = vectors if subject.split.dim() == 2 else image_statistics, []
    for number, x in enumerate(as_input(subject.split[:CHECKED]).split(CHUNK)):
        rows = range(number * CHUNK, number * CHUNK + len(x))
        seed = derive_seed(subject.run.seed, "predictive checks", number)
        drawn = inference_data(subject.pair, x, draws=DRAWS, images=rows, seed=seed)
        chunks.append(predictive_statistics(drawn, statistics))
    groups = {group: [chunk[group].to_dataset() for chunk in chunks] for group in chunks[0].children}
    joined = {group: xr.concat(datasets, "image") for group, datasets in groups.items()}
    return xr.DataTree.from_dict({"/": xr.Dataset(attrs=subject.attrs), **joined})
