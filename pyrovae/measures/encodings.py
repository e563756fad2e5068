"""Encodings of the images of a data set under a trained pair, and its prior."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution

from pyrovae.data import Dataset, as_input
from pyrovae.estimators.marginal import encodings
from pyrovae.programs.distributions import concatenated
from pyrovae.programs.pair import Pair

#: Images decoded at once, and images encoded at once; on a GPU, larger chunks need fewer calls.
CHUNK = 256
ENCODED = {"cpu": 2**11, "cuda": 2**13}


class Encodings(NamedTuple):
    """q(z|x) of all training and all test images, batch shape [N] each, in float64, and p(z)."""

    train: Distribution
    test: Distribution
    prior: Distribution


def encode_all(pair: Pair, data: Dataset, **values: float | Tensor) -> Encodings:
    """Encodes all images of a data set.

    Args:
        values: arguments of the programs other than images.

    Raises:
        UnsupportedError: as `Pair.latent`, or the type of q is not supported.
    """
    _, prior = pair.latent(as_input(data.train[:1]), **values)
    train, test = (encodings(encode(pair, images, **values)) for images in (data.train, data.test))
    return Encodings(train, test, prior)


@torch.no_grad()
def encode(pair: Pair, images: Tensor, **values: float | Tensor) -> Distribution:
    """q(z|x) of images as a data set holds them, ``[N, *event_shape]``: batch shape [N].

    Raises:
        UnsupportedError: as `Pair.latent`, or the type of q is not supported.
    """
    chunks = images.split(ENCODED[images.device.type])
    return concatenated([pair.latent(as_input(chunk), **values)[0] for chunk in chunks])
