"""From a cohort in lockstep to the trained runs that measures take."""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from pyrovae.build import make_likelihood
from pyrovae.data import Dataset
from pyrovae.measures.declared import DeclaredMeasure, of_settings
from pyrovae.measures.evaluate import evaluate
from pyrovae.measures.measure import TrainedRun
from pyrovae.study import Measure, Run
from pyrovae.training.lockstep import Lockstep
from pyrovae.training.streams import Streams
from pyrovae.training.terms import terms_on
from pyrovae.training.trainer import Training

#: Images of each split in a rehearsal.
REHEARSED = 16


def trained_runs(
    lockstep: Lockstep,
    streams: Streams,
    data: Dataset,
    settings: Measure,
    run: Run,
    progress: Callable[[], None] = lambda: None,
) -> Iterator[TrainedRun]:
    """The runs of a cohort, one at a time; D and R of all are computed together.

    Args:
        run: any of the cohort, for its likelihood.
        progress: called after each step that a measure reports.
    """
    likelihood = _Unknown() if run.pair is not None else make_likelihood(run, data.event_shape)
    terms = [
        terms_on(split, images[: settings.images], lockstep, streams, f"evaluate {split}", settings.samples)
        for split, images in data.splits()
    ]
    shared: dict[Callable[..., object], object] = {}
    for number, seed in enumerate(streams.seeds):
        train, test = (tree_map(lambda term, row=number: term[row], each) for each in terms)
        pair, values = lockstep.pair(number), lockstep.values_of(number)
        yield TrainedRun(pair, data, settings, seed, values, (train, test), likelihood, progress, shared)


def progress_steps(measures: Sequence[DeclaredMeasure], settings: Measure, runs: int) -> int:
    """Steps of progress that measures report for so many runs."""
    return runs * sum(measure.cost(settings) for measure in measures)


def rehearse(training: Training, settings: Measure) -> None:
    """Applies all measures to an untrained pair and a few images, so that a wrong one shows before training.

    Args:
        training: a training for this purpose alone, which is not continued.

    Raises:
        InputError: a measure raises an error, or returns other quantities than it declares.
    """
    data = _first_images(training.data, REHEARSED)
    sizes = ("images", "outer", "likelihood_images", "reconstructions")
    small = {name: min(getattr(settings, name), REHEARSED) for name in sizes} | {
        "temperatures": min(settings.temperatures, 1)
    }
    settings = settings.model_copy(update=small)
    training.lockstep.mode = "sequential"  # vmap may reject the programs; training finds out
    runs = trained_runs(training.lockstep, training.streams, data, settings, training.cohort.shared)
    evaluate(islice(runs, 1), of_settings(settings))


def _first_images(data: Dataset, number: int) -> Dataset:
    train, test = data.train[:number], data.test[:number]
    factors = None if data.factors is None else (data.factors[0][:number], data.factors[1][:number])
    return Dataset(train, test, None if data.grey is None else data.grey[:number], factors)


class _Unknown:
    """A likelihood inside a user's pair, about which nothing is known."""

    def floor(self, x: Tensor) -> Tensor:
        return x.new_full((len(x),), torch.nan)

    def distortion_at(self, x: Tensor, mean: Tensor) -> Tensor:
        return self.floor(x)
