"""Estimators at σ from 1e-6 to 1e3, far from the origin, on near copies, on two images and on very uneven weights."""

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, MultivariateNormal, Normal, kl_divergence

from pyrovae.estimators import (
    Annealing,
    LinearGaussian,
    Optimisation,
    active_units,
    bidirectional_log_likelihood,
    inference_gap,
    log_likelihood,
    marginal_rate,
    mean_over_images,
    memorising_decoder,
    mutual_information,
    rate,
    rate_per_dimension,
)
from pyrovae.estimators.marginal import log_marginal

#: Failure rate 2e-5, two-sided.
TWO_SIDED = 4.27
SCALES = [1e-6, 1e-3, 1.0, 1e3]
W = torch.tensor([[1.0, 0.6], [0.2, -0.8], [0.5, 0.9]])
PRIOR = Independent(Normal(torch.zeros(2), torch.ones(2)), 1)

at_any_scale = pytest.mark.parametrize("sigma", SCALES)
far_from_origin = pytest.mark.parametrize("shift", [0.0, 1e4])


def two(sigma: float, shift: float, apart: float) -> Distribution:
    """Two encodings whose means are ``apart`` standard deviations apart."""
    loc = torch.full((2, 1), shift, dtype=torch.float64)
    loc[1] += apart * sigma
    return Independent(Normal(loc, sigma), 1)


@at_any_scale
@far_from_origin
@pytest.mark.parametrize("apart", [0.1, 5.0, 1e5])
def test_memorising_decoder_weighs_two_near_copies(sigma: float, shift: float, apart: float) -> None:
    q, images = two(sigma, shift, apart), torch.tensor([[0.0], [1.0]])
    found = memorising_decoder(q.mean[:1], q, images)
    log_ratio = -(((q.mean[1] - q.mean[0]) / sigma) ** 2) / 2
    torch.testing.assert_close(found.image[0], log_ratio.sigmoid(), rtol=1e-9, atol=0)
    w = torch.stack([log_ratio.sigmoid(), (-log_ratio).sigmoid()])
    torch.testing.assert_close(found.perplexity, torch.special.entr(w).sum(0).exp(), rtol=1e-9, atol=0)
    other = memorising_decoder(q.mean[:1], q, images, own=torch.tensor([0]))
    assert (other.image.item(), other.perplexity.item()) == (1, 1)


@pytest.mark.parametrize("collapsed", [0.0, torch.inf, torch.nan])
def test_collapsed_full_rank_encoding_gives_the_density_of_torch(collapsed: float) -> None:
    scale_tril = torch.eye(2, dtype=torch.float64).repeat(3, 1, 1)
    scale_tril[1, 1, 1] = collapsed
    q = MultivariateNormal(torch.zeros(3, 2, dtype=torch.float64), scale_tril=scale_tril, validate_args=False)
    z = torch.tensor([[0.0, 1.0], [2.0, 0.0]], dtype=torch.float64)
    expected = q.log_prob(z.unsqueeze(1)).logsumexp(1) - math.log(3)
    torch.testing.assert_close(log_marginal(z, q), expected, equal_nan=True)


@at_any_scale
@far_from_origin
def test_information_of_two_encodings_is_between_zero_and_log_two(sigma: float, shift: float) -> None:
    generator = torch.Generator().manual_seed(0)
    for apart, expected in ((0.0, 0.0), (1e5, math.log(2))):
        q = two(sigma, shift, apart)
        assert mutual_information(q, samples=5, generator=generator).value == pytest.approx(expected, abs=1e-12)
        assert marginal_rate(q, q, samples=5, generator=generator).value == pytest.approx(expected, abs=1e-12)
    assert 0 < mutual_information(two(sigma, shift, 1.0), samples=500, generator=generator).value < math.log(2)


@at_any_scale
@far_from_origin
def test_rates_per_dimension_sum_to_the_rate_at_any_scale(sigma: float, shift: float) -> None:
    loc = shift + sigma * torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    q = Independent(Normal(loc, torch.tensor([0.5, 1.0, 2.0]) * sigma), 1)
    p = Independent(Normal(torch.zeros(3), torch.tensor([1.1, 2.3, 0.7])), 1)
    assert sum(each.value for each in rate_per_dimension(q, p)) == pytest.approx(rate(q, p).value, rel=1e-12)


@far_from_origin
def test_active_units_of_two_images_depend_on_their_variance(shift: float) -> None:
    loc = shift + torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.125, 0.25]])  # variances 0, 1/128 and 1/32
    assert active_units(Independent(Normal(loc, torch.ones(2, 3)), 1)).value == 1


def test_standard_error_is_independent_of_the_mean() -> None:
    values = torch.tensor([-1.0, 1.0], dtype=torch.float64)
    for shift, size in ((1e4, 1e-6), (-1e5, 1e3)):
        found = mean_over_images(shift + size * values, "exact")
        assert (found.value, found.se) == pytest.approx((shift, size), rel=1e-5)


@pytest.mark.parametrize("apart", [708.0, 1e5])
def test_bound_from_one_dominant_weight_is_flagged(apart: float) -> None:
    log_w = (apart * torch.arange(100.0, dtype=torch.float64) - apart * 1e3).unsqueeze(1).expand(100, 20)
    found = log_likelihood(lambda x, draws: log_w, torch.zeros(20, 1), 100)
    assert found.bound.tolist() == pytest.approx([log_w.max().item() - math.log(100)] * 20)
    assert found.ess.tolist() == pytest.approx([1] * 20)
    assert found.high_pareto_k == 1
    assert found.estimate.notes == ("k̂ above 0.50 for 100% of the images",)


def simulated(sigma: float) -> tuple[LinearGaussian, Tensor, Tensor]:
    """A linear pair, and four images simulated from its model with their codes."""
    of = LinearGaussian(torch.eye(3), W, sigma)
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(4, 2, generator=generator)
    return of, z @ W.T + sigma * torch.randn(4, 3, generator=generator), z


@at_any_scale
def test_annealed_bounds_enclose_log_likelihood_at_any_scale(sigma: float) -> None:
    of, x, z = simulated(sigma)
    _, s, Vh = torch.linalg.svd(of.weight.T, full_matrices=True)
    variance = torch.cat([s.square(), s.new_zeros(1)]) + sigma**2
    truth = Normal(torch.zeros(3, dtype=torch.float64), variance.sqrt()).log_prob(x.double() @ Vh.T).sum(1)
    torch.manual_seed(0)

    def log_p(x: Tensor, z: Tensor) -> Tensor:
        return Normal(z @ W.T, sigma).log_prob(x).sum(1)

    found = bidirectional_log_likelihood(PRIOR, log_p, x.repeat(50, 1), z.repeat(50, 1), Annealing(30, 2, 2))
    # exp(lower − log p(x)) and exp(log p(x) − upper) have mean 1, so that neither is likely to be large.
    for slack in (truth.repeat(50) - found.lower, found.upper - truth.repeat(50)):
        assert slack.isfinite().all()
        assert slack.min() > -math.log(200 / 2e-5)


@pytest.mark.parametrize("sigma", [1e-3, 1.0, 1e3])
def test_amortisation_gap_is_the_kl_at_any_scale(sigma: float) -> None:
    of, x, _ = simulated(sigma)
    posterior = of.posterior(x)
    L = posterior.scale_tril.float()
    q = MultivariateNormal((posterior.loc + posterior.scale_tril.sum(-1) / 2).float(), scale_tril=1.3 * L)
    truth = kl_divergence(MultivariateNormal(q.loc.double(), scale_tril=q.scale_tril.double()), posterior)
    torch.manual_seed(0)

    def log_p(x: Tensor, z: Tensor) -> Tensor:
        return Normal(z @ W.T, sigma).log_prob(x).sum(1)

    optimisation = Optimisation(steps=500, samples=64)
    gap = inference_gap(q, PRIOR, log_p, x, annealing=Annealing(2, 2, 1), optimisation=optimisation)
    assert ((gap.amortisation - truth).abs() < TWO_SIDED * gap.amortisation_se + 1e-3).all()
    assert gap.amortisation_se.max() < truth.min() / 5
