"""From a cohort in lockstep to what measures find on each of its runs."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from pyrovae.build import make_likelihood
from pyrovae.data import CohortData, Dataset
from pyrovae.measures.declared import DeclaredMeasure, of_settings
from pyrovae.measures.evaluate import Measurements, evaluate
from pyrovae.measures.measure import TrainedRun
from pyrovae.study import Measure
from pyrovae.training.precision import matmul_precision
from pyrovae.training.terms import terms_on
from pyrovae.training.trainer import Training

#: Images of each split, and particles, in a rehearsal.
REHEARSED = 16


def measured_runs(
    training: Training,
    settings: Measure,
    measures: Sequence[DeclaredMeasure],
    progress: Callable[[], None] = lambda: None,
) -> Iterator[Measurements]:
    """What measures find on each run of a cohort, one run at a time, whatever runs it was trained with.

    Args:
        progress: called after each step that a measure reports.
    """
    lockstep, streams, data = training.lockstep, training.streams, training.data
    cohort = training.cohort.shared
    likelihood = _Unknown() if cohort.pair is not None else make_likelihood(cohort, data.images.event_shape)
    shared: dict[int, dict[Callable[..., object], object]] = defaultdict(dict)
    for number, run in enumerate(training.cohort.runs):
        own = data.of(number)
        with matmul_precision("float32"):
            one, stream = lockstep.single(number), streams.single(number)
            terms = tuple(
                terms_on(
                    split, CohortData(own), settings.images, one, stream, f"evaluate {split}", settings.samples
                ).run(0)
                for split, _ in own.splits()
            )
            pair, values, of_set = one.pair(0), one.values_of(0), shared[run.training_set]
            spread = None if lockstep.multiplier is None else float(lockstep.multiplier.spread[number])
            trained = TrainedRun(
                pair, own, settings, run.seed, values, terms, likelihood, spread, progress, shared=of_set
            )
            measured = evaluate(trained, measures)
        yield measured


def progress_steps(measures: Sequence[DeclaredMeasure], settings: Measure, runs: int) -> int:
    """Steps of progress of measuring so many runs: one for each, and those that measures report."""
    return runs * (1 + sum(measure.cost(settings) for measure in measures))


def rehearse(training: Training, settings: Measure) -> None:
    """Applies all measures to an untrained pair and a few images, so that a wrong one shows before training.

    Args:
        training: a training for this purpose alone, which is not continued.

    Raises:
        InputError: a measure raises an error, or returns other quantities than it declares.
    """
    sizes = ("images", "outer", "likelihood_images", "particles", "reconstructions", "gap_images")
    small = {name: min(getattr(settings, name), REHEARSED) for name in sizes} | {
        "temperatures": min(settings.temperatures, 1),
        "gap_temperatures": 1,
    }
    training.data = CohortData(_first_images(training.data.of(0), REHEARSED))
    next(measured_runs(training, settings.model_copy(update=small), of_settings(settings)))


def _first_images(data: Dataset, number: int) -> Dataset:
    few = data.with_train(slice(number))
    validation = None if few.validation is None else few.validation[:number]
    factors, labels = (None if each is None else (each[0], each[1][:number]) for each in (few.factors, few.labels))
    return replace(few, test=few.test[:number], factors=factors, labels=labels, validation=validation)


class _Unknown:
    """A likelihood inside a user's pair, about which nothing is known."""

    def floor(self, x: Tensor) -> Tensor:
        return x.new_full((len(x),), torch.nan)

    def distortion_at(self, x: Tensor, mean: Tensor) -> Tensor:
        return self.floor(x)
