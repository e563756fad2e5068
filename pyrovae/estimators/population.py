"""Between which values I and G of the population lie, from images that nothing was fitted to."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution

from pyrovae.estimators.estimate import Estimate, mean_over_images
from pyrovae.estimators.information import rate_terms
from pyrovae.estimators.marginal import draw

#: z → log p'(z)
Density = Callable[[Tensor], Tensor]
#: Draws of z per image.
DRAWS = 8


class PopulationBracket(NamedTuple):
    """Both ends of I and of G, in nats per image.

    Attributes:
        information_low, information_high: I lies between them, in expectation.
        gap_low, gap_high: so does G. The lower end is the closable gap, what the best candidate saves.
        best: the name of the candidate; None if none is better than the prior itself.
    """

    information_low: Estimate
    information_high: Estimate
    gap_low: Estimate
    gap_high: Estimate
    best: str | None


def population_bracket(
    q: Distribution, prior: Distribution, candidates: Mapping[str, Density], generator: torch.Generator
) -> PopulationBracket:
    """Brackets I and G of the population, by densities p' that were fitted to other codes.

    For any p', E KL(q(z|x) ‖ p') = I + KL(q(z) ‖ p') ≥ I. The candidate or prior p with the smallest mean on one half
    of the images gives the upper end of I on the other half, and R(p) minus that the lower end of G. I of M codes is
    at most I of the population in expectation, and at most log M; it gives the other ends.

    Args:
        q: encodings of M images of the population, batch shape [M], float64, to which neither the pair nor a candidate
            was fitted.
        prior: p(z).
        candidates: log p'(z) by name.

    Example:
        >>> from torch.distributions import Independent, Normal
        >>> def normal(loc, scale):
        ...     return Independent(Normal(torch.as_tensor(loc).double(), torch.as_tensor(scale).double()), 1)
        >>> q, prior = normal(torch.randn(500, 1), torch.full((500, 1), 0.5)), normal([3.0], [1.0])
        >>> found = population_bracket(q, prior, {"fitted": normal([0.0], [1.25**0.5]).log_prob}, torch.Generator())
        >>> found.best, bool(found.gap_low.value > 3)
        ('fitted', True)
    """
    rates = excess_rates(q, {"": prior.log_prob, **candidates}, generator)
    half = len(rates[""]) // 2
    best = min(rates, key=lambda name: rates[name][:half].mean().item())
    codes = rate_terms(q, prior, outer=len(rates[""]), generator=generator)
    return PopulationBracket(
        information_low=codes.mutual_information,
        information_high=mean_over_images(rates[best][half:], "upper bound"),
        gap_low=mean_over_images((rates[""] - rates[best])[half:], "lower bound"),
        gap_high=codes.prior_gap,
        best=best or None,
    )


def excess_rates(q: Distribution, densities: Mapping[str, Density], generator: torch.Generator) -> dict[str, Tensor]:
    """E_q[log q(z|x) − log p'(z)] of each encoding under each density, ``[n]``, at the same draws of z."""
    z = draw(q, DRAWS, generator)
    log_q = q.log_prob(z)
    return {name: (log_q - log_p(z)).mean(0) for name, log_p in densities.items()}
