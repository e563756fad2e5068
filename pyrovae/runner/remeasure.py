"""Re-evaluates a finished study with other measurement settings or another prior, without retraining."""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pyrovae import parts
from pyrovae.analysis import figures
from pyrovae.build import make_cohort_data
from pyrovae.errors import InputError
from pyrovae.estimators import prior_fit
from pyrovae.measures.declared import declared
from pyrovae.measures.evaluate import Measurements
from pyrovae.programs.checks import PairProperties
from pyrovae.programs.noise import fork_seed
from pyrovae.runner import prior_swap, reporting
from pyrovae.runner.cohort import job_label, measure, measuring_steps, save_record
from pyrovae.runner.jobs import Job
from pyrovae.runner.open import attach_theory, open_results
from pyrovae.runner.plan import plan
from pyrovae.runner.setup import pair_properties, start
from pyrovae.runner.validation import check_prior
from pyrovae.runner.workload import Workload
from pyrovae.store import schema
from pyrovae.store.layout import RunFolder
from pyrovae.store.results import Evaluation, Results, study_in
from pyrovae.study import Cohort, Run, Study, check_settings, check_trust
from pyrovae.system import atomic
from pyrovae.system.device import find_device, float32_by_default
from pyrovae.system.execution import Compile, Execution
from pyrovae.system.progress import Expected, ProgressReporter, StudyProgress
from pyrovae.system.provenance import process_name
from pyrovae.training.lockstep import Lockstep
from pyrovae.training.trainer import Training

#: Most characters of the name of an evaluation, before a digest is appended.
MAX_NAME = 120


@float32_by_default()
@fork_seed(0)
def reevaluate(
    folder: str | Path,
    *,
    measures: Sequence[str] = (),
    prior: str | None = None,
    device: str = "auto",
    scheduler: str | None = None,
    trust: Collection[str] = (),
    quiet: bool = True,
    **settings: int,
) -> tuple[Results, Evaluation]:
    """Re-evaluates a finished study with more samples or another prior, without retraining.

    Each run is recorded when it is measured: called again after an interruption, it measures only what is missing.

    Args:
        folder: the folder of the study.
        measures: the measures to apply, by name or as ``module:function``; all of the study if empty.
        prior: a prior that replaces each pair's own, fitted to the frozen encodings as in `fit_prior`,
            perhaps with settings, as in ``mixture(components=10)``.
        device: as in `run`.
        scheduler: as in `run`.
        trust: modules whose code may run, if the study names components of the user.
        quiet: print nothing.
        settings: settings of `Measure` that differ from those of the study, such as ``images=8192``, or
            ``temperatures=200`` to bound log p(x) by annealing.

    Returns:
        The results, and the new evaluation, which is named after what was asked for, such as ``prior=vamp`` or
        ``samples=8,outer=4096``; its figures are in ``figures/NAME``. If a prior is swapped and ``settings`` are
        given too, another evaluation holds the pairs' own prior, measured with these settings.

    Raises:
        InputError: the study is not finished, nothing is asked for, a setting is not what was expected, or code is not
            trusted.

    Example:
        >>> study = Study.load("quick", steps=2, depth=1, width=8, train_images=64, test_images=64, seed=0)
        >>> from pyrovae import run
        >>> results = run(study, out=tmp_path / "mine", quiet=True)
        >>> results, evaluation = reevaluate(tmp_path / "mine", samples=4)
        >>> evaluation.name, dict(evaluation.tree["information"].sizes)
        ('samples=4', {'beta': 6, 'seed': 1})
    """
    execution = Execution(device, "never", scheduler=scheduler, quiet=quiet)
    here = find_device(device if scheduler is None else "cpu")
    study_in(Path(folder))  # otherwise the lock would create the folder
    with atomic.locked(Path(folder)):
        results = open_results(folder, trust)
        check_trust(results.study.settings() | {"measure": {"also": [*results.study.measure.also, *measures]}}, trust)
        _check_measures(results.study, measures, prior)
        study = results.study.replace(**{f"measure.{key}": value for key, value in settings.items()})
        _check_settings(study, settings)
        if prior is not None:
            _check_prior(study, prior, trust)
        own = _Asked.of(study, measures, None, settings) if prior is None or settings else None
        swapped = None if prior is None else _Asked.of(study, (), prior, settings)
        Reevaluation(own, swapped).run(results, study, execution, here)
        results.refresh()
        attach_theory(results)
        results.save()
        evaluation = results.evaluations[(swapped or own).name]  # type: ignore[union-attr]
        # A figure of what a measure alone provides has its name.
        figures.save(evaluation, Path(folder) / "figures" / evaluation.name, measures or figures.FIGURES)
        reporting.draw(results)
        return results, evaluation


@dataclass(frozen=True)
class _Asked:
    """An evaluation that is asked for.

    Attributes:
        name: its name in the results.
        measures: the measures to apply; all of the study if empty.
        prior: the prior to swap in; empty for each pair's own.
        sources: checksums of the user's measures.
    """

    name: str
    measures: tuple[str, ...]
    prior: str
    sources: str

    @classmethod
    def of(cls, study: Study, measures: Sequence[str], prior: str | None, settings: Mapping[str, int]) -> "_Asked":
        asked = [*([f"prior={prior}"] if prior else []), *(f"{key}={value}" for key, value in settings.items())]
        name = evaluation_name([*asked, *(f"measure={each}" for each in measures)])
        sources = ", ".join(parts.user_sources(measures or study.measure.also))
        return cls(name, tuple(measures), prior or "", sources)

    @property
    def facts(self) -> dict[str, Any]:
        """Fields of the records."""
        return {"only": list(self.measures), "prior": self.prior, "sources": self.sources}

    def missing(self, results: Results, study: Study) -> list[str]:
        """The keys of the runs that this evaluation lacks."""
        keys = results.tree["runs"].to_dataset()["key"].values
        found = results.evaluations.get(self.name)
        if found is None or dict(found.tree.attrs) != schema.evaluated_with(study.measure, **self.facts):
            return list(keys.flat)
        return list(keys[found.tree["runs"].to_dataset()["step"].values < 0])


@dataclass(frozen=True)
class Reevaluation:
    """A re-evaluation.

    Attributes:
        own: the evaluation with the pairs' own prior, if it is wanted.
        swapped: the evaluation with a swapped prior, if it is wanted.
    """

    own: _Asked | None
    swapped: _Asked | None

    def run(self, results: Results, study: Study, execution: Execution, device: torch.device) -> None:
        """Evaluates the runs that are missing."""
        missing = {key for each in (self.own, self.swapped) if each for key in each.missing(results, study)}
        left = [
            Job(cohort, tuple(RunFolder.of(Path(), key).weights for key in cohort.keys), cohort.shared.steps)
            for cohort in study.cohorts()
            for cohort in _finished(results, cohort, missing)
        ]
        expected = [part for job in left for part in self._expected(study, job)]
        with StudyProgress(expected, timed=False, quiet=execution.quiet or not left) as progress:
            work = Workload(study, partial(self._expected, study), progress)
            work.check_done(work.do(self.evaluate, left, results.folder, device, execution))

    def evaluate(
        self, study: Study, job: Job, folder: Path, device: torch.device, compile: Compile, progress: ProgressReporter
    ) -> None:
        """Evaluates the trained runs of a job, and writes their records; arguments as of `run_job`."""
        cohort = job.cohort
        training, properties = start(study.measure, cohort, make_cohort_data(cohort.runs).to(device))
        state = job.load(folder)
        assert state is not None
        training.restore(state)
        training.measure_best()
        measures = () if self.own is None else self.own.measures
        distortions = []
        for number, measured in enumerate(measure(study, cohort, training, progress, measures)):
            distortions.append(measured.images.get("distortion", np.array([])))
            if self.own is not None:
                self._record(self.own, folder, study, training, number, measured, properties)
        if self.swapped is None:
            return
        training.lockstep = self._with_prior(study, training, progress)
        properties = pair_properties(training.lockstep.pair(0), cohort, training.data)
        for number, measured in enumerate(measure(study, cohort, training, progress)):
            prior_swap.check_same_distortion(distortions[number], measured.images["distortion"])
            self._record(self.swapped, folder, study, training, number, measured, properties)

    def _expected(self, study: Study, job: Job) -> Iterator[Expected]:
        measures = () if self.own is None else self.own.measures
        label = job_label(study, job.cohort)
        yield Expected("measure", label, measuring_steps(study, job.cohort, measures))
        if self.swapped is not None:
            yield Expected("fit", label, prior_fit.STEPS * len(job.cohort.runs))
            yield Expected("measure", label, measuring_steps(study, job.cohort))

    def _with_prior(self, study: Study, training: Training, progress: ProgressReporter) -> Lockstep:
        assert self.swapped is not None
        steps = prior_fit.STEPS * len(training.cohort.runs)
        task = progress.start(job_label(study, training.cohort), steps, phase="fit")
        return prior_swap.with_prior(self.swapped.prior, training, task)

    def _record(
        self,
        asked: _Asked,
        folder: Path,
        study: Study,
        training: Training,
        number: int,
        measured: Measurements,
        properties: PairProperties,
    ) -> None:
        facts = properties.as_provenance() | training.environment().as_provenance() | asked.facts
        facts |= {"worker": process_name()}
        save_record(folder, study, training, number, measured, facts, asked.name)


def evaluation_name(asked: Sequence[str]) -> str:
    """The name of an evaluation, which is also one of files and folders.

    Example:
        >>> evaluation_name(["prior=mixture(components=10)", "samples=8", "measure=mine:fidelity"])
        'prior=mixture(components=10),samples=8,measure=mine.fidelity'
    """
    if not asked:
        raise InputError("evaluate: expected settings, measures or a prior to evaluate the study with, got none")
    text = ",".join(asked)
    name = re.sub(r"[^\w.=,()+-]", "-", text.replace(":", ".").replace(" ", ""))
    return name if len(name) <= MAX_NAME else f"{name[:MAX_NAME]}-{sha256(text.encode()).hexdigest()[:8]}"


def _finished(results: Results, cohort: Cohort, keys: Collection[str]) -> Iterator[Cohort]:
    """The runs of a cohort with these keys, as a cohort.

    Raises:
        InputError: a run is not finished, or its weights are missing.
    """
    runs = {key: run for key, run in zip(cohort.keys, cohort.runs, strict=True) if key in keys}
    for key, run in runs.items():
        if results.status(run) == "pending":
            raise InputError(
                f"{results.folder}: expected a finished study, but the run at {results.study.coordinates(run)} is not "
                "finished; 'pyrovae run' continues it"
            )
        if not RunFolder.of(results.folder, key).weights.exists():
            raise InputError(
                f"{results.folder}: expected the weights of the run at {results.study.coordinates(run)}, but "
                f"{RunFolder.of(results.folder, key).weights} is missing"
            )
    if runs:
        yield Cohort(tuple(runs.values()))


def _check_settings(study: Study, settings: Mapping[str, int]) -> None:
    """Raises InputError if a setting belongs to training, or asks for more images than there are."""
    for key in settings.keys() & {"probe", "points"}:
        raise InputError(f"{key}: expected a setting of measures after training, got one of the learning curves")
    most = max(max(cohort.train_images, cohort.test_images) for cohort in plan(study))
    for key in ("images", "outer", "likelihood_images"):
        if settings.get(key, 0) > most:
            raise InputError(f"{key}: expected at most the {most:,} images of a split, got {settings[key]:,}")


def _check_measures(study: Study, measures: Sequence[str], prior: str | None) -> None:
    declared(parts.names("measure"), [*study.measure.also, *measures])
    if measures and prior is not None:
        raise InputError(
            f"measures: expected none with a swapped prior, got {', '.join(measures)}; evaluate them separately"
        )


def _check_prior(study: Study, prior: str, trust: Collection[str]) -> None:
    check_trust({"prior": prior}, trust)
    check_settings([Run(prior=prior)])
    for run in study.runs():
        check_prior(run.model_copy(update={"prior": prior}))
