"""Annealing of training and test images, which the generalization gap and the fixed-decoder curve share."""

from functools import partial

from torch import Tensor

from pyrovae.data import as_input
from pyrovae.estimators import Annealed, Annealing, annealed_log_likelihood
from pyrovae.measures.measure import TrainedRun
from pyrovae.programs.noise import derive_seed, fork_seed
from pyrovae.study import Measure

#: Chains and leapfrog steps: in equal time, more temperatures tighten the bound further than more of these.
CHAINS, LEAPFROG = 2, 2
#: Passes over the temperatures for train and test.
PASSES = 4


def steps(settings: Measure) -> int:
    """Steps of progress of `annealed`."""
    return PASSES * settings.gap_temperatures


def annealing(settings: Measure) -> Annealing:
    """Temperatures, chains and leapfrog steps."""
    return Annealing(settings.gap_temperatures, CHAINS, LEAPFROG)


def first_images(run: TrainedRun) -> tuple[Tensor, Tensor]:
    """The first training and test images, of those on which D and R are measured."""
    count = min(run.settings.gap_images, run.settings.images)
    return as_input(run.data.train[:count]), as_input(run.data.test[:count])


def log_p(run: TrainedRun, x: Tensor, z: Tensor) -> Tensor:
    """log p(x|z), ``[n]``."""
    return run.pair.likelihood(x, z, **run.values).log_prob(x)


def annealed(run: TrainedRun) -> tuple[Annealed, Annealed]:
    """Bounds of log p(x) of the first training and test images, with the curve of the decoder.

    Raises:
        UnsupportedError: the pair has several latent or observed sites.
    """
    train, test = first_images(run)
    _, prior = run.pair.latent(train[:1], **run.values)
    with fork_seed(derive_seed(run.seed, "generalization gap")):
        return (
            annealed_log_likelihood(prior, partial(log_p, run), train, annealing(run.settings), run.progress),
            annealed_log_likelihood(prior, partial(log_p, run), test, annealing(run.settings), run.progress),
        )
