"""What is measured on trained runs."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyrovae.data import Dataset, as_input
from pyrovae.lockstep import Lockstep
from pyrovae.pair import Terms
from pyrovae.streams import Streams

#: Images in one piece of work.
CHUNK = 256


def terms_on(images: Tensor, lockstep: Lockstep, streams: Streams, purpose: str, samples: int = 1) -> Terms:
    """Loss, distortion and rate of each image under each run, ``[runs, images]``, in nats, in float64.

    Args:
        images: uint8, ``[images, *event_shape]``.
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


class Measured(NamedTuple):
    """What evaluation gives, by variable; the leading axes are ``[runs, split]``, splits being train and test.

    Attributes:
        cells: one number each, such as distortion and its standard error.
        images: one number an image, ``[runs, split, images]``; NaN where a split has fewer images.
    """

    cells: dict[str, NDArray[np.float64]]
    images: dict[str, NDArray[np.float64]]


def evaluate(
    lockstep: Lockstep, streams: Streams, data: Dataset, floor: Callable[[Tensor], Tensor], images: int, samples: int
) -> Measured:
    """Distortion, rate and floor of each run on the first ``images`` images of each split, with standard errors.

    D = E_x E_q(z|x)[−log p(x|z)] and R = E_x KL(q(z|x) ‖ p(z)), in nats per image; the weights are only read.
    The standard errors are over images.

    Args:
        floor: smallest distortion of each image, ``[n, *event_shape] → [n]``.
        samples: draws of z an image.
    """
    per_image = {name: np.full((len(lockstep), 2, images), np.nan) for name in ("distortion", "rate", "floor")}
    for split, (name, tensor) in enumerate((("train", data.train[:images]), ("test", data.test[:images]))):
        terms = terms_on(tensor, lockstep, streams, f"evaluate {name}", samples)
        per_image["distortion"][:, split, : len(tensor)] = terms.distortion
        per_image["rate"][:, split, : len(tensor)] = terms.rate
        per_image["floor"][:, split, : len(tensor)] = torch.cat(
            [floor(as_input(chunk)).double().cpu() for chunk in tensor.split(CHUNK)]
        )
    cells = {"floor": np.nanmean(per_image.pop("floor"), -1)}
    per_image["elbo"] = -per_image["distortion"] - per_image["rate"]
    for name, values in per_image.items():
        count = np.isfinite(values).sum(-1)
        cells[name] = np.nanmean(values, -1)
        cells[f"{name}_se"] = np.nanstd(values, -1, ddof=1) / np.sqrt(count)
    return Measured(cells, per_image)
