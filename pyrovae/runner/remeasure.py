"""Re-evaluates a finished study with other measurement settings or another prior, without retraining."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import xarray as xr

from pyrovae import parts
from pyrovae.analysis import figures
from pyrovae.build import make_data
from pyrovae.errors import InputError
from pyrovae.measures.declared import declared
from pyrovae.measures.evaluate import Evaluation
from pyrovae.programs.checks import PairProperties
from pyrovae.runner import prior_swap, reporting
from pyrovae.runner.cohort import cohort_label, cohort_result, measure, measuring_steps
from pyrovae.runner.open import open_results
from pyrovae.runner.plan import plan
from pyrovae.runner.setup import pair_properties, start
from pyrovae.runner.validation import check_prior
from pyrovae.runner.workload import workload
from pyrovae.store import records
from pyrovae.store.results import Results, study_in
from pyrovae.study import Cohort, Study, check_trust
from pyrovae.system import atomic
from pyrovae.system.device import find_device
from pyrovae.system.progress import StudyProgress
from pyrovae.system.provenance import process_name
from pyrovae.training.lockstep import Lockstep
from pyrovae.training.trainer import Training


def reevaluate(
    folder: str | Path,
    *,
    measures: Sequence[str] = (),
    prior: str | None = None,
    device: str = "auto",
    trust: Collection[str] = (),
    quiet: bool = True,
    **settings: int,
) -> tuple[Results, xr.DataTree]:
    """Re-evaluates a finished study with more samples or another prior, without retraining.

    Each cohort is recorded when it is done: called again after an interruption, it measures only what is missing.

    Args:
        folder: the folder of the study.
        measures: the measures to apply, by name or as ``module:function``; all of the study if empty.
        prior: a prior that replaces each pair's own, fitted to the frozen encodings as in `prior_swap.fit_prior`.
        device: as in `run`.
        trust: modules whose code may run, if the study names components of the user.
        quiet: print nothing.
        settings: settings of `Measure` that differ from those of the study, such as ``images=8192``, or
            ``temperatures=200`` to bound log p(x) by annealing.

    Returns:
        The results, and the new part of their tree: ``/evaluation_1`` or the next free number, with the same groups as
        the results themselves; its figures are in ``figures/evaluation_1``. If a prior is swapped and ``settings`` are
        given too, another evaluation before it holds the pairs' own prior, measured with these settings.

    Raises:
        InputError: the study is not finished, a setting is not what was expected, or code is not trusted.

    Example:
        >>> study = Study.load("quick", steps=2, depth=1, width=8, train_images=64, test_images=64, seed=0)
        >>> from pyrovae import run
        >>> results = run(study, out=tmp_path / "mine", quiet=True)
        >>> results, evaluation = reevaluate(tmp_path / "mine", samples=4)
        >>> evaluation.name, dict(evaluation["information"].sizes)
        ('evaluation_1', {'beta': 3, 'seed': 1})
    """
    chosen_device = find_device(device)
    study_in(Path(folder))  # otherwise the lock would create the folder
    with atomic.locked(Path(folder)):
        results = open_results(folder, trust)
        check_trust(results.study.settings() | {"measure": {"also": [*results.study.measure.also, *measures]}}, trust)
        _check_measures(results.study, measures, prior)
        study = results.study.replace(**{f"measure.{key}": value for key, value in settings.items()})
        _check_settings(study, settings)
        _check_finished(results)
        if prior is not None:
            _check_prior(study, prior, trust)
        own = results.evaluation(study, only=measures) if prior is None or settings else None
        asked = results.evaluation(study, prior, measures)
        reevaluation = _Reevaluation(results, study, measures, prior, chosen_device, own, asked)
        reevaluation.run(quiet)
        if not measures:
            figures.save(asked, Path(folder) / "figures" / str(asked.name))
        reporting.draw(results)
        return results, asked


@dataclass(frozen=True)
class _Reevaluation:
    """A re-evaluation.

    Attributes:
        study: the study with the settings of this evaluation.
        measures: the measures to apply; all of the study if empty.
        prior: the prior to swap in, if any.
        own: the evaluation of the pairs' own prior, if it is wanted.
        asked: the evaluation that was asked for.
    """

    results: Results
    study: Study
    measures: Sequence[str]
    prior: str | None
    device: torch.device
    own: xr.DataTree | None
    asked: xr.DataTree

    def run(self, quiet: bool) -> None:
        """Evaluates the cohorts that are missing."""
        missing = [cohort for cohort in self.results.cohorts() if not self._is_measured(cohort)]
        with workload(self.results, missing, self._steps, quiet=quiet) as work:
            work.for_each(missing, lambda cohort: self._evaluate(cohort, work.progress))

    def _is_measured(self, cohort: Cohort) -> bool:
        evaluations = [each for each in (self.own, self.asked) if each is not None]
        return all(self.results.is_measured(each, cohort) for each in evaluations)

    def _steps(self, cohort: Cohort) -> int:
        measured = measuring_steps(self.study, cohort, self.measures)
        return measured if self.prior is None else 2 * measured + prior_swap.STEPS * len(cohort.runs)

    def _evaluate(self, cohort: Cohort, progress: StudyProgress) -> None:
        training, properties = start(self.study, cohort, make_data(cohort.shared).to(self.device))
        training.resume(self.results.checkpoint_file(cohort))
        measured = measure(self.study, cohort, training, progress, self.measures)
        if self.own is not None:
            self._record(self.own, training, measured, properties)
        if self.prior is not None:
            training.lockstep = self._with_prior(self.prior, training, progress)
            swapped = measure(self.study, cohort, training, progress)
            prior_swap.check_same_distortion(measured, swapped)
            properties = pair_properties(training.lockstep.pair(0), cohort, training.data)
            self._record(self.asked, training, swapped, properties)

    def _with_prior(self, prior: str, training: Training, progress: StudyProgress) -> Lockstep:
        steps = prior_swap.STEPS * len(training.cohort.runs)
        task = progress.start(f"{cohort_label(self.study, training.cohort)}, fit of {prior}", steps)
        return prior_swap.with_prior(prior, training, task)

    def _record(
        self, evaluation: xr.DataTree, training: Training, measured: Evaluation, properties: PairProperties
    ) -> None:
        cohort, environment = training.cohort, training.environment()
        provenance = properties.as_provenance() | environment.as_provenance() | {"worker": process_name()}
        records.save(self.results.details_file(evaluation, cohort), self.study, cohort, measured)
        self.results.record(evaluation, cohort, cohort_result(training, measured, provenance))


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


def _check_finished(results: Results) -> None:
    cohorts = results.cohorts()
    if missing := [cohort for cohort in cohorts if not results.has(cohort)]:
        raise InputError(
            f"{results.folder}: expected a finished study, but {len(missing)} of its {len(cohorts)} cohorts are not "
            "finished; 'pyrovae run' continues it"
        )


def _check_prior(study: Study, prior: str, trust: Collection[str]) -> None:
    check_trust({"prior": prior}, trust)
    for run in study.runs():
        check_prior(run.model_copy(update={"prior": prior}))
