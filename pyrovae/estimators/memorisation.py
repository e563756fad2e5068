"""The decoder of infinite capacity, which does best on the training images and knows nothing else."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.distributions import Distribution

from pyrovae.data import as_input
from pyrovae.estimators.marginal import ROWS, encodings, log_densities

#: Codes and training images in one piece of work.
CODES, COLUMNS = 512, 2048
#: Least share of the mean image that is tried, as a power of ten.
LEAST = -12.0


class Memorised(NamedTuple):
    """What the decoder of infinite capacity makes of codes.

    Attributes:
        image: x̂(z), ``[n, *event_shape]``, in float64.
        perplexity: exp of the entropy of the weights, ``[n]``: of how many training images x̂(z) is made.
    """

    image: Tensor
    perplexity: Tensor


@torch.no_grad()
def memorising_decoder(z: Tensor, q: Distribution, images: Tensor, own: Tensor | None = None) -> Memorised:
    """The decoder of infinite capacity, x̂(z) = Σ_n w_n(z) x_n with w_n(z) = q(z|x_n) / Σ_m q(z|x_m).

    It is the mean of the training images under p(n|z). Where the mean decides the distortion, as under a Bernoulli
    likelihood or a Gaussian one of fixed σ, no decoder has a lower training distortion with this guide. What a trained
    decoder does better on unseen images it owes to its limits.

    Args:
        z: codes, ``[n, *latent_shape]``.
        q: encodings of the training images, batch shape [N].
        images: the training images, ``[N, *event_shape]``; uint8 is scaled to [0, 1].
        own: row of each code's own training image, ``[n]``, to be left out.

    Raises:
        UnsupportedError: ``q`` is neither normal nor a flow.
        ValueError: its batch shape is not [N].

    Source: Rezende & Viola 2018, Taming VAEs (the optimal decoder); Bozkurt et al. 2021.

    Cost: n · N densities and n · N products with images, in pieces, in float64: a weight may be as small as e⁻⁷⁰⁰.

    Example:
        >>> import torch
        >>> from torch.distributions import Independent, Normal
        >>> q = Independent(Normal(torch.tensor([[-1.0], [1.0]]), torch.ones(2, 1)), 1)
        >>> found = memorising_decoder(torch.tensor([[0.0], [9.0]]), q, torch.tensor([[0.0], [1.0]]))
        >>> found.image.round(decimals=3).flatten().tolist(), found.perplexity.round(decimals=3).tolist()
        ([0.5, 1.0], [2.0, 1.0])
    """
    q, z = encodings(q), z.double()
    image, perplexity = [], []
    for start in range(0, len(z), CODES):
        codes = slice(start, start + CODES)
        w = _weights(z[codes], q, None if own is None else own[codes])
        perplexity.append(torch.special.entr(w).sum(1).exp())
        x_hat = w.new_zeros(len(w), images[0].numel())
        for at in range(0, len(images), COLUMNS):
            x_hat += w[:, at : at + COLUMNS] @ as_input(images[at : at + COLUMNS]).double().flatten(1)
        image.append(x_hat.unflatten(1, images.shape[1:]))
    return Memorised(torch.cat(image), torch.cat(perplexity))


@torch.no_grad()
def mixing_share(distortion: Callable[[Tensor], Tensor], image: Tensor, mean: Tensor) -> float:
    """The share ε at which the mean of the distortion of (1 − ε) x̂ + ε x̄ is least, in [10⁻¹², 1].

    Without it a single pixel that is lit in an image and in none of those that x̂ is made of makes its Bernoulli
    distortion infinite. Fitted to training images of which each is left out of its own x̂: else ε would be 0.

    Args:
        distortion: mean images → distortion of the images at hand, ``[n, *event_shape] → [n]``; convex.
        image: x̂ of these images, ``[n, *event_shape]``.
        mean: x̄, a mean image in which no pixel is 0 or 1, ``[*event_shape]``.

    Example:
        >>> import torch
        >>> x, x_hat = torch.tensor([[1.0], [1.0], [1.0], [0.0]]).double(), torch.ones(4, 1).double()
        >>> def distortion(mean: torch.Tensor) -> torch.Tensor:
        ...     return -(x * mean.log() + (1 - x) * (1 - mean).log()).sum(1)
        >>> round(mixing_share(distortion, x_hat, torch.full((1,), 0.5)), 2)  # a quarter of the pixels is dark
        0.5
    """
    found = minimize_scalar(
        lambda power: float(distortion(torch.lerp(image, mean.to(image), 10.0**power)).mean()),
        bounds=(LEAST, 0.0),
        method="bounded",
        options={"xatol": 0.01},
    )
    return 10.0 ** float(found.x)


def _weights(z: Tensor, q: Distribution, own: Tensor | None) -> Tensor:
    """w_n(z), ``[n, N]``."""
    owners = [None] * len(z) if own is None else own.split(ROWS)
    log_q = [
        torch.cat(list(log_densities(rows, q, owner)), dim=1)
        for rows, owner in zip(z.split(ROWS), owners, strict=False)
    ]
    return torch.cat(log_q).softmax(1)
