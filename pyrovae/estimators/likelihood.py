"""The log-likelihood of images, by importance weighting."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

#: Numbers in the images that are weighted at once: larger temporaries would cost more to get than to fill.
NUMBERS = 2**20


@torch.no_grad()
def log_likelihood(log_weights: Callable[[Tensor], Tensor], x: Tensor, particles: int) -> Tensor:
    """The importance-weighted bound of log p(x), a lower one in expectation (Burda et al. 2016, eq. 8).

    L_K = log (1/K) Σ_k p(x, z_k) / q(z_k|x) with z_k ~ q(z|x); it rises with K to log p(x), slowly where q is much
    narrower than the posterior, as at small β.

    Args:
        log_weights: images ``[n, *event_shape]`` → log p(x, z) − log q(z|x) at one draw z of each, ``[n]``.
        x: images, ``[batch, *event_shape]``.
        particles: draws K an image.

    Returns:
        Nats per image, ``[batch]``, in float64; NaN where a weight is not finite.

    Cost: K passes through the program for each image, in pieces of bounded size.

    Example:
        >>> import torch
        >>> from torch.distributions import Normal
        >>> x = torch.zeros(3, 1)  # z ~ N(0, 1), x ~ N(z, 1), and q is the prior
        >>> log_w = lambda x: Normal(torch.randn(len(x)), 1.0).log_prob(x[:, 0])
        >>> _ = torch.manual_seed(0)
        >>> bound, truth = log_likelihood(log_w, x, particles=20_000), Normal(0.0, 2**0.5).log_prob(x[:, 0])
        >>> bool((bound - truth).abs().max() < 0.05)
        True
    """
    images = max(1, NUMBERS // (particles * x[0].numel()))
    bounds = []
    for part in x.split(images):
        pieces = part.repeat_interleave(particles, dim=0).split(max(1, NUMBERS // x[0].numel()))
        log_w = torch.cat([log_weights(piece).double() for piece in pieces]).unflatten(0, (-1, particles))
        bounds.append(log_w.logsumexp(1) - math.log(particles))
    return torch.cat(bounds)
