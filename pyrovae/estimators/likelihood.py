"""Importance-weighted bounds on the log-likelihood of images."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pyrovae.errors import InputError
from pyrovae.estimators.estimate import Estimate, mean_over_images
from pyrovae.estimators.psis import importance_diagnostics, pareto_k_threshold

#: Pixels decoded per chunk; on a CPU, larger temporaries cost more to allocate than to fill.
CHUNK_ELEMENTS = {"cpu": 2**20, "cuda": 2**26}
#: Pixels that the smallest image counts as: hidden layers take memory too.
MIN_IMAGE_ELEMENTS = 64
#: Share of images with high k̂ above which a bound is reported as unreliable.
HIGH_K_SHARE = 0.1


@dataclass(frozen=True, eq=False)
class ImportanceWeighted:
    """Lower bounds of log p(x) with diagnostics of their weights, ``[n]`` each.

    Attributes:
        bound: log (1/K) Σ_k w_k, in nats.
        elbo: (1/K) Σ_k log w_k, an unbiased estimate of the ELBO; never above the bound.
        pareto_k: k̂ of the weights.
        ess: effective sample size of the weights, at most K.
        particles: number of weights K.
    """

    bound: Tensor
    elbo: Tensor
    pareto_k: Tensor
    ess: Tensor
    particles: int

    @property
    def high_pareto_k(self) -> float:
        """Share of images with k̂ above `pareto_k_threshold`; NaN where any k̂ is NaN."""
        if self.pareto_k.isnan().any():
            return math.nan
        return float((self.pareto_k > pareto_k_threshold(self.particles)).double().mean())

    @property
    def estimate(self) -> Estimate:
        """Mean over images, a lower bound of E_x log p(x), with a note where k̂ is high for many images, or unknown."""
        share, threshold = self.high_pareto_k, pareto_k_threshold(self.particles)
        notes = [f"k̂ above {threshold:.2f} for {share:.0%} of the images"] if share > HIGH_K_SHARE else []
        if math.isnan(share):
            notes = ["k̂ unknown"]
        return mean_over_images(self.bound, "lower bound", *notes)


def images_per_chunk(x: Tensor) -> int:
    """How many images of this shape to decode at once, given ``[n, *event_shape]``."""
    return max(1, CHUNK_ELEMENTS[x.device.type] // max(x[0].numel(), MIN_IMAGE_ELEMENTS))


def draws_per_chunk(draws: int, x: Tensor) -> list[int]:
    """Splits draws for each of the images ``[n, *event_shape]`` into chunks of bounded size, at least one draw each."""
    most = max(1, images_per_chunk(x) // len(x))
    return [min(most, draws - first) for first in range(0, draws, most)]


@torch.no_grad()
def log_likelihood(log_weights: Callable[[Tensor, int], Tensor], x: Tensor, particles: int) -> ImportanceWeighted:
    """Importance-weighted bound of log p(x), a lower bound in expectation (Burda et al. 2016, eq. 8).

    L_K = log (1/K) Σ_k w_k with w_k = p(x, z_k) / q(z_k|x) and z_k ~ q(z|x). E[L_K] increases with K towards
    log p(x), but slowly where q is much narrower than the posterior, as at small β; k̂ identifies such images. The
    weights are not smoothed, because their smoothed mean is not a bound.

    Args:
        log_weights: images ``[n, *event_shape]`` and a number K → log w, ``[K, n]``, such as `Pair.log_weights`.
        x: images, ``[batch, *event_shape]``.
        particles: draws K per image, at least 2.

    Returns:
        The bound in nats per image, in float64, with k̂ and effective sample size; NaN where a weight is NaN.

    Raises:
        InputError: K is below 2.

    Cost: K passes through the decoder for each image, in chunks of bounded size.

    Example:
        >>> import torch
        >>> from torch.distributions import Normal
        >>> x = torch.zeros(3, 1)  # z ~ N(0, 1), x ~ N(z, 1), and q is the prior
        >>> log_w = lambda x, K: Normal(torch.randn(K, len(x)), 1.0).log_prob(x[:, 0])
        >>> _ = torch.manual_seed(0)
        >>> estimated, truth = log_likelihood(log_w, x, particles=20_000), Normal(0.0, 2**0.5).log_prob(x[:, 0])
        >>> bool((estimated.bound - truth).abs().max() < 0.05), estimated.high_pareto_k
        (True, 0.0)
    """
    if particles < 2:
        raise InputError(f"particles: expected at least 2, got {particles}")
    images = max(1, images_per_chunk(x) // particles)
    counts = draws_per_chunk(particles, x[:images])
    chunks = []
    for part in x.split(images):
        log_w = torch.cat([log_weights(part, count).double() for count in counts]).T
        chunks.append((log_w.logsumexp(1) - math.log(particles), log_w.mean(1), *importance_diagnostics(log_w)))
    bound, elbo, pareto_k, ess = (torch.cat(values) for values in zip(*chunks, strict=True))
    return ImportanceWeighted(bound, elbo, pareto_k, ess, particles)
