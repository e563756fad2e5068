"""What is measured on trained runs."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.distributions import Distribution

from pyrovae import estimators
from pyrovae.data import Dataset, as_input
from pyrovae.distributions import concatenated
from pyrovae.errors import UnsupportedError
from pyrovae.estimators import Estimate
from pyrovae.lockstep import Lockstep
from pyrovae.pair import Pair, Terms
from pyrovae.streams import Streams, generator
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
}


class Measured(NamedTuple):
    """What evaluation gives, by variable; the leading axes are ``[runs, split]``, splits being train and test.

    Attributes:
        cells: one number each, such as distortion and its standard error.
        images: one number an image, ``[runs, split, images]``; NaN where a split has fewer images.
        information: one number a run, such as mutual information and its standard error, ``[runs]``.
    """

    cells: dict[str, NDArray[np.float64]]
    images: dict[str, NDArray[np.float64]]
    information: dict[str, NDArray[np.float64]]


def evaluate(
    lockstep: Lockstep, streams: Streams, data: Dataset, floor: Callable[[Tensor], Tensor], measure: Measure
) -> Measured:
    """Measures each run on the images that ``measure`` names, in nats per image; the weights are only read.

    D = E_x E_q(z|x)[−log p(x|z)] and R = E_x KL(q(z|x) ‖ p(z)) on both splits, and what `information` gives.
    The standard errors are over images.

    Args:
        floor: smallest distortion of each image, ``[n, *event_shape] → [n]``.
    """
    per_image = _per_image(lockstep, streams, data, floor, measure)
    cells = {"floor": np.nanmean(per_image.pop("floor"), -1)}
    per_image["elbo"] = -per_image["distortion"] - per_image["rate"]
    for name, values in per_image.items():
        count = np.isfinite(values).sum(-1)
        cells[name] = np.nanmean(values, -1)
        cells[f"{name}_se"] = np.nanstd(values, -1, ddof=1) / np.sqrt(count)
    found = [
        information(lockstep.pair(run), data, measure, generator(seed, "information"), **lockstep.values_of(run))
        for run, seed in enumerate(streams.seeds)
    ]
    numbers = {name: np.array([each[name].value for each in found]) for name in INFORMATION}
    errors = {
        f"{name}_se": np.array([each[name].se for each in found])
        for name, kind in INFORMATION.items()
        if kind != "exact"
    }
    return Measured(cells, per_image, numbers | errors)


def information(
    pair: Pair, data: Dataset, measure: Measure, generator: torch.Generator, **values: float | Tensor
) -> dict[str, Estimate]:
    """Where the information of a run goes, by the names of `INFORMATION`, in nats per image.

    Mutual information and prior gap of the encodings of all training images, the rate of test images under the
    inference marginal, the number of active units, and the limit log N; NaN where q(z|x) is of a kind that cannot be
    measured so.

    Args:
        values: what the programs take beside images.
    """
    try:
        q = _encodings(pair, data.train, **values)
        unseen = _encodings(pair, data.test[: measure.outer], **values)
        _, prior = pair.latent(as_input(data.train[:1]), **values)
        outer = min(measure.outer, len(data.train))
        _, mutual_information, prior_gap = estimators.rate_terms(
            q, prior, samples=measure.samples, outer=outer, generator=generator
        )
        marginal_rate = estimators.marginal_rate(unseen, q, samples=measure.samples, generator=generator)
        active_units = estimators.active_units(q)
        log_n = Estimate(float(np.log(len(data.train))), 0.0, "exact")
    except UnsupportedError as error:
        return {name: Estimate(np.nan, np.nan, kind, (str(error),)) for name, kind in INFORMATION.items()}
    return {
        "mutual_information": mutual_information,
        "prior_gap": prior_gap,
        "marginal_rate": marginal_rate,
        "active_units": active_units,
        "log_n": log_n,
    }


def terms_on(images: Tensor, lockstep: Lockstep, streams: Streams, purpose: str, samples: int = 1) -> Terms:
    """Loss, distortion and rate of each image under each run, ``[runs, images]``, in nats, in float64.

    Args:
        images: ``[images, *event_shape]``, as in a data set.
        purpose: names the noise: the same purpose gets the same draws.
        samples: draws of z an image, over which the mean is taken.
    """
    chunks = []
    for number, chunk in enumerate(images.split(CHUNK)):
        x = as_input(chunk)
        draws = []
        for sample in range(samples):
            block = number * samples + sample
            noise = {site: eps.to(x.device) for site, eps in streams.noise_for(purpose, len(x), block).items()}
            terms = lockstep.terms(x, noise, streams.keys(purpose, block))
            draws.append(torch.stack(terms).double().cpu())
        chunks.append(torch.stack(draws).mean(0))
    return Terms(*torch.cat(chunks, dim=2))


def _per_image(
    lockstep: Lockstep, streams: Streams, data: Dataset, floor: Callable[[Tensor], Tensor], measure: Measure
) -> dict[str, NDArray[np.float64]]:
    """Distortion, rate and floor of each image, ``[runs, split, images]``."""
    shape = (len(lockstep), 2, measure.images)
    per_image = {name: np.full(shape, np.nan) for name in ("distortion", "rate", "floor")}
    for split, (name, images) in enumerate((("train", data.train), ("test", data.test))):
        chosen = images[: measure.images]
        terms = terms_on(chosen, lockstep, streams, f"evaluate {name}", measure.samples)
        per_image["distortion"][:, split, : len(chosen)] = terms.distortion
        per_image["rate"][:, split, : len(chosen)] = terms.rate
        per_image["floor"][:, split, : len(chosen)] = torch.cat(
            [floor(as_input(chunk)).double().cpu() for chunk in chosen.split(CHUNK)]
        )
    return per_image


def _encodings(pair: Pair, images: Tensor, **values: float | Tensor) -> Distribution:
    """q(z|x) of images, batch shape [images]."""
    with torch.no_grad():
        return concatenated([pair.latent(as_input(chunk), **values)[0] for chunk in images.split(CHUNK)])
