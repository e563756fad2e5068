"""Annealed importance sampling on models whose log p(x) is known in closed form or by quadrature."""

from functools import partial
from itertools import count

import pytest
import torch
from helpers import every_prior
from scipy import stats
from seeds import any_seed
from torch import Tensor
from torch.distributions import Distribution, Independent, MultivariateNormal, Normal

from pyrovae import Run, make_pair, parts
from pyrovae.data import linear
from pyrovae.errors import UnsupportedError
from pyrovae.estimators import (
    Annealing,
    LinearGaussian,
    annealed_log_likelihood,
    bidirectional_log_likelihood,
    log_likelihood,
)
from pyrovae.estimators.annealing import _Bridge

#: Failure rate 2e-5, two-sided.
TWO_SIDED = 4.27
BEST = LinearGaussian.best(linear.covariance(), latent_size=4, beta=0.01)
W = BEST.weight.float()


def standard(size: int) -> Distribution:
    return Independent(Normal(torch.zeros(size), torch.ones(size)), 1)


def log_p(x: Tensor, z: Tensor) -> Tensor:
    return Normal(z @ W.T, 1.0).log_prob(x).sum(-1)


def truth(x: Tensor) -> Tensor:
    covariance = BEST.weight @ BEST.weight.T + torch.eye(6, dtype=torch.float64)
    return MultivariateNormal(torch.zeros(6, dtype=torch.float64), covariance).log_prob(x.double())


def log_weights(x: Tensor, particles: int) -> Tensor:
    """Log weights under the optimal guide at β = 0.01, which is much narrower than the posterior."""
    q = BEST.posterior(x)
    z = q.sample((particles,))
    return log_p(x, z.float()) + standard(4).log_prob(z.float()) - q.log_prob(z)


def mean_and_error(values: Tensor) -> tuple[float, float]:
    """The mean over images, and `TWO_SIDED` of its standard errors."""
    return float(values.mean()), TWO_SIDED * float(values.std()) / len(values) ** 0.5


@any_seed
def test_annealing_is_tight_where_importance_weighting_is_loose(seed: int) -> None:
    torch.manual_seed(seed)
    x = torch.randn(256, 6) @ torch.linalg.cholesky(linear.covariance()).T.float()
    weighted = log_likelihood(log_weights, x, 100)
    slack, error = mean_and_error(truth(x) - weighted.bound)
    assert slack - error > 4
    assert weighted.high_pareto_k > 0.8
    annealed = annealed_log_likelihood(standard(4), log_p, x, Annealing(temperatures=200, chains=8))
    slack, error = mean_and_error(truth(x) - annealed.bound)
    assert -error < slack < 0.05 + error
    assert 0.7 < annealed.acceptance.mean() < 0.9


@any_seed
@pytest.mark.parametrize("temperatures", [5, 100])
def test_bidirectional_bounds_bracket_log_likelihood(temperatures: int, seed: int) -> None:
    torch.manual_seed(seed)
    z = standard(4).sample((400,))
    x = z @ W.T + torch.randn(400, 6)
    sandwich = bidirectional_log_likelihood(standard(4), log_p, x, z, Annealing(temperatures))
    below, above = truth(x) - sandwich.lower, sandwich.upper - truth(x)
    assert sandwich.gap.value == pytest.approx((below + above).mean().item())
    for slack, error in map(mean_and_error, (below, above)):
        if temperatures == 5:
            assert slack > error
        else:
            assert -error < slack < 0.1 + error


@any_seed
def test_forward_and_backward_weights_are_unbiased(seed: int) -> None:
    torch.manual_seed(seed)
    z = standard(1).sample((4000,))
    x = z + 0.5 * torch.randn(4000, 1)
    bridge = _Bridge(standard(1), lambda x, z: Normal(z, 0.5).log_prob(x).sum(1), x, Annealing(8, 4, 2), lambda: None)
    schedule, steps = bridge.adapt()
    forward, *_ = bridge.anneal(bridge.from_prior(), schedule, steps)
    backward, *_ = bridge.anneal(bridge.at(z.expand(4, -1, -1)), schedule.flip(0), steps)
    log_p_x = Normal(0.0, 1.25**0.5).log_prob(x[:, 0])
    for ratio in ((forward - log_p_x).exp().mean(0), (backward + log_p_x).exp().mean(0)):
        assert abs(ratio.mean() - 1) < TWO_SIDED * ratio.std() / 4000**0.5
        assert ratio.std() > 0.05


@any_seed
@every_prior
def test_log_likelihood_under_every_prior_matches_quadrature(name: str, seed: int) -> None:
    event = torch.Size([1, 1, 4])
    small = {"components": 5, "hidden": 8, "solver_steps": 8}
    few = {key: small[key] for key in small.keys() & parts.settings_of("prior", name)}
    run = Run(prior=name, network="linear", likelihood="gaussian", noise_scale=0.5, latent_size=1, seed=seed, **few)
    images = torch.rand(20, *event, generator=torch.Generator().manual_seed(seed))
    pair = make_pair(run, event, images=images)
    with torch.no_grad():
        for parameter in pair.model.prior.parameters():
            parameter.mul_(0.3)  # a flow starts multimodal, and chains cannot move between modes
    pair.refresh(images)
    x = images[:10]
    prior = pair.latent(x)[1]
    grid = torch.linspace(-60, 60, 20_001).unsqueeze(1)
    with torch.no_grad():
        log_joint = torch.stack([pair.likelihood(each.expand(len(grid), *event), grid).log_prob(each) for each in x])
        log_joint = log_joint + prior.log_prob(grid)
        expected = log_joint.double().logsumexp(1) + torch.log(torch.tensor(120 / 20_000))
    torch.manual_seed(seed)
    weighted = log_likelihood(pair.log_weights, x, 20_000)
    annealed = annealed_log_likelihood(
        prior, lambda x, z: pair.likelihood(x, z).log_prob(x), x, Annealing(temperatures=60, chains=100)
    )
    limit = float(stats.t.isf(1e-5 / len(x), 99))  # all images, and an error from 100 chains
    known = weighted.pareto_k < 0.7  # otherwise importance weights have no usable error
    assert known.sum() >= 3
    for difference, error in (
        ((weighted.bound - expected)[known], weighted.ess.rsqrt()[known]),
        (annealed.bound - expected, annealed.se),
    ):
        # The log of a mean is too small by half its relative variance.
        assert (difference.abs() < limit * error + error.square()).all()
        mean_error = error.square().sum().sqrt() / len(error)
        assert abs(difference.mean()) < TWO_SIDED * mean_error + error.square().mean()
        assert mean_error < 0.05


def test_proposals_with_nan_density_are_rejected() -> None:
    torch.manual_seed(0)
    x = torch.zeros(50, 1)

    def log_p(x: Tensor, z: Tensor) -> Tensor:  # like a decoder that overflows
        return torch.where(z[:, 0] > 1, torch.nan, Normal(z, 0.5).log_prob(x).sum(1))

    bridge = _Bridge(standard(1), log_p, x, Annealing(20, 4), lambda: None)
    state = bridge.at(torch.zeros(4, 50, 1))
    for _ in range(20):
        state, accepted = bridge._move(state, 1.0, torch.full((50,), 0.5))
    assert accepted.isfinite().all()
    assert state.z.max() <= 1
    assert state.z.std() > 0.1


def test_bound_is_independent_of_chunk_size(monkeypatch: pytest.MonkeyPatch) -> None:
    x, bounds = torch.randn(7, 6, generator=torch.Generator().manual_seed(0)), []
    for numbers in (2**20, 64 * 5, 1):
        monkeypatch.setattr("pyrovae.estimators.likelihood.CHUNK_ELEMENTS", {"cpu": numbers})
        torch.manual_seed(0)
        steps = count()
        annealed = annealed_log_likelihood(standard(4), log_p, x, Annealing(10, 3), partial(next, steps))
        bounds.append(annealed.bound)
        assert next(steps) == 20
    torch.testing.assert_close(bounds[0], bounds[1], rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(bounds[0], bounds[2], rtol=1e-4, atol=1e-3)


def test_settings_below_their_minimum_raise() -> None:
    for work in ((0, 8), (10, 1), (10, 8, 0)):
        with pytest.raises(ValueError, match="expected at least"):
            Annealing(*work)


def test_generate_returns_images_with_their_codes() -> None:
    pair = make_pair(
        Run(network="linear", likelihood="gaussian", noise_scale=0.01, latent_size=2), torch.Size([1, 2, 3])
    )
    torch.manual_seed(0)
    with torch.no_grad():
        trace = pair.simulate(torch.zeros(50, 1, 2, 3))
        x, z = trace.nodes["x"]["value"], trace.nodes["z"]["value"]
        assert (x.shape, z.shape) == ((50, 1, 2, 3), (50, 2))
        residual = x - pair.likelihood(x, z).mean
    assert residual.abs().max() < 0.06
    assert residual.std() > 0.008
    assert 0.5 < z.std() < 2


def test_likelihood_with_two_latent_sites_raises() -> None:
    pair = make_pair(Run(model="hierarchical", guide="hierarchical"), torch.Size([1, 2, 3]))
    with pytest.raises(UnsupportedError, match="expected one latent and one observed site"):
        pair.likelihood(torch.rand(5, 1, 2, 3), torch.zeros(5, 10))
