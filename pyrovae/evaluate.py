"""What is measured on trained runs."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pyro
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.distributions import Distribution
from torch.nn.functional import pad
from torch.utils._pytree import tree_map

from pyrovae import estimators, pictures
from pyrovae.data import Dataset, as_input
from pyrovae.distributions import concatenated, mapped
from pyrovae.errors import UnsupportedError
from pyrovae.estimators import Estimate, nearest_distance
from pyrovae.estimators.estimate import mean_over_images
from pyrovae.lockstep import Lockstep
from pyrovae.pair import Pair, Terms
from pyrovae.streams import Streams, generator, key, seeded
from pyrovae.study import Measure

#: Images in one piece of work.
CHUNK = 256
#: What is measured of the codes of a run, and what kind of number it is.
INFORMATION: Mapping[str, estimators.Kind] = {
    "mutual_information": "unbiased",
    "prior_gap": "unbiased",
    "marginal_rate": "unbiased",
    "active_units": "exact",
    "log_n": "exact",
    "test_mutual_information": "unbiased",
    "test_prior_gap": "unbiased",
    "log_likelihood": "lower bound",
}


class Measured(NamedTuple):
    """What evaluation gives, by variable; the leading axes are ``[runs, split]``, splits being train and test.

    Attributes:
        cells: one number each, such as distortion and its standard error.
        images: one number an image, ``[runs, split, images]``; NaN where a split has fewer images.
        information: one number a run, such as mutual information and its standard error, ``[runs]``.
        notes: what is to be said of the information of each run.
        levels: what each latent site adds to the rate, E[log q − log p], and its standard error, ``[runs, split]`` by
            site and variable. Only the sum need be a KL divergence.
        difficulty: how hard the generalization problem is, ``[split]``, the same for all runs.
        pictures: by group and variable, ``[runs, ...]``: images decoded from the prior ("samples"), and the latent
            plane where z has two dimensions ("plane").
    """

    cells: dict[str, NDArray[np.float64]]
    images: dict[str, NDArray[np.float64]]
    information: dict[str, NDArray[np.float64]]
    notes: list[tuple[str, ...]]
    levels: dict[str, dict[str, NDArray[np.float64]]]
    difficulty: dict[str, NDArray[np.float64]]
    pictures: dict[str, dict[str, NDArray[Any]]]


def evaluate(
    lockstep: Lockstep, streams: Streams, data: Dataset, floor: Callable[[Tensor], Tensor], measure: Measure
) -> Measured:
    """Measures each run on the images that ``measure`` names, in nats per image; the weights are only read.

    D = E_x E_q(z|x)[−log p(x|z)] and R = E_x KL(q(z|x) ‖ p(z)) on both splits, and what `information` and `difficulty`
    give. The standard errors are over images.

    Args:
        floor: smallest distortion of each image, ``[n, *event_shape] → [n]``.
    """
    chosen = [(name, images[: measure.images]) for name, images in data.splits()]
    terms = [terms_on(name, images, lockstep, streams, f"evaluate {name}", measure.samples) for name, images in chosen]
    of_image = {
        "floor": [_floors(images, floor).expand(len(lockstep), -1) for _, images in chosen],
        "distortion": [each.distortion for each in terms],
        "rate": [each.rate for each in terms],
        "elbo": [-each.distortion - each.rate for each in terms],
    }
    cells: dict[str, NDArray[np.float64]] = {}
    for name, splits in of_image.items():
        cells |= _with_error(name, splits)
    cells["bits_per_dim"] = -cells["elbo"] / (data.event_shape.numel() * np.log(2))
    found, seen, likelihoods = [], [], []
    for run, seed in enumerate(streams.seeds):
        pair, values = lockstep.pair(run), lockstep.values_of(run)
        found.append(information(pair, data, measure, generator(seed, "information"), **values))
        likelihoods.append(likelihood(pair, data, measure, seed, **values))
        found[-1]["log_likelihood"] = mean_over_images(likelihoods[-1], "lower bound")
        seen.append(_pictures(pair, data, seed, **values))
    codes = {name: np.array([each[name].value for each in found]) for name in INFORMATION}
    codes |= {f"{name}_se": np.array([each[name].se for each in found]) for name in INFORMATION}
    of_image["log_likelihood"] = [torch.empty(len(lockstep), 0, dtype=torch.float64), torch.stack(likelihoods)]
    images = {name: _padded(of_image[name], measure.images) for name in ("distortion", "rate", "log_likelihood")}
    notes = [each["mutual_information"].notes for each in found]
    levels = {site: _with_error("rate", [each.rates[site] for each in terms]) for site in terms[0].rates}
    pictured = {
        group: {name: np.stack([each[group][name] for each in seen]) for name in variables}
        for group, variables in seen[0].items()
    }
    return Measured(cells, images, codes, notes, levels, difficulty(data, measure), pictured)


def information(
    pair: Pair, data: Dataset, measure: Measure, generator: torch.Generator, **values: float | Tensor
) -> dict[str, Estimate]:
    """Where the information of a run goes, by the names of `INFORMATION`, in nats per image.

    Mutual information and prior gap of the encodings of all training images, and of the encodings of all test images,
    of which another q(z) is made; the rate of test images under the inference marginal of the training images, the
    number of active units, and the limit log N; NaN, with a note that says why, where q(z|x) is
    of a kind that cannot be measured so or not finite.

    Args:
        values: what the programs take beside images.
    """
    found = {"log_n": Estimate(float(np.log(len(data.train))), 0.0, "exact")}
    try:
        # Validation would stop at the codes of a run that has diverged, and lose its neighbours' numbers too.
        with torch.no_grad(), pyro.validation_enabled(False):
            q = encode(pair, data.train, **values)
            unseen = encode(pair, data.test, **values)
            _, prior = pair.latent(as_input(data.train[:1]), **values)
            outer = min(measure.outer, len(data.train))
            _, found["mutual_information"], found["prior_gap"] = estimators.rate_terms(
                q, prior, samples=measure.samples, outer=outer, generator=generator
            )
            first = mapped(unseen, lambda parameter: parameter[: measure.outer])
            found["marginal_rate"] = estimators.marginal_rate(first, q, samples=measure.samples, generator=generator)
            found["active_units"] = estimators.active_units(q, generator=generator)
            outer = min(measure.outer, len(data.test))
            _, found["test_mutual_information"], found["test_prior_gap"] = estimators.rate_terms(
                unseen, prior, samples=measure.samples, outer=outer, generator=generator
            )
    except UnsupportedError as error:
        missing = {name: Estimate(np.nan, np.nan, kind, (str(error),)) for name, kind in INFORMATION.items()}
        return missing | found
    if not np.isfinite(found["mutual_information"].value):
        found["mutual_information"] = replace(found["mutual_information"], notes=("the codes are not finite",))
    return found


def likelihood(pair: Pair, data: Dataset, measure: Measure, seed: int, **values: float | Tensor) -> Tensor:
    """The importance-weighted bound of log p(x) of some test images, ``[images]``, in nats."""
    x = as_input(data.test[: min(measure.likelihood_images, measure.images)])
    with seeded(key(seed, "likelihood")), pyro.validation_enabled(False):
        return estimators.log_likelihood(partial(_weigh, pair, values), x, measure.particles).cpu()


def _weigh(pair: Pair, values: Mapping[str, float | Tensor], x: Tensor) -> Tensor:
    return pair.log_weights(x, **values)


def _pictures(pair: Pair, data: Dataset, seed: int, **values: float | Tensor) -> dict[str, dict[str, NDArray[Any]]]:
    """What there is to see of a run, by group and variable."""
    seen: dict[str, dict[str, NDArray[Any]]] = {}
    with torch.no_grad(), pyro.validation_enabled(False):
        if (images := pictures.samples(pair, data.event_shape, seed)) is not None:
            seen["samples"] = {"image": images}
        with suppress(UnsupportedError):  # of which `information` has told the reason
            _, prior = pair.latent(as_input(data.train[:1]), **values)
            if prior.event_shape == (2,):
                seen["plane"] = pictures.latent_plane(encode(pair, data.train, **values), prior, seed)
    return seen


def difficulty(data: Dataset, measure: Measure) -> dict[str, NDArray[np.float64]]:
    """How hard the generalization problem is: for train and test, ``[split]`` each.

    The number of images, and the mean distance to the nearest training image with its standard error over images, in
    pixels of [0, 1] and, where factors of variation are known, in factors of [0, 1]. A training image is no neighbour
    of its own, so that test and train coincide where the test images are no further off than the training images are
    from each other. Factors that run in a circle are taken as they stand. Taken on the images over which I and G are
    averaged.
    """
    found = {"images": np.array([float(len(images)) for _, images in data.splits()])}
    spaces = {"pixel_distance": (data.train, data.test)}
    if data.factors is not None:
        spaces["factor_distance"] = data.factors
    for name, (train, test) in spaces.items():
        seen, unseen = train[: measure.outer], test[: measure.outer]
        own = torch.arange(len(seen), device=train.device)
        distances = [nearest_distance(seen, train, own), nearest_distance(unseen, train)]
        cells = _with_error(name, [each.double().cpu()[None] for each in distances])
        found |= {variable: values[0] for variable, values in cells.items()}
    return found


def terms_on(split: str, images: Tensor, lockstep: Lockstep, streams: Streams, purpose: str, samples: int = 1) -> Terms:
    """Loss, distortion and rate of each image under each run, ``[runs, images]``, in nats, in float64.

    Args:
        split: "train" or "test".
        images: the first images of the split, ``[images, *event_shape]``.
        purpose: names the noise: the same purpose gets the same draws.
        samples: draws of z an image, over which the mean is taken.
    """
    chunks = []
    for number, chunk in enumerate(images.split(CHUNK)):
        x = as_input(chunk)
        first = number * CHUNK
        index = torch.arange(first, first + len(x), device=x.device) if split == "train" else None
        draws = []
        for sample in range(samples):
            block = number * samples + sample
            noise = {site: eps.to(x.device) for site, eps in streams.noise_for(purpose, len(x), block).items()}
            terms = lockstep.terms(x, noise, streams.keys(purpose, block), index)
            draws.append(tree_map(lambda term: term.double().cpu(), terms))
        chunks.append(tree_map(lambda *parts: torch.stack(parts).mean(0), *draws))
    return tree_map(lambda *parts: torch.cat(parts, dim=1), *chunks)


def encode(pair: Pair, images: Tensor, **values: float | Tensor) -> Distribution:
    """q(z|x) of images as in a data set, ``[N, *event_shape]``: batch shape [N].

    Raises:
        UnsupportedError: as `Pair.latent`, or q is of a kind that cannot be taken apart.
    """
    with torch.no_grad():
        return concatenated([pair.latent(as_input(chunk), **values)[0] for chunk in images.split(CHUNK)])


def _floors(images: Tensor, floor: Callable[[Tensor], Tensor]) -> Tensor:
    """Floor of each image, ``[images]``."""
    return torch.cat([floor(as_input(chunk)).double().cpu() for chunk in images.split(CHUNK)])


def _with_error(name: str, splits: list[Tensor]) -> dict[str, NDArray[np.float64]]:
    """Mean over images and its standard error, ``[runs, split]`` each, from ``[runs, images]`` of each split."""
    errors = [each.std(-1) / each.shape[-1] ** 0.5 for each in splits]
    return {
        name: torch.stack([each.mean(-1) for each in splits], dim=1).numpy(),
        f"{name}_se": torch.stack(errors, dim=1).numpy(),
    }


def _padded(splits: list[Tensor], images: int) -> NDArray[np.float64]:
    """Values of both splits in one array, ``[runs, split, images]``, NaN where a split has fewer images."""
    return torch.stack([pad(each, (0, images - each.shape[1]), value=torch.nan) for each in splits], dim=1).numpy()
