"""What a guide loses against log p(x), and to what."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import Distribution

from pyrovae.estimators.annealing import Annealing, LogLikelihood, annealed_log_likelihood
from pyrovae.estimators.likelihood import portions
from pyrovae.programs.distributions import kl, log_ratio, noise_shape, reparameterize, unconstrained

#: Step size that the optimisation of a guide starts from; it falls to zero linearly.
SPEED = 0.05


@dataclass(frozen=True, eq=False)
class Optimisation:
    """How much work it is to optimise q(z|x) for each image by itself, and to measure it.

    Attributes:
        steps: of Adam.
        samples: draws of z an image at each step.
        draws: draws of z an image behind every ELBO.
    """

    steps: int = 1000
    samples: int = 16
    draws: int = 1000


@dataclass(frozen=True, eq=False)
class InferenceGap:
    """log p(x) − ELBO of each image, and its parts, ``[n]`` each, in nats.

    The best q is the best that was found, so that the amortisation gap is a lower bound; with log p(x) bounded from
    below, too, the approximation gap may be off either way, and is below zero where annealing fell short.

    Attributes:
        log_likelihood: the bound of log p(x) by annealing.
        elbo: −D − R of the guide, the mean of log p(x, z) − log q(z|x) over draws.
        approximation: what the best q of the guide's family still lacks.
        amortisation: what the guide lacks against that.
        approximation_se, amortisation_se: standard errors over draws of z and chains.
    """

    log_likelihood: Tensor
    elbo: Tensor
    approximation: Tensor
    amortisation: Tensor
    approximation_se: Tensor
    amortisation_se: Tensor


def inference_gap(
    q: Distribution,
    prior: Distribution,
    log_likelihood: LogLikelihood,
    x: Tensor,
    *,
    annealing: Annealing = Annealing(),
    optimisation: Optimisation = Optimisation(),
    stepped: Callable[[], None] = lambda: None,
) -> InferenceGap:
    """The inference gap of each image, split by a q that is optimised for it alone (Cremer et al. 2018, eq. 5).

    log p(x) − ELBO[q] = (log p(x) − ELBO[q*]) + (ELBO[q*] − ELBO[q]), where q* has the largest ELBO −D − R in the
    family of q: approximation gap and amortisation gap. A guide that was trained at another β than 1 aims at another
    q than q*, and what that costs counts as amortisation here.

    Args:
        q: q(z|x) of the images, batch shape [n]: a normal distribution, diagonal or full-rank, or a flow, whose context
            is what is optimised.
        prior, log_likelihood, x, annealing: as in `annealed_log_likelihood`.
        optimisation: how much work to do.
        stepped: called after every step of optimisation, and every temperature of either pass of annealing.

    Raises:
        UnsupportedError: q is of another type.

    Cost: steps · samples gradients an image, those of all images at once, and that of annealing.

    Source: Cremer, Li & Duvenaud 2018, Inference suboptimality in variational autoencoders, ICML.

    Example:
        >>> import torch
        >>> from torch.distributions import Independent, Normal
        >>> prior = Independent(Normal(torch.zeros(1), torch.ones(1)), 1)
        >>> x = torch.tensor([[0.0], [2.0]])  # x ~ N(z, 1), so that p(z|x) = N(x / 2, 1 / 2)
        >>> q = Independent(Normal(x / 2 + 0.5, torch.tensor(0.5**0.5)), 1)
        >>> _ = torch.manual_seed(0)
        >>> gap = inference_gap(q, prior, lambda x, z: Normal(z, 1.0).log_prob(x).sum(1), x)
        >>> bool((gap.amortisation - 0.25).abs().max() < 0.1)  # KL(q ‖ p(z|x)) = 0.5² / (2 · 0.5)
        True
        >>> bool(gap.approximation.abs().max() < 0.1)  # the family holds the posterior
        True
    """
    best = _optimised(q, prior, log_likelihood, x, optimisation, stepped)
    annealed = annealed_log_likelihood(prior, log_likelihood, x, annealing, stepped)
    guide, found = _log_weights([q, best], prior, log_likelihood, x, optimisation.draws)
    return InferenceGap(
        log_likelihood=annealed.bound,
        elbo=guide.mean(0),
        approximation=annealed.bound - found.mean(0),
        amortisation=(found - guide).mean(0),
        approximation_se=(annealed.se.square() + _se(found).square()).sqrt(),
        amortisation_se=_se(found - guide),
    )


def _se(draws: Tensor) -> Tensor:
    """Standard error of the mean over draws, ``[draws, n] → [n]``."""
    return draws.std(0) / len(draws) ** 0.5


@torch.enable_grad()
def _optimised(
    q: Distribution,
    prior: Distribution,
    log_likelihood: LogLikelihood,
    x: Tensor,
    optimisation: Optimisation,
    stepped: Callable[[], None],
) -> Distribution:
    """The q(z|x) of its family with the largest ELBO of each image."""
    values, distribution = unconstrained(q)
    parameters = [value.detach().clone().requires_grad_() for value in values]
    adam = torch.optim.Adam(parameters, lr=SPEED)
    slower = torch.optim.lr_scheduler.LinearLR(adam, 1.0, 0.0, optimisation.steps)
    repeated = x.expand(optimisation.samples, *x.shape).flatten(0, 1)
    for _ in range(optimisation.steps):
        free = distribution(*parameters)
        z = free.rsample((optimisation.samples,))
        distortion = -log_likelihood(repeated, z.flatten(0, 1)).unflatten(0, z.shape[:2])
        loss = (distortion + kl(free, prior, z)).mean(0).sum()
        gradients = torch.autograd.grad(loss, parameters)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        adam.step()
        slower.step()
        stepped()
    return distribution(*(parameter.detach() for parameter in parameters))


@torch.no_grad()
def _log_weights(
    guides: Sequence[Distribution], prior: Distribution, log_likelihood: LogLikelihood, x: Tensor, draws: int
) -> Tensor:
    """log p(x, z) − log q(z|x) of each guide, from one noise for all, ``[guides, draws, n]``; in bounded pieces."""
    pieces = []
    for count in portions(draws, x):
        repeated = x.expand(count, *x.shape).flatten(0, 1)
        shape = noise_shape(guides[0].expand((count, len(x))))
        assert shape is not None, "`unconstrained` knows no distribution that is not made from noise"
        noise = torch.randn(shape, device=x.device)
        of_guides = []
        for q in guides:
            z = reparameterize(q.expand((count, len(x))), noise)
            log_p = log_likelihood(repeated, z.flatten(0, 1)).unflatten(0, (count, -1))
            of_guides.append(log_p - log_ratio(q, prior, z))
        pieces.append(torch.stack(of_guides))
    return torch.cat(pieces, 1).double()
