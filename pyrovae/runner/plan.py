"""The plan of a study: what running it would do, and whether its settings allow it."""

from dataclasses import dataclass

import torch

from pyrovae.build import make_rows
from pyrovae.data import class_counts
from pyrovae.errors import InputError
from pyrovae.estimators import Annealing
from pyrovae.measures.declared import of_settings
from pyrovae.runner.cohort import job_label
from pyrovae.runner.validation import Bank, bank_of, check_study
from pyrovae.store.schema import check_size
from pyrovae.study import Cohort, Study

#: Most differences between a z and an encoding, over all dimensions, in one step.
BANK_LIMIT = 2**29


@dataclass(frozen=True)
class PlannedCohort:
    """The plan of one cohort.

    Attributes:
        train_classes, test_classes: images of each class; None if the data set has no classes.
        bank: encodings that each training image is compared with in a step; None if no component caches encodings.
        densities: densities of a z under an encoding, over all runs: per step, and to measure R and log p(x).
    """

    label: str
    runs: int
    steps: int
    train_images: int
    test_images: int
    train_classes: dict[int, int] | None
    test_classes: dict[int, int] | None
    bank: Bank | None
    densities: tuple[int, int]


def plan(study: Study) -> list[PlannedCohort]:
    """What running a study would do, without making an image or training a weight.

    Raises:
        InputError: the study names an unknown component, its settings do not fit together, or it needs more images
            than the data set has.
    """
    study = check_study(study)
    check_size(study)
    of_settings(study.measure)  # raises InputError if a declaration is wrong
    return [_planned(study, cohort) for cohort in study.cohorts()]


def _planned(study: Study, cohort: Cohort) -> PlannedCohort:
    source, train, test = make_rows(cohort.shared)
    bank = bank_of(cohort.shared, len(train))
    encodings = bank.size if bank else 0
    _check_bank(cohort, encodings)
    per_step = len(cohort.runs) * cohort.shared.batch_size * encodings
    measured = len(cohort.runs) * _measured_draws(study, train, test) * len(train)
    return PlannedCohort(
        label=job_label(study, cohort),
        runs=len(cohort.runs),
        steps=cohort.shared.steps,
        train_images=len(train),
        test_images=len(test),
        train_classes=class_counts(source, train),
        test_classes=class_counts(source, test),
        bank=bank,
        densities=(per_step, measured),
    )


def _measured_draws(study: Study, train: torch.Tensor, test: torch.Tensor) -> int:
    """Draws of z behind the rate and the bounds of log p(x) of one run."""
    measure = study.measure
    images = min(measure.images, len(train)) + min(measure.images, len(test))
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
