"""The log-likelihood of images, by importance weighting."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pyrovae.estimators.estimate import Estimate, mean_over_images
from pyrovae.estimators.psis import importance_diagnostics, pareto_k_threshold

#: Numbers in the images that are decoded at once: on a CPU larger temporaries would cost more to get than to fill.
NUMBERS = {"cpu": 2**20, "cuda": 2**26}
#: What an image counts for at the least, because of what networks hold of it.
SMALLEST = 64
#: Share of images with k̂ above its threshold from which on a number is called unreliable.
MANY = 0.1


@dataclass(frozen=True, eq=False)
class ImportanceWeighted:
    """Bounds of log p(x) with what tells how tight they can be, ``[n]`` each.

    Attributes:
        bound: log (1/K) Σ_k w_k, in nats.
        pareto_k: k̂ of the weights.
        ess: their effective sample size, at most K.
        particles: K.
    """

    bound: Tensor
    pareto_k: Tensor
    ess: Tensor
    particles: int

    @property
    def high_pareto_k(self) -> float:
        """Share of images with k̂ above `pareto_k_threshold`; NaN where k̂ is not known."""
        if self.pareto_k.isnan().any():
            return math.nan
        return float((self.pareto_k > pareto_k_threshold(self.particles)).double().mean())

    @property
    def estimate(self) -> Estimate:
        """Mean over images, a lower bound of E_x log p(x); notes say where it is not to be trusted."""
        share, threshold = self.high_pareto_k, pareto_k_threshold(self.particles)
        notes = [f"k̂ above {threshold:.2f} for {share:.0%} of the images"] if share > MANY else []
        return mean_over_images(self.bound, "lower bound", *notes)


def at_once(x: Tensor) -> int:
    """Images like these, ``[n, *event_shape]``, that are decoded in one piece of work."""
    return max(1, NUMBERS[x.device.type] // max(x[0].numel(), SMALLEST))


def portions(draws: int, x: Tensor) -> list[int]:
    """Draws of all images, ``[n, *event_shape]``, in pieces of bounded size if one draw of all is."""
    most = max(1, at_once(x) // len(x))
    return [min(most, draws - first) for first in range(0, draws, most)]


@torch.no_grad()
def log_likelihood(log_weights: Callable[[Tensor, int], Tensor], x: Tensor, particles: int) -> ImportanceWeighted:
    """The importance-weighted bound of log p(x), a lower one in expectation (Burda et al. 2016, eq. 8).

    L_K = log (1/K) Σ_k w_k with w_k = p(x, z_k) / q(z_k|x) and z_k ~ q(z|x). E[L_K] rises with K to log p(x), slowly
    where q is much narrower than the posterior, as at small β; k̂ tells such images. It is the raw mean: smoothed
    weights would give no bound.

    Args:
        log_weights: images ``[n, *event_shape]`` and a number K → log w, ``[K, n]``, as `Pair.log_weights`.
        x: images, ``[batch, *event_shape]``.
        particles: draws K an image, at least 2.

    Returns:
        Nats per image in float64, with k̂ and effective sample size; NaN where a weight is NaN.

    Raises:
        ValueError: K is below 2.

    Cost: K passes through the decoder for each image, in pieces of bounded size.

    Example:
        >>> import torch
        >>> from torch.distributions import Normal
        >>> x = torch.zeros(3, 1)  # z ~ N(0, 1), x ~ N(z, 1), and q is the prior
        >>> log_w = lambda x, K: Normal(torch.randn(K, len(x)), 1.0).log_prob(x[:, 0])
        >>> _ = torch.manual_seed(0)
        >>> found, truth = log_likelihood(log_w, x, particles=20_000), Normal(0.0, 2**0.5).log_prob(x[:, 0])
        >>> bool((found.bound - truth).abs().max() < 0.05), found.high_pareto_k
        (True, 0.0)
    """
    if particles < 2:
        raise ValueError(f"particles: expected at least 2, got {particles}")
    images = max(1, at_once(x) // particles)
    most = max(1, at_once(x) // images)
    counts = [min(most, particles - done) for done in range(0, particles, most)]
    found = []
    for part in x.split(images):
        log_w = torch.cat([log_weights(part, count).double() for count in counts]).T
        found.append((log_w.logsumexp(1) - math.log(particles), *importance_diagnostics(log_w)))
    bound, pareto_k, ess = (torch.cat(values) for values in zip(*found, strict=True))
    return ImportanceWeighted(bound, pareto_k, ess, particles)
