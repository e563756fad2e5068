"""The plan of a study: what running it would do, and whether its settings allow it."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from pyrovae.build import assemble, make_rows
from pyrovae.data import class_counts
from pyrovae.errors import InputError
from pyrovae.estimators import Annealing
from pyrovae.measures.declared import of_settings
from pyrovae.runner.cohort import job_label
from pyrovae.runner.jobs import Job, jobs
from pyrovae.runner.validation import Bank, bank_of, check_study
from pyrovae.store.results import Results
from pyrovae.store.schema import check_size
from pyrovae.study import Cohort, Study

#: Most differences between a z and an encoding, over all dimensions, in one step.
BANK_LIMIT = 2**29


@dataclass(frozen=True)
class PlannedCohort:
    """The plan of one cohort.

    Attributes:
        runs: number of runs.
        left: what is left to do for them; everything if no folder was given.
        repeated: number of runs that are the same as earlier ones, because no component takes what distinguishes them.
        train_classes, test_classes: images of each class; None if the data set has no classes.
        class_names: name of each class, by label; None if they have none.
        bank: encodings that each training image is compared with in a step; None if no component caches encodings.
        densities: densities of a z under an encoding, over all runs: per step, and to measure R and log p(x).
    """

    label: str
    runs: int
    left: tuple[Job, ...]
    repeated: int
    steps: int
    train_images: int
    test_images: int
    validation_images: int
    train_classes: dict[int, int] | None
    test_classes: dict[int, int] | None
    class_names: tuple[str, ...] | None
    bank: Bank | None
    densities: tuple[int, int]

    @property
    def starts(self) -> dict[int, int]:
        """Number of runs by the step that they start from: 0 if they are new, the last if they are only measured."""
        counts: Counter[int] = Counter()
        for job in self.left:
            counts[job.step] += len(job.cohort.runs)
        return dict(sorted(counts.items()))

    @property
    def finished(self) -> int:
        """Number of runs for which nothing is left to do."""
        return self.runs - self.repeated - sum(self.starts.values())


def plan(
    study: Study, folder: Path | None = None, warn: Callable[[str], None] = lambda text: None
) -> list[PlannedCohort]:
    """What running a study would do, without training a weight or writing into its folder.

    Args:
        folder: what the study has there already is not done again.
        warn: called with a line about each file there that cannot be used.

    Raises:
        InputError: the study names an unknown component, its settings do not fit together or to what the folder has,
            or it needs more images than the data set has.
    """
    study = check_study(study)
    check_size(study)
    of_settings(study.measure)  # raises InputError if a declaration is wrong
    if folder is None:
        return planned(study, [Job(cohort) for cohort in study.cohorts()])
    return planned(study, jobs(Results.create(folder, study, assemble), warn))


def planned(study: Study, left: Sequence[Job]) -> list[PlannedCohort]:
    """The plan of the cohorts of a study, from what is left to do for them."""
    return [_planned(study, *each) for each in _by_cohort(study.cohorts(), left)]


def lines(study: Study, cohorts: Sequence[PlannedCohort]) -> Iterator[str]:
    """A plan as text."""
    yield f"study {study.name}" + (f": {about}" if (about := study.about()) else "")
    for cohort in cohorts:
        yield (
            f"{cohort.label}: {progress(cohort)}; {cohort.steps:,} steps; "
            f"{cohort.train_images:,} training and {cohort.test_images:,} test images"
            + (f", and {cohort.validation_images:,} for validation" if cohort.validation_images else "")
        )
        for side, counts in (("training", cohort.train_classes), ("test", cohort.test_classes)):
            if counts is not None:
                yield f"  {side} images of each class: {_counts(counts, cohort.class_names)}"
        if cohort.bank is not None:
            yield (
                f"  each training image is scored against {cohort.bank.size:,} cached encodings, refreshed every "
                f"{cohort.bank.refresh:,} steps: "
                f"{cohort.densities[0]:,} densities a step, {cohort.densities[1]:,} to measure R and log p(x)"
            )
    if not any(cohort.left for cohort in cohorts):
        yield "nothing is left to do"


def progress(cohort: PlannedCohort) -> str:
    """How far the runs of a cohort are, such as ``9 runs, 6 finished, 3 new``."""
    kinds = {0: "new", cohort.steps: "to be measured"}
    counts = [(cohort.finished, "finished"), (cohort.repeated, "the same as earlier ones")]
    counts += [(runs, kinds.get(step, f"to continue from step {step:,}")) for step, runs in cohort.starts.items()]
    whole, plural = ("all ", "s") if cohort.runs > 1 else ("", "")
    parts = [f"{whole if runs == cohort.runs else f'{runs:,} '}{kind}" for runs, kind in counts if runs]
    return ", ".join([f"{cohort.runs:,} run{plural}", *parts])


def _counts(counts: dict[int, int], names: tuple[str, ...] | None) -> str:
    """Images per class, or their range where there are many classes."""
    if len(counts) <= 20:
        labels = {label: str(label) if names is None else f"{label} ({names[label]})" for label in counts}
        return " ".join(f"{labels[label]}: {count:,}" for label, count in counts.items())
    return f"{min(counts.values()):,} to {max(counts.values()):,} in {len(counts):,} classes"


def _by_cohort(cohorts: Sequence[Cohort], left: Sequence[Job]) -> Iterator[tuple[Cohort, tuple[Job, ...], int]]:
    """The cohorts of a study, each with its jobs and the number of runs that are the same as earlier ones."""
    seen: set[str] = set()
    by_first = {job.cohort.keys[0]: job for job in left}
    for cohort in cohorts:
        own = [key for key in dict.fromkeys(cohort.keys) if key not in seen]
        seen.update(own)
        yield cohort, tuple(by_first[key] for key in own if key in by_first), len(cohort.runs) - len(own)


def _planned(study: Study, cohort: Cohort, left: tuple[Job, ...], repeated: int) -> PlannedCohort:
    for run in {run.training_set: run for run in cohort.runs}.values():
        source, train, test, validation = make_rows(run)
    bank = bank_of(cohort.shared, len(train))
    encodings = bank.size if bank else 0
    _check_bank(cohort, encodings)
    per_step = len(cohort.runs) * cohort.shared.batch_size * encodings
    measured = len(cohort.runs) * _measured_draws(study, train, test, validation) * len(train)
    return PlannedCohort(
        label=job_label(study, cohort),
        runs=len(cohort.runs),
        left=left,
        repeated=repeated,
        steps=cohort.shared.steps,
        train_images=len(train),
        test_images=len(test),
        validation_images=len(validation),
        train_classes=class_counts(source, train),
        test_classes=class_counts(source, test),
        class_names=source.classes,
        bank=bank,
        densities=(per_step, measured),
    )


def _measured_draws(study: Study, train: torch.Tensor, test: torch.Tensor, validation: torch.Tensor) -> int:
    """Draws of z behind the rate and the bounds of log p(x) of one run."""
    measure = study.measure
    images = sum(min(measure.images, len(rows)) for rows in (train, test, validation))
    annealed = 2 * measure.temperatures * measure.chains * Annealing().leapfrog
    return measure.samples * images + (measure.particles + annealed) * min(measure.likelihood_images, len(test))


def _check_bank(cohort: Cohort, encodings: int) -> None:
    """Raises InputError if the comparisons of a training step with the encodings would take too much memory."""
    shared = cohort.shared
    numbers = len(cohort.runs) * shared.batch_size * encodings * shared.latent_size
    if numbers > BANK_LIMIT:
        raise InputError(
            f"prior: at each step, {len(cohort.runs)} runs of {shared.batch_size} images would be compared with all "
            f"{encodings:,} encodings, which takes over {numbers * 4 / 2**30:.0f} GB; expected at most "
            f"{BANK_LIMIT * 4 / 2**30:.0f} GB: take aggregate_subsampled, fewer components or train_images, or "
            "fewer runs"
        )
