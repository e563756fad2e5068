"""Bounds of log p(x) by annealed importance sampling (AIS), and from both sides by bidirectional Monte Carlo (BDMC).

The path from the prior to the posterior is p_t(z) ∝ p(z) p(x|z)^b_t with inverse temperatures b_0 = 0 < … < b_T = 1.
At every b_t, Hamiltonian Monte Carlo (HMC) moves all chains of all images at once. A first pass adapts the step size
of each image and temperature, and the spacing of the temperatures. A second pass with independent draws keeps both
fixed, because the estimates are bounds only under fixed transitions.
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

from pyrovae.errors import InputError
from pyrovae.estimators.estimate import Estimate, mean_over_images
from pyrovae.estimators.likelihood import images_per_chunk

#: (images ``[n, *event_shape]``, codes ``[n, *latent_shape]``) → log p(x|z), ``[n]``.
LogLikelihood = Callable[[Tensor, Tensor], Tensor]
#: Acceptance probability that step sizes are adapted to.
TARGET_ACCEPTANCE = 0.8
#: Change of a log step size per unit of acceptance above or below the target.
AIS_STEP_GAIN = 0.2
INITIAL_STEP_SIZE = 0.5
#: Relative range of the uniform noise on each step size.
STEP_SIZE_JITTER = 0.5
#: Share of the temperatures that keeps the spacing of the first pass.
SCHEDULE_SHARE = 0.2


@dataclass(frozen=True)
class Annealing:
    """Settings of annealed importance sampling.

    Attributes:
        temperatures: number of steps T from the prior to the posterior.
        chains: independent chains per image, at least 2.
        leapfrog: leapfrog steps per HMC move.

    Raises:
        InputError: a setting is out of range.
    """

    temperatures: int = 200
    chains: int = 8
    leapfrog: int = 5

    def __post_init__(self) -> None:
        for name, minimum in (("temperatures", 1), ("chains", 2), ("leapfrog", 1)):
            if getattr(self, name) < minimum:
                raise InputError(f"{name}: expected at least {minimum}, got {getattr(self, name)}")

    @property
    def schedule(self) -> Tensor:
        """Inverse temperatures of the first pass, ``[T + 1]``: b = (t/T)⁴, dense where log p(x|z) varies most."""
        return torch.linspace(0, 1, self.temperatures + 1, dtype=torch.float64) ** 4


class DecoderCurve(NamedTuple):
    """Rate and distortion of a decoder alone, along an annealing path, in nats per image.

    At the inverse temperature b, the codes follow q_b(z|x) ∝ p(z) p(x|z)^b, which minimises R + b D over all q(z|x).
    With Z_b(x) = E_p(z)[p(x|z)^b], its rate is KL(q_b ‖ p) = −b D_b − log Z_b.

    Attributes:
        inverse_temperature: b, ``[T + 1]``.
        rate, distortion: of each image, ``[T + 1, n]``.
    """

    inverse_temperature: Tensor
    rate: Tensor
    distortion: Tensor


@dataclass(frozen=True, eq=False)
class Annealed:
    """Lower bounds of log p(x) by annealing, ``[n]`` each.

    Attributes:
        bound: log of the mean weight over chains, in nats.
        se: standard error over chains by the delta method; too small where a few chains dominate the weights.
        acceptance: mean acceptance probability of the HMC moves.
        curve: rate and distortion at each temperature. Each pair is one that codes of this decoder reach, since the
            rate is an upper bound of that of the chains: of KL(q(z_t|x) ‖ p(z)), where q(z_t|x) is what they follow.
    """

    bound: Tensor
    se: Tensor
    acceptance: Tensor
    curve: DecoderCurve

    @property
    def estimate(self) -> Estimate:
        """Mean over images, a lower bound of E_x log p(x), with the acceptance as a note."""
        return mean_over_images(self.bound, "lower bound", f"acceptance {self.acceptance.mean():.2f}")


@dataclass(frozen=True, eq=False)
class Sandwich:
    """Lower and upper bounds of log p(x), ``[n]`` each, in nats.

    Attributes:
        lower, upper: the bounds.
        forward: the curve of the chains from the prior, of which the rates are upper bounds.
        backward: that of the chains from the posterior. At b = 1 its rates are lower bounds, and at lower b too, up to
            how far chains that come from b = 1 are from q_b.
    """

    lower: Tensor
    upper: Tensor
    forward: DecoderCurve
    backward: DecoderCurve

    @property
    def gap(self) -> Estimate:
        """Mean of upper − lower over images, an upper bound of the expected error of either bound."""
        return mean_over_images(self.upper - self.lower, "upper bound")


def annealed_log_likelihood(
    prior: Distribution,
    log_likelihood: LogLikelihood,
    x: Tensor,
    annealing: Annealing = Annealing(),
    stepped: Callable[[], None] = lambda: None,
) -> Annealed:
    """Bound of log p(x) by annealed importance sampling, a lower bound in expectation.

    log (1/M) Σ_m w_m over M chains with w = ∏_t p(x|z_{t−1})^(b_t − b_{t−1}), where z_0 ~ p(z) and z_t follows from
    z_{t−1} by an HMC move that leaves p(z) p(x|z)^b_t invariant. The bound converges to log p(x) as T grows and does
    not depend on the guide, so it checks importance weighting where q(z|x) is too narrow.

    Args:
        prior: p(z), one distribution, differentiable.
        log_likelihood: images and codes → log p(x|z), differentiable in z.
        x: images, ``[batch, *event_shape]``.
        annealing: temperatures, chains and leapfrog steps.
        stepped: called after each temperature of both passes.

    Returns:
        The bound in nats per image, in float64, and the acceptance in the second pass. Draws come from torch's global
        generator.

    Cost: 2 · T · leapfrog gradients of log p(x|z) per chain and image, in chunks of bounded size.

    Source: Neal 2001, Annealed importance sampling; for decoders Wu et al. 2017, On the quantitative analysis of
    decoder-based generative models, section 3.

    Example:
        >>> import torch
        >>> from torch.distributions import Independent, Normal
        >>> prior = Independent(Normal(torch.zeros(1), torch.ones(1)), 1)
        >>> x = torch.tensor([[0.0], [2.0]])  # x ~ N(z, 0.1²)
        >>> _ = torch.manual_seed(0)
        >>> log_p = lambda x, z: Normal(z, 0.1).log_prob(x).sum(1)
        >>> annealed = annealed_log_likelihood(prior, log_p, x, Annealing(chains=100))
        >>> truth = Normal(0.0, 1.01**0.5).log_prob(x[:, 0])
        >>> bool((annealed.bound - truth).abs().max() < 0.1)
        True
    """
    bridge = _Bridge(prior, log_likelihood, x, annealing, stepped)
    schedule, steps = bridge.adapt()
    log_w, acceptance, curve = bridge.anneal(bridge.from_prior(), schedule, steps)
    relative = (log_w - _log_mean(log_w)).exp()
    return Annealed(_log_mean(log_w), relative.std(0) / len(relative) ** 0.5, acceptance, curve)


def bidirectional_log_likelihood(
    prior: Distribution,
    log_likelihood: LogLikelihood,
    x: Tensor,
    z: Tensor,
    annealing: Annealing = Annealing(),
    stepped: Callable[[], None] = lambda: None,
) -> Sandwich:
    """Lower and upper bounds of log p(x), for data simulated from the model.

    The lower bound is that of `annealed_log_likelihood`. For the upper bound, chains start at the z that generated x,
    which is an exact draw from the posterior, and run back to the prior; their mean weight is an unbiased estimate of
    1 / p(x).

    Args:
        prior, log_likelihood, annealing, stepped: as in `annealed_log_likelihood`.
        x: images drawn from the model, ``[batch, *event_shape]``.
        z: the codes that generated them, ``[batch, *latent_shape]``.

    Source: Grosse et al. 2015, Sandwiching the marginal likelihood using bidirectional Monte Carlo; Wu et al. 2017.

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
    schedule, steps = bridge.adapt()
    forward = bridge.anneal(bridge.from_prior(), schedule, steps)
    backward = bridge.anneal(bridge.at(z.expand(annealing.chains, *z.shape)), schedule.flip(0), steps)
    return Sandwich(_log_mean(forward.log_w), -_log_mean(backward.log_w), forward.curve, backward.curve)


class _State(NamedTuple):
    """Codes ``[chains, n, *latent_shape]`` with log p(z), log p(x|z) and the gradients of both."""

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
    """Inverse temperatures ``[T + 1]``, and step sizes at all but the first ``[T, n]``."""

    schedule: Tensor
    steps: Tensor


class _Pass(NamedTuple):
    """Log weights ``[chains, n]`` of chains along a schedule, their mean acceptance ``[n]``, and their curve."""

    log_w: Tensor
    acceptance: Tensor
    curve: DecoderCurve


@dataclass(frozen=True, eq=False)
class _Bridge:
    """The annealing path from p(z) to p(z|x) for a set of images, with its HMC moves."""

    prior: Distribution
    log_likelihood: LogLikelihood
    x: Tensor
    annealing: Annealing
    stepped: Callable[[], None]

    def from_prior(self) -> _State:
        """Chains at draws from p(z)."""
        chains, images = self.annealing.chains, len(self.x)
        z = self.prior.sample((chains * images,))
        return self.at(z.reshape(chains, images, *self.prior.event_shape))

    def at(self, z: Tensor) -> _State:
        """Chains at the codes ``[chains, n, *latent_shape]``, evaluated in chunks."""
        size = images_per_chunk(self.x)
        rows = torch.arange(len(self.x), device=z.device).repeat(len(z))
        chunks = zip(z.flatten(0, 1).split(size), rows.split(size), strict=True)
        parts = [self._at(codes, self.x[images]) for codes, images in chunks]
        return _State(*(torch.cat(values).unflatten(0, z.shape[:2]) for values in zip(*parts, strict=True)))

    @torch.enable_grad()
    def _at(self, z: Tensor, x: Tensor) -> _State:
        z = z.detach().requires_grad_()
        log_prior, log_likelihood = self.prior.log_prob(z), self.log_likelihood(x, z)
        (grad_prior,) = torch.autograd.grad(log_prior.sum(), z)
        (grad_likelihood,) = torch.autograd.grad(log_likelihood.sum(), z)
        return _State(z.detach(), log_prior.detach(), log_likelihood.detach(), grad_prior, grad_likelihood)

    def adapt(self) -> _Path:
        """Inverse temperatures and step sizes, from a separate pass.

        The temperatures are spaced so that each step adds the same standard deviation to the log weight.
        """
        schedule = self.annealing.schedule
        state, size = self.from_prior(), self.x.new_full((len(self.x),), math.log(INITIAL_STEP_SIZE))
        sizes, spreads = [], [state.spread()]
        for b in schedule[1:].tolist():
            state, accepted = self._move(state, b, size.exp())
            size = size + AIS_STEP_GAIN * (accepted.mean(0) - TARGET_ACCEPTANCE)
            sizes.append(size)
            spreads.append(state.spread())
            self.stepped()
        adapted = _spaced(schedule, torch.stack(spreads).cpu())
        nearest = torch.searchsorted(schedule[1:].contiguous(), adapted[1:]).clamp(max=len(sizes) - 1)
        return _Path(adapted, torch.stack(sizes).exp()[nearest.to(self.x.device)])

    def anneal(self, state: _State, schedule: Tensor, steps: Tensor) -> _Pass:
        """One pass of chains along a schedule.

        Args:
            schedule: inverse temperatures from 0 to 1 or from 1 to 0; no move is made at the last one.
            steps: step sizes, ordered from 0 to 1.
        """
        temperatures = schedule.tolist()
        forward = temperatures[0] < temperatures[-1]
        log_w = torch.zeros_like(state.log_prior, dtype=torch.float64)
        log_likelihoods, log_weights = [state.log_likelihood.double().mean(0)], [log_w.mean(0)]
        acceptance = []
        for number, (here, there) in enumerate(pairwise(temperatures), start=1):
            log_w += (there - here) * state.log_likelihood.double()
            if number < len(temperatures) - 1:
                size = steps[number - 1] if forward else steps[-number - 1]
                state, accepted = self._move(state, there, size)
                acceptance.append(accepted.mean(0))
            log_likelihoods.append(state.log_likelihood.double().mean(0))
            log_weights.append(log_w.mean(0))
            self.stepped()
        accepted = torch.stack(acceptance).mean(0) if acceptance else log_w.new_ones(len(self.x))
        # log Z_b is the mean log weight from the prior; on the way back, that of what is left until there.
        distortion, log_z = -torch.stack(log_likelihoods), torch.stack(log_weights)
        if not forward:
            distortion, log_z = distortion.flip(0), (log_z - log_z[-1]).flip(0)
        b = schedule.sort().values.to(distortion)
        return _Pass(log_w, accepted, DecoderCurve(b, -b[:, None] * distortion - log_z, distortion))

    def _move(self, state: _State, b: float, size: Tensor) -> tuple[_State, Tensor]:
        """One HMC move under p(z) p(x|z)^b: the new state and the acceptance probabilities, 0 where not finite."""
        latent = [1] * (state.z.dim() - 2)
        size = (size * (1 + STEP_SIZE_JITTER * (2 * torch.rand_like(state.log_prior) - 1))).unflatten(-1, (-1, *latent))
        start = torch.randn_like(state.z)
        proposal, momentum = self._leapfrog(state, start, b, size)
        kinetic = ((start.square() - momentum.square()) / 2).reshape(*state.log_prior.shape, -1).sum(-1)
        log_ratio = proposal.log_density(b) - state.log_density(b) + kinetic
        accepted = log_ratio.exp().clamp(max=1).nan_to_num(0.0)
        moved = torch.rand_like(accepted) < accepted
        chosen = [
            torch.where(moved.unflatten(-1, (-1, *latent)) if new.dim() > 2 else moved, new, old)
            for new, old in zip(proposal, state, strict=True)
        ]
        return _State(*chosen), accepted

    def _leapfrog(self, state: _State, momentum: Tensor, b: float, size: Tensor) -> tuple[_State, Tensor]:
        for _ in range(self.annealing.leapfrog):
            momentum = momentum + size / 2 * state.gradient(b)
            state = self.at(state.z + size * momentum)
            momentum = momentum + size / 2 * state.gradient(b)
        return state, momentum


def _spaced(schedule: Tensor, spread: Tensor) -> Tensor:
    """Inverse temperatures with equal ∫ spread db between neighbours, except for `SCHEDULE_SHARE` of them.

    A non-finite spread counts as zero.
    """
    even = torch.linspace(0, 1, len(schedule), dtype=schedule.dtype)
    length = torch.cat([even[:1], torch.cumulative_trapezoid(spread.nan_to_num(0, 0), schedule)])
    length = (1 - SCHEDULE_SHARE) * length / length[-1].clamp(min=1e-300) + SCHEDULE_SHARE * even
    return torch.from_numpy(np.interp(even, length / length[-1], schedule))


def _log_mean(log_w: Tensor) -> Tensor:
    """Log of the mean weight over chains."""
    return log_w.logsumexp(0) - math.log(len(log_w))
