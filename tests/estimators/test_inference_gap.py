"""Approximation and amortisation gap on linear-Gaussian models, whose posterior is known."""

import math

import pytest
import torch
from seeds import any_seed
from torch import Tensor
from torch.distributions import Independent, Laplace, MultivariateNormal, Normal, kl_divergence

from pyrovae.errors import UnsupportedError
from pyrovae.estimators import Annealing, LinearGaussian, Optimisation, annealed_log_likelihood, inference_gap

#: Failure rate 2e-5, two-sided.
TWO_SIDED = 4.27
SCALE = 0.5
W = torch.tensor([[1.0, 0.6], [0.2, -0.8], [0.5, 0.9]])
WORK = {"annealing": Annealing(temperatures=300, chains=200), "optimisation": Optimisation(steps=500, samples=64)}


@pytest.fixture
def seed() -> int:
    """Of the tests that have no other."""
    return 0


@pytest.fixture
def x(seed: int) -> Tensor:
    return torch.randn(4, 3, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def prior() -> Independent:
    return Independent(Normal(torch.zeros(2), torch.ones(2)), 1)


@pytest.fixture
def posterior(x: Tensor) -> MultivariateNormal:
    exact = LinearGaussian(torch.eye(3), W, SCALE).posterior(x)
    return MultivariateNormal(exact.loc.float(), exact.covariance_matrix.float())


def log_p(x: Tensor, z: Tensor) -> Tensor:
    return Normal(z @ W.T, SCALE).log_prob(x).sum(1)


def evidence(x: Tensor) -> Tensor:
    return MultivariateNormal(torch.zeros(3), W @ W.T + SCALE**2 * torch.eye(3)).log_prob(x)


@any_seed
def test_amortisation_gap_is_kl_when_family_contains_posterior(
    seed: int, x: Tensor, prior: Independent, posterior: MultivariateNormal
) -> None:
    q = MultivariateNormal(posterior.loc + 0.2, scale_tril=1.3 * posterior.scale_tril)
    torch.manual_seed(seed)
    gap = inference_gap(q, prior, log_p, x, **WORK)
    truth = kl_divergence(q, posterior).double()
    assert ((gap.amortisation - truth).abs() < TWO_SIDED * gap.amortisation_se + 1e-3).all()
    assert (gap.approximation.abs() < TWO_SIDED * gap.approximation_se + 1e-3).all()
    torch.testing.assert_close(gap.elbo + gap.amortisation + gap.approximation, gap.log_likelihood)
    assert gap.approximation_se.max() < 0.05 < truth.min()


@any_seed
def test_approximation_gap_of_mean_field_matches_closed_form(
    seed: int, x: Tensor, prior: Independent, posterior: MultivariateNormal
) -> None:
    """The optimal diagonal q has the diagonal of the precision Λ: KL(q* ‖ p) = (Σ log Λ_dd − log det Λ) / 2."""
    precision = posterior.precision_matrix[0]
    truth = (precision.diagonal().log().sum() - precision.logdet()) / 2
    q = Independent(Normal(posterior.loc, precision.diagonal().rsqrt()), 1)
    torch.manual_seed(seed)
    gap = inference_gap(q, prior, log_p, x, **WORK)
    assert ((gap.approximation - truth).abs() < TWO_SIDED * gap.approximation_se + 1e-3).all()
    assert (gap.amortisation.abs() < TWO_SIDED * gap.amortisation_se + 1e-3).all()
    assert gap.approximation_se.max() < truth / 4


@pytest.mark.long
@any_seed
def test_standard_error_of_annealing_is_calibrated(seed: int, x: Tensor, prior: Independent) -> None:
    torch.manual_seed(seed)
    few = [annealed_log_likelihood(prior, log_p, x[:1], Annealing(20, chains=100)) for _ in range(60)]
    bounds, errors = (torch.stack([getattr(each, name) for each in few]) for name in ("bound", "se"))
    # A standard deviation from 60 repetitions has a relative error of 1 / √(2 · 59).
    ratio = float(bounds.std() / errors.mean())
    assert abs(math.log(ratio)) < TWO_SIDED / math.sqrt(2 * 59)
    assert ((bounds.mean() - evidence(x[:1])).abs() < TWO_SIDED * bounds.std() / 60**0.5).all()


def test_inference_gap_leaves_model_gradients_untouched(x: Tensor, prior: Independent) -> None:
    weight = W.clone().requires_grad_()
    loc = torch.zeros(4, 2, requires_grad=True)
    q = Independent(Normal(loc, torch.ones(4, 2)), 1)
    small = {"annealing": Annealing(5, 2), "optimisation": Optimisation(5, 2, 5)}
    steps = []
    gap = inference_gap(
        q, prior, lambda x, z: Normal(z @ weight.T, 1.0).log_prob(x).sum(1), x, **small, stepped=lambda: steps.append(1)
    )
    assert weight.grad is None
    assert loc.grad is None
    assert not gap.amortisation.requires_grad
    assert len(steps) == 5 + 2 * 5


def test_unsupported_distribution_raises(x: Tensor, prior: Independent) -> None:
    with pytest.raises(UnsupportedError, match="got Laplace"):
        inference_gap(Independent(Laplace(torch.zeros(4, 2), 1.0), 1), prior, log_p, x)
