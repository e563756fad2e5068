"""The inference gap log p(x) − ELBO, split into approximation gap and amortisation gap."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import Distribution

from pyrovae.estimators.annealing import Annealing, LogLikelihood, annealed_log_likelihood
from pyrovae.estimators.likelihood import draws_per_chunk
from pyrovae.programs.distributions import kl, log_ratio, noise_shape, reparameterize, unconstrained

#: Initial learning rate; it decays linearly to zero.
LEARNING_RATE = 0.05


@dataclass(frozen=True, eq=False)
class Optimisation:
    """Settings for optimising q(z|x) for each image separately, and for estimating its ELBO.

    Attributes:
        steps: steps of Adam.
        samples: draws of z per image at each step.
        draws: draws of z per image for each ELBO.
    """

    steps: int = 1000
    samples: int = 16
    draws: int = 1000


@dataclass(frozen=True, eq=False)
class InferenceGap:
    """The parts of log p(x) − ELBO of each image, ``[n]`` each, in nats.

    The optimised q may fall short of the best q* of its family, so the amortisation gap is a lower bound. log p(x) is
    a lower bound as well, so the approximation gap may err in either direction; it is negative where annealing falls
    short of the optimised ELBO.

    Attributes:
        log_likelihood: the bound of log p(x) by annealing.
        elbo: −D − R of the guide, the mean of log p(x, z) − log q(z|x) over draws.
        approximation: log p(x) − ELBO[q*], the loss due to the guide's family.
        amortisation: ELBO[q*] − ELBO[q], the loss due to sharing one encoder among all images.
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
    """Approximation gap and amortisation gap of each image.

    log p(x) − ELBO[q] = (log p(x) − ELBO[q*]) + (ELBO[q*] − ELBO[q]), where q* has the largest ELBO −D − R in the
    family of q and is optimised for each image separately. A guide trained at β ≠ 1 targets another q than q*; that
    difference counts as amortisation here.

    Args:
        q: q(z|x) of the images, batch shape [n]: a diagonal or full-rank normal distribution, or a flow, of which the
            context is optimised.
        prior, log_likelihood, x, annealing: as in `annealed_log_likelihood`.
        optimisation: steps of Adam and draws.
        stepped: called after each step of Adam and each temperature of both passes of annealing.

    Raises:
        UnsupportedError: q is of another type.

    Cost: steps · samples gradients per image, for all images at once, and the cost of annealing.

    Source: Cremer, Li & Duvenaud 2018, Inference suboptimality in variational autoencoders, ICML, eq. 5.

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
        >>> bool(gap.approximation.abs().max() < 0.1)  # the family contains the posterior
        True
    """
    best = _optimised(q, prior, log_likelihood, x, 1.0, optimisation, stepped)
    annealed = annealed_log_likelihood(prior, log_likelihood, x, annealing, stepped)
    log_p, log_ratios = _terms([q, best], prior, log_likelihood, x, optimisation.draws)
    guide, optimum = log_p - log_ratios
    return InferenceGap(
        log_likelihood=annealed.bound,
        elbo=guide.mean(0),
        approximation=annealed.bound - optimum.mean(0),
        amortisation=(optimum - guide).mean(0),
        approximation_se=(annealed.se.square() + _se(optimum).square()).sqrt(),
        amortisation_se=_se(optimum - guide),
    )


def amortised_distortion(
    q: Distribution,
    prior: Distribution,
    log_likelihood: LogLikelihood,
    x: Tensor,
    beta: float = 1.0,
    *,
    optimisation: Optimisation = Optimisation(),
    stepped: Callable[[], None] = lambda: None,
) -> Tensor:
    """The distortion that each image loses because one encoder serves all: D[q] − D[q̂], ``[n]``, in nats.

    q̂(z|x) minimises D + β R for one image alone, in the family of q and with the decoder frozen. It may also trade
    distortion for rate, so that the difference can be negative.

    Args:
        q, prior, log_likelihood, x, optimisation, stepped: as in `inference_gap`.
        beta: the weight β that the guide was trained with.

    Raises:
        UnsupportedError: as `inference_gap`.

    Example:
        >>> import torch
        >>> from torch.distributions import Independent, Normal
        >>> prior = Independent(Normal(torch.zeros(1), torch.ones(1)), 1)
        >>> x = torch.tensor([[0.0], [2.0]])  # x ~ N(z, 1), so that p(z|x) = N(x / 2, 1 / 2)
        >>> q = Independent(Normal(x / 2 + torch.tensor([[0.0], [-0.5]]), torch.tensor(0.5**0.5)), 1)
        >>> _ = torch.manual_seed(0)
        >>> lost = amortised_distortion(q, prior, lambda x, z: Normal(z, 1.0).log_prob(x).sum(1), x)
        >>> bool((lost - torch.tensor([0.0, (1.5**2 - 1) / 2])).abs().max() < 0.1)
        True
    """
    refined = _optimised(q, prior, log_likelihood, x, beta, optimisation, stepped)
    log_p, _ = _terms([q, refined], prior, log_likelihood, x, optimisation.draws)
    return (log_p[1] - log_p[0]).mean(0)


def _se(draws: Tensor) -> Tensor:
    """Standard error of the mean over draws, ``[draws, n] → [n]``."""
    return draws.std(0) / len(draws) ** 0.5


@torch.enable_grad()
def _optimised(
    q: Distribution,
    prior: Distribution,
    log_likelihood: LogLikelihood,
    x: Tensor,
    beta: float,
    optimisation: Optimisation,
    stepped: Callable[[], None],
) -> Distribution:
    """q* of each image, by gradient descent on D + β R in the unconstrained parameters of q."""
    values, distribution = unconstrained(q)
    parameters = [value.detach().clone().requires_grad_() for value in values]
    adam = torch.optim.Adam(parameters, lr=LEARNING_RATE)
    decay = torch.optim.lr_scheduler.LinearLR(adam, 1.0, 0.0, optimisation.steps)
    repeated = x.expand(optimisation.samples, *x.shape).flatten(0, 1)
    for _ in range(optimisation.steps):
        current = distribution(*parameters)
        z = current.rsample((optimisation.samples,))
        distortion = -log_likelihood(repeated, z.flatten(0, 1)).unflatten(0, z.shape[:2])
        loss = (distortion + beta * kl(current, prior, z)).mean(0).sum()
        gradients = torch.autograd.grad(loss, parameters)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        adam.step()
        decay.step()
        stepped()
    return distribution(*(parameter.detach() for parameter in parameters))


@torch.no_grad()
def _terms(
    guides: Sequence[Distribution], prior: Distribution, log_likelihood: LogLikelihood, x: Tensor, draws: int
) -> Tensor:
    """log p(x|z) and log q(z|x) − log p(z) of each guide at the same noise, ``[2, guides, draws, n]``, in chunks."""
    chunks = []
    for count in draws_per_chunk(draws, x):
        repeated = x.expand(count, *x.shape).flatten(0, 1)
        shape = noise_shape(guides[0].expand((count, len(x))))
        assert shape is not None, "`unconstrained` only accepts reparameterized distributions"
        noise = torch.randn(shape, dtype=x.dtype, device=x.device)
        of_guides = []
        for q in guides:
            z = reparameterize(q.expand((count, len(x))), noise)
            log_p = log_likelihood(repeated, z.flatten(0, 1)).unflatten(0, (count, -1))
            of_guides.append(torch.stack([log_p, log_ratio(q, prior, z)]))
        chunks.append(torch.stack(of_guides, 1))
    return torch.cat(chunks, 2).double()
