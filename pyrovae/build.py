"""Composition root: names and values → objects. The only file that knows both models and guides."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from pyrovae.data import Dataset, Source, Split, divide, linear, splits, tetrominoes
from pyrovae.errors import InputError
from pyrovae.estimators import LinearGaussian
from pyrovae.guides import FullRank, MeanField
from pyrovae.models import VAE
from pyrovae.models.likelihoods import Bernoulli, Gaussian
from pyrovae.models.priors import StandardNormal
from pyrovae.networks import MLP
from pyrovae.pair import Pair
from pyrovae.results import Results
from pyrovae.streams import key, seeded
from pyrovae.study import Run

T = TypeVar("T")

DATA: Mapping[str, Callable[[], Source]] = {"linear": linear.source, "tetrominoes": tetrominoes.source}
SPLITS: Mapping[str, Split] = {
    "random": splits.random,
    "checkerboard": splits.checkerboard,
    "cropped": splits.cropped,
}
PRIORS: Mapping[str, Callable[[int], nn.Module]] = {"standard_normal": StandardNormal}
LIKELIHOODS: Mapping[str, Callable[[Run, torch.Size], nn.Module]] = {
    "bernoulli": lambda run, event_shape: Bernoulli(event_shape),
    "gaussian": lambda run, event_shape: Gaussian(event_shape, run.noise_scale),
}
GUIDES: Mapping[str, Any] = {"full_rank": FullRank, "mean_field": MeanField}
#: Hidden layers of encoder and decoder.
NETWORKS: Mapping[str, Callable[[Run], tuple[int, ...]]] = {
    "linear": lambda run: (),
    "mlp": lambda run: (run.width,) * run.depth,
}


def check_names(run: Run) -> None:
    """Raises InputError if a part that the run names does not exist."""
    for setting, parts in (
        ("data", DATA),
        ("split", SPLITS),
        ("prior", PRIORS),
        ("likelihood", LIKELIHOODS),
        ("guide", GUIDES),
        ("network", NETWORKS),
    ):
        _part(parts, setting, run)


def make_rows(run: Run) -> tuple[Source, torch.Tensor, torch.Tensor]:
    """The data set of a run, and the rows of it that are train and test; no image is made yet."""
    source = _part(DATA, "data", run)()
    train, test = divide(source, _part(SPLITS, "split", run), run.train_ratio, run.train_images, run.test_images)
    if run.batch_size > len(train):
        raise InputError(f"batch_size: expected at most the {len(train)} training images, got {run.batch_size}")
    return source, train, test


def make_data(run: Run) -> Dataset:
    """The images of a run, in memory."""
    source, train, test = make_rows(run)
    return Dataset(source.images(train), source.images(test))


def make_likelihood(run: Run, event_shape: torch.Size) -> Any:
    """The likelihood of a run."""
    return _part(LIKELIHOODS, "likelihood", run)(run, event_shape)


def make_pair(run: Run, event_shape: torch.Size, mean: torch.Tensor | None = None) -> Pair:
    """The pair of a run, with initial weights drawn from the run's own stream.

    Args:
        event_shape: shape of an image.
        mean: mean training image; the output bias of the decoder starts there, because Adam would take
            thousands of steps to bring it there.
    """
    hidden = _part(NETWORKS, "network", run)(run)
    guide = _part(GUIDES, "guide", run)
    likelihood = make_likelihood(run, event_shape)
    with seeded(key(run.seed, "weights")):
        decoder = MLP((run.latent_size,), hidden, likelihood.features)
        encoder = MLP(event_shape, hidden, guide.features(run.latent_size))
        prior = _part(PRIORS, "prior", run)(run.latent_size)
        pair = Pair(VAE(prior, decoder, likelihood), guide(encoder, run.latent_size))
    if mean is not None:
        with torch.no_grad():
            decoder.output.bias.copy_(likelihood.initial_features(mean))
    return pair


def theory(run: Run) -> LinearGaussian | None:
    """Closed forms of what training a run aims at, over the population, where there are any.

    Example:
        >>> theory(Run()) is None
        True
        >>> linear_run = Run(data="linear", network="linear", likelihood="gaussian", latent_size=4, beta=0.1)
        >>> round(theory(linear_run).rate, 2)
        8.07
    """
    parts = (run.data, run.network, run.likelihood, run.prior)
    if parts != ("linear", "linear", "gaussian", "standard_normal"):
        return None
    covariance = linear.covariance()
    scale = make_likelihood(run, covariance.shape[:1]).scale
    return LinearGaussian.best(covariance, run.latent_size, scale, run.beta)


def open_results(folder: str | Path) -> Results:
    """Opens the results of a study.

    Example:
        >>> open_results("nowhere")
        Traceback (most recent call last):
        pyrovae.errors.InputError: nowhere: expected the folder of a study, but it has no study.yaml
    """
    return Results.open(folder, make_pair)


def _part(parts: Mapping[str, T], setting: str, run: Run) -> T:
    """The part that a setting of the run names."""
    name = getattr(run, setting)
    if name not in parts:
        raise InputError(f"unknown {setting} '{name}'; valid: {', '.join(sorted(parts))}")
    return parts[name]
