"""The log-likelihood of images by annealed importance sampling, and bounds of it from both sides.

The bridge from the prior to the posterior is p_t(z) ∝ p(z) p(x|z)^b_t with inverse temperatures b_0 = 0 < … < b_T = 1.
At every b_t Hamiltonian Monte Carlo moves all chains of all images at once. A first pass adapts a step size for every
image and temperature, and the spacing of the temperatures; a second, with draws of its own, keeps both fixed, as the
bounds demand.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution

from pyrovae.estimators.estimate import Estimate, mean_over_images
from pyrovae.estimators.likelihood import at_once

#: (images ``[n, *event_shape]``, codes ``[n, *latent_shape]``) → log p(x|z), ``[n]``.
LogLikelihood = Callable[[Tensor, Tensor], Tensor]
#: Acceptance that step sizes are adapted to, how fast, the step size they start from, and how far each step strays.
ACCEPTANCE, SPEED, START, JITTER = 0.8, 0.2, 0.5, 0.5
#: Share of the temperatures that is spaced as in the first pass, whatever that finds.
AS_BEFORE = 0.2


@dataclass(frozen=True)
class Annealing:
    """How much work annealing is.

    Attributes:
        temperatures: steps T from the prior to the posterior.
        chains: independent chains an image, at least 2.
        leapfrog: gradients a move.
    """

    temperatures: int = 200
    chains: int = 8
    leapfrog: int = 5

    def __post_init__(self) -> None:
        for name, least in (("temperatures", 1), ("chains", 2), ("leapfrog", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: expected at least {least}, got {getattr(self, name)}")

    @property
    def schedule(self) -> Tensor:
        """Inverse temperatures of the first pass, b = (t/T)⁴, densest where log p(x|z) varies most, ``[T + 1]``."""
        return torch.linspace(0, 1, self.temperatures + 1, dtype=torch.float64) ** 4


@dataclass(frozen=True, eq=False)
class Annealed:
    """Bounds of log p(x), ``[n]`` each.

    Attributes:
        bound: log of the mean weight over chains, in nats.
        se: its standard error over chains, by the delta method: too small where a few chains hold all the weight.
        acceptance: share of moves that were accepted.
    """

    bound: Tensor
    se: Tensor
    acceptance: Tensor

    @property
    def estimate(self) -> Estimate:
        """Mean over images, a lower bound of E_x log p(x)."""
        return mean_over_images(self.bound, "lower bound", f"acceptance {self.acceptance.mean():.2f}")


@dataclass(frozen=True, eq=False)
class Sandwich:
    """Bounds of log p(x) from below and from above, ``[n]`` each, in nats."""

    lower: Tensor
    upper: Tensor

    @property
    def gap(self) -> Estimate:
        """Mean of upper − lower over images, an upper bound of how far either is from log p(x), in expectation."""
        return mean_over_images(self.upper - self.lower, "upper bound")


def annealed_log_likelihood(
    prior: Distribution,
    log_likelihood: LogLikelihood,
    x: Tensor,
    annealing: Annealing = Annealing(),
    stepped: Callable[[], None] = lambda: None,
) -> Annealed:
    """The bound of log p(x) by annealed importance sampling, a lower one in expectation.

    log (1/M) Σ_m w_m over M chains with w = ∏_t p(x|z_{t−1})^(b_t − b_{t−1}), where z_0 ~ p(z) and z_t is moved from
    z_{t−1} by Hamiltonian Monte Carlo, which leaves p(z) p(x|z)^b_t as it is. It comes to log p(x) as T grows, whatever
    the guide: a second opinion where q(z|x) is too narrow for importance weighting.

    Args:
        prior: p(z), one distribution, differentiable.
        log_likelihood: images and codes → log p(x|z), differentiable in z.
        x: images, ``[batch, *event_shape]``.
        annealing: how much work to do.
        stepped: called after every temperature of either pass.

    Returns:
        Nats per image in float64, and the acceptance in the second pass. Draws come from torch's global generator.

    Cost: 2 · T · leapfrog gradients of log p(x|z) for each chain and image, of bounded size.

    Source: Neal 2001, Annealed importance sampling; for decoders Wu et al. 2017, On the quantitative analysis of
    decoder-based generative models, section 3.

    Example:
        >>> import torch
        >>> from torch.distributions import Independent, Normal
        >>> prior = Independent(Normal(torch.zeros(1), torch.ones(1)), 1)
        >>> x = torch.tensor([[0.0], [2.0]])  # x ~ N(z, 0.1²)
        >>> _ = torch.manual_seed(0)
        >>> log_p = lambda x, z: Normal(z, 0.1).log_prob(x).sum(1)
        >>> found = annealed_log_likelihood(prior, log_p, x, Annealing(chains=100))
        >>> truth = Normal(0.0, 1.01**0.5).log_prob(x[:, 0])
        >>> bool((found.bound - truth).abs().max() < 0.1)
        True
    """
    bridge = _Bridge(prior, log_likelihood, x, annealing, stepped)
    schedule, steps = bridge.adapted()
    log_w, acceptance = bridge.anneal(bridge.from_prior(), schedule, steps)
    relative = (log_w - _log_mean(log_w)).exp()
    return Annealed(_log_mean(log_w), relative.std(0) / len(relative) ** 0.5, acceptance)


def bidirectional_log_likelihood(
    prior: Distribution,
    log_likelihood: LogLikelihood,
    x: Tensor,
    z: Tensor,
    annealing: Annealing = Annealing(),
    stepped: Callable[[], None] = lambda: None,
) -> Sandwich:
    """Bounds of log p(x) from both sides, for data simulated from the model (Grosse et al. 2015; Wu et al. 2017).

    The lower bound is that of `annealed_log_likelihood`. For the upper one chains start at the z behind each x, which
    is an exact draw from the posterior, and run back to the prior: their mean weight is an unbiased estimate of
    1 / p(x).

    Args:
        prior, log_likelihood, annealing, stepped: as in `annealed_log_likelihood`.
        x: images drawn from the model, ``[batch, *event_shape]``.
        z: the codes that they were drawn from, ``[batch, *latent_shape]``.

    Example:
        >>> import torch
        >>> from torch.distributions import Independent, Normal
        >>> _ = torch.manual_seed(0)
        >>> prior = Independent(Normal(torch.zeros(1), torch.ones(1)), 1)
        >>> z = prior.sample((20,))
        >>> x = z + 0.1 * torch.randn(20, 1)
        >>> sandwich = bidirectional_log_likelihood(prior, lambda x, z: Normal(z, 0.1).log_prob(x).sum(1), x, z)
        >>> 0 < sandwich.gap.value < 0.1
        True
    """
    bridge = _Bridge(prior, log_likelihood, x, annealing, stepped)
    schedule, steps = bridge.adapted()
    forward, _ = bridge.anneal(bridge.from_prior(), schedule, steps)
    backward, _ = bridge.anneal(bridge.at(z.expand(annealing.chains, *z.shape)), schedule.flip(0), steps)
    return Sandwich(_log_mean(forward), -_log_mean(backward))


class _State(NamedTuple):
    """Codes with log p(z), log p(x|z) and the gradients of both: ``[chains, n]`` and ``[chains, n, *latent_shape]``."""

    z: Tensor
    log_prior: Tensor
    log_likelihood: Tensor
    grad_prior: Tensor
    grad_likelihood: Tensor

    def spread(self) -> Tensor:
        """Standard deviation of log p(x|z) over the chains of an image, mean over images."""
        return self.log_likelihood.double().std(0).mean()

    def log_density(self, b: float) -> Tensor:
        return self.log_prior + b * self.log_likelihood

    def gradient(self, b: float) -> Tensor:
        return self.grad_prior + b * self.grad_likelihood


class _Path(NamedTuple):
    """Inverse temperatures ``[T + 1]``, and step sizes at all but the first, ``[T, n]``."""

    schedule: Tensor
    steps: Tensor


class _Bridge:
    """The densities between p(z) and p(z|x), for some images, and moves that leave them as they are."""

    def __init__(
        self,
        prior: Distribution,
        log_likelihood: LogLikelihood,
        x: Tensor,
        annealing: Annealing,
        stepped: Callable[[], None],
    ) -> None:
        self.prior = prior
        self.log_likelihood = log_likelihood
        self.x = x
        self.annealing = annealing
        self.stepped = stepped

    def from_prior(self) -> _State:
        """Chains that start at draws of p(z)."""
        chains, images = self.annealing.chains, len(self.x)
        z = self.prior.sample((chains * images,))
        return self.at(z.reshape(chains, images, *self.prior.event_shape))

    def at(self, z: Tensor) -> _State:
        """Chains at given codes ``[chains, n, *latent_shape]``, in pieces of bounded size."""
        size = at_once(self.x)
        rows = torch.arange(len(self.x), device=z.device).repeat(len(z))
        pieces = zip(z.flatten(0, 1).split(size), rows.split(size), strict=True)
        parts = [self._at(codes, self.x[images]) for codes, images in pieces]
        return _State(*(torch.cat(values).unflatten(0, z.shape[:2]) for values in zip(*parts, strict=True)))

    @torch.enable_grad()
    def _at(self, z: Tensor, x: Tensor) -> _State:
        z = z.detach().requires_grad_()
        log_prior, log_likelihood = self.prior.log_prob(z), self.log_likelihood(x, z)
        (grad_prior,) = torch.autograd.grad(log_prior.sum(), z)
        (grad_likelihood,) = torch.autograd.grad(log_likelihood.sum(), z)
        return _State(z.detach(), log_prior.detach(), log_likelihood.detach(), grad_prior, grad_likelihood)

    def adapted(self) -> _Path:
        """Inverse temperatures and step sizes, from a pass that serves for nothing else.

        Temperatures are laid so that between neighbours the log weight has the same standard deviation.
        """
        schedule = self.annealing.schedule
        state, size = self.from_prior(), self.x.new_full((len(self.x),), math.log(START))
        sizes, spreads = [], [state.spread()]
        for b in schedule[1:].tolist():
            state, accepted = self._move(state, b, size.exp())
            size = size + SPEED * (accepted.mean(0) - ACCEPTANCE)
            sizes.append(size)
            spreads.append(state.spread())
            self.stepped()
        even = _spaced(schedule, torch.stack(spreads).cpu())
        nearest = torch.searchsorted(schedule[1:].contiguous(), even[1:]).clamp(max=len(sizes) - 1)
        return _Path(even, torch.stack(sizes).exp()[nearest.to(self.x.device)])

    def anneal(self, state: _State, schedule: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
        """Log weights ``[chains, n]`` of chains that move along inverse temperatures, and their acceptance ``[n]``.

        Args:
            schedule: from 0 to 1, or from 1 to 0; the last one is arrived at and not moved under.
            steps: step sizes in the order from 0 to 1.
        """
        temperatures = schedule.tolist()
        forward = temperatures[0] < temperatures[-1]
        log_w = torch.zeros_like(state.log_prior, dtype=torch.float64)
        acceptance = []
        for number, (here, there) in enumerate(pairwise(temperatures), start=1):
            log_w += (there - here) * state.log_likelihood.double()
            if number < len(temperatures) - 1:
                size = steps[number - 1] if forward else steps[-number - 1]
                state, accepted = self._move(state, there, size)
                acceptance.append(accepted.mean(0))
            self.stepped()
        return log_w, torch.stack(acceptance).mean(0) if acceptance else log_w.new_ones(len(self.x))

    def _move(self, state: _State, b: float, size: Tensor) -> tuple[_State, Tensor]:
        """One move of Hamiltonian Monte Carlo under p(z) p(x|z)^b: the new state, and the probabilities of acceptance.

        A proposal that is not finite is refused.
        """
        latent = [1] * (state.z.dim() - 2)
        size = (size * (1 + JITTER * (2 * torch.rand_like(state.log_prior) - 1))).unflatten(-1, (-1, *latent))
        start = momentum = torch.randn_like(state.z)
        proposal = state
        for _ in range(self.annealing.leapfrog):
            momentum = momentum + size / 2 * proposal.gradient(b)
            proposal = self.at(proposal.z + size * momentum)
            momentum = momentum + size / 2 * proposal.gradient(b)
        kinetic = ((start.square() - momentum.square()) / 2).reshape(*state.log_prior.shape, -1).sum(-1)
        log_ratio = proposal.log_density(b) - state.log_density(b) + kinetic
        accepted = log_ratio.exp().clamp(max=1).nan_to_num(0.0)
        moved = torch.rand_like(accepted) < accepted
        chosen = [
            torch.where(moved.unflatten(-1, (-1, *latent)) if new.dim() > 2 else moved, new, old)
            for new, old in zip(proposal, state, strict=True)
        ]
        return _State(*chosen), accepted


def _spaced(schedule: Tensor, spread: Tensor) -> Tensor:
    """Inverse temperatures between which ∫ spread db is the same, but for a share that is spaced as they were.

    A spread that is not finite counts for nothing.
    """
    even = torch.linspace(0, 1, len(schedule), dtype=schedule.dtype)
    length = torch.cat([even[:1], torch.cumulative_trapezoid(spread.nan_to_num(0, 0), schedule)])
    length = (1 - AS_BEFORE) * length / length[-1].clamp(min=1e-300) + AS_BEFORE * even
    return torch.from_numpy(np.interp(even, length / length[-1], schedule))


def _log_mean(log_w: Tensor) -> Tensor:
    """Log of the mean weight over chains."""
    return log_w.logsumexp(0) - math.log(len(log_w))
