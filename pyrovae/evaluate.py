"""What is measured on trained runs."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pyro
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.distributions import Distribution
from torch.nn.functional import pad

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
        notes: what is to be said of the information of each run.
    """

    cells: dict[str, NDArray[np.float64]]
    images: dict[str, NDArray[np.float64]]
    information: dict[str, NDArray[np.float64]]
    notes: list[tuple[str, ...]]


def evaluate(
    lockstep: Lockstep, streams: Streams, data: Dataset, floor: Callable[[Tensor], Tensor], measure: Measure
) -> Measured:
    """Measures each run on the images that ``measure`` names, in nats per image; the weights are only read.

    D = E_x E_q(z|x)[−log p(x|z)] and R = E_x KL(q(z|x) ‖ p(z)) on both splits, and what `information` gives.
    The standard errors are over images.

    Args:
        floor: smallest distortion of each image, ``[n, *event_shape] → [n]``.
    """
    splits = [_per_image(images, lockstep, streams, name, floor, measure) for name, images in data.splits()]
    cells = {}
    for name in ("floor", "distortion", "rate", "elbo"):
        cells[name] = torch.stack([each[name].mean(-1) for each in splits], dim=1).numpy()
        errors = [each[name].std(-1) / each[name].shape[-1] ** 0.5 for each in splits]
        cells[f"{name}_se"] = torch.stack(errors, dim=1).numpy()
    found = [
        information(lockstep.pair(run), data, measure, generator(seed, "information"), **lockstep.values_of(run))
        for run, seed in enumerate(streams.seeds)
    ]
    codes = {name: np.array([each[name].value for each in found]) for name in INFORMATION}
    codes |= {f"{name}_se": np.array([each[name].se for each in found]) for name in INFORMATION}
    images = {name: _padded([each[name] for each in splits], measure.images) for name in ("distortion", "rate")}
    return Measured(cells, images, codes, [each["mutual_information"].notes for each in found])


def information(
    pair: Pair, data: Dataset, measure: Measure, generator: torch.Generator, **values: float | Tensor
) -> dict[str, Estimate]:
    """Where the information of a run goes, by the names of `INFORMATION`, in nats per image.

    Mutual information and prior gap of the encodings of all training images, the rate of test images under the
    inference marginal, the number of active units, and the limit log N; NaN, with a note that says why, where q(z|x) is
    of a kind that cannot be measured so or not finite.

    Args:
        values: what the programs take beside images.
    """
    found = {"log_n": Estimate(float(np.log(len(data.train))), 0.0, "exact")}
    try:
        # Validation would stop at the codes of a run that has diverged, and lose its neighbours' numbers too.
        with torch.no_grad(), pyro.validation_enabled(False):
            q = _encodings(pair, data.train, **values)
            unseen = _encodings(pair, data.test[: measure.outer], **values)
            _, prior = pair.latent(as_input(data.train[:1]), **values)
            outer = min(measure.outer, len(data.train))
            _, found["mutual_information"], found["prior_gap"] = estimators.rate_terms(
                q, prior, samples=measure.samples, outer=outer, generator=generator
            )
            found["marginal_rate"] = estimators.marginal_rate(unseen, q, samples=measure.samples, generator=generator)
            found["active_units"] = estimators.active_units(q)
    except UnsupportedError as error:
        missing = {name: Estimate(np.nan, np.nan, kind, (str(error),)) for name, kind in INFORMATION.items()}
        return missing | found
    if not np.isfinite(found["mutual_information"].value):
        found["mutual_information"] = replace(found["mutual_information"], notes=("the codes are not finite",))
    return found


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
    images: Tensor,
    lockstep: Lockstep,
    streams: Streams,
    split: str,
    floor: Callable[[Tensor], Tensor],
    measure: Measure,
) -> dict[str, Tensor]:
    """Floor, distortion, rate and ELBO of each image that is measured, ``[runs, images]``."""
    chosen = images[: measure.images]
    terms = terms_on(chosen, lockstep, streams, f"evaluate {split}", measure.samples)
    floors = torch.cat([floor(as_input(chunk)).double().cpu() for chunk in chosen.split(CHUNK)])
    return {
        "floor": floors.expand(len(lockstep), -1),
        "distortion": terms.distortion,
        "rate": terms.rate,
        "elbo": -terms.distortion - terms.rate,
    }


def _padded(splits: list[Tensor], images: int) -> NDArray[np.float64]:
    """Values of both splits in one array, ``[runs, split, images]``, NaN where a split has fewer images."""
    return torch.stack([pad(each, (0, images - each.shape[1]), value=torch.nan) for each in splits], dim=1).numpy()


def _encodings(pair: Pair, images: Tensor, **values: float | Tensor) -> Distribution:
    """q(z|x) of images, batch shape [images]."""
    return concatenated([pair.latent(as_input(chunk), **values)[0] for chunk in images.split(CHUNK)])
