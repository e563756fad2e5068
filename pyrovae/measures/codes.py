"""The codes of a run: encodings of its images, and its prior."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution

from pyrovae.data import Dataset, as_input
from pyrovae.programs.distributions import concatenated
from pyrovae.programs.pair import Pair

#: Images in one piece of work, and those that are encoded at once, which a GPU is told of in few calls.
CHUNK = 256
ENCODED = {"cpu": CHUNK, "cuda": 2**13}


class Encodings(NamedTuple):
    """q(z|x) of all training and of all test images, batch shape [N] each, and p(z)."""

    train: Distribution
    test: Distribution
    prior: Distribution


def codes(pair: Pair, data: Dataset, **values: float | Tensor) -> Encodings:
    """Encodes all images of a data set.

    Args:
        values: what the programs take beside images.

    Raises:
        UnsupportedError: as `Pair.latent`, or q is of a kind that cannot be taken apart.
    """
    _, prior = pair.latent(as_input(data.train[:1]), **values)
    return Encodings(encode(pair, data.train, **values), encode(pair, data.test, **values), prior)


@torch.no_grad()
def encode(pair: Pair, images: Tensor, **values: float | Tensor) -> Distribution:
    """q(z|x) of images as in a data set, ``[N, *event_shape]``: batch shape [N].

    Raises:
        UnsupportedError: as `Pair.latent`, or q is of a kind that cannot be taken apart.
    """
    chunks = images.split(ENCODED[images.device.type])
    return concatenated([pair.latent(as_input(chunk), **values)[0] for chunk in chunks])
