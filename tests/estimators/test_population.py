"""The bracket of I and G of the population, on linear-Gaussian pairs whose I and G are closed forms."""

import math

import pytest
import torch
from seeds import any_seed
from torch import Tensor
from torch.distributions import Distribution, Independent, MultivariateNormal, Normal

from pyrovae.data import linear
from pyrovae.estimators import Estimate, LinearGaussian, PopulationBracket, population_bracket, rate_terms

#: Failure rate 2e-5, one-sided.
ONE_SIDED = 4.11
COVARIANCE = linear.covariance()
PRIOR = Independent(Normal(torch.zeros(4).double(), torch.ones(4).double()), 1)


def codes(pair: LinearGaussian, count: int, seed: int) -> Distribution:
    draws = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 6, generator=draws, dtype=torch.float64) @ torch.linalg.cholesky(COVARIANCE).T
    return pair.posterior(x)


def normal_of(train: Distribution) -> MultivariateNormal:
    """A normal distribution fitted to codes."""
    z = train.sample()
    return MultivariateNormal(z.mean(0), z.T.cov())


def bracket(beta: float, train: int, seed: int, validation: int = 2000) -> tuple[LinearGaussian, PopulationBracket]:
    torch.manual_seed(seed)
    pair = LinearGaussian.best(COVARIANCE, latent_size=4, beta=beta)
    fitted = normal_of(codes(pair, train, 2 * seed))
    q = codes(pair, validation, 2 * seed + 1)
    candidates = {"normal": fitted.log_prob, "wide": Independent(Normal(torch.zeros(4), 9.0), 1).log_prob}
    return pair, population_bracket(q, PRIOR, candidates, torch.Generator().manual_seed(seed))


def at_most(low: Estimate, value: float) -> bool:
    return low.value - ONE_SIDED * low.se <= value + 1e-12  # a closed form of 0 may be rounded to −2e-16


def at_least(high: Estimate, value: float) -> bool:
    return high.value + ONE_SIDED * high.se >= value


@any_seed
@pytest.mark.parametrize("beta", [0.01, 0.1, 1.0])
@pytest.mark.parametrize("train", [64, 4096])
def test_bracket_encloses_closed_forms_of_the_population(beta: float, train: int, seed: int) -> None:
    pair, found = bracket(beta, train, seed)
    assert at_most(found.information_low, pair.mutual_information)
    assert at_least(found.information_high, pair.mutual_information)
    assert at_most(found.gap_low, pair.prior_gap)
    assert at_least(found.gap_high, pair.prior_gap)


@any_seed
def test_upper_end_is_reached_where_a_candidate_is_the_marginal(seed: int) -> None:
    """q(z) is Gaussian here; of its closable gap, all is found."""
    pair, found = bracket(0.01, 20_000, seed)
    assert found.best == "normal"
    for end, value in ((found.information_high, pair.mutual_information), (found.gap_low, pair.prior_gap)):
        assert abs(end.value - value) < ONE_SIDED * end.se + 0.01  # a normal fitted to 20,000 codes


@any_seed
def test_few_training_codes_saturate_where_the_bracket_does_not(seed: int) -> None:
    """I of 64 codes is at its ceiling, log 64, far below that of the population."""
    pair, found = bracket(0.001, 64, seed)
    few = rate_terms(codes(pair, 64, seed), PRIOR, outer=64, generator=torch.Generator().manual_seed(seed))
    assert few.mutual_information.value > math.log(64) - 0.1
    assert pair.mutual_information > few.mutual_information.value + 2
    assert found.information_low.value > few.mutual_information.value + 2
    assert found.information_low.value <= math.log(2000)
    assert at_least(found.information_high, pair.mutual_information)


def test_prior_that_is_the_marginal_has_no_closable_gap() -> None:
    pair = LinearGaussian.best(COVARIANCE, latent_size=4, beta=0.1)
    torch.manual_seed(0)
    q, fitted = codes(pair, 2000, 1), normal_of(codes(pair, 300, 0))
    found = population_bracket(q, pair.marginal, {"normal": fitted.log_prob}, torch.Generator().manual_seed(0))
    assert found.best is None
    assert found.gap_low.value == 0
    assert at_least(found.gap_high, 0.0)


def test_candidate_is_chosen_on_other_images_than_its_bound() -> None:
    """A density that is best on the first half, though not on both, is chosen; its bound is that on the second half."""
    loc = torch.cat([torch.zeros(500), torch.full((500,), 3.0)])[:, None].double()
    q = Independent(Normal(loc, torch.full_like(loc, 0.5)), 1)

    def log_p(z: Tensor) -> Tensor:
        return Independent(Normal(torch.zeros(1).double(), torch.full((1,), 0.5).double()), 1).log_prob(z)

    prior = Independent(Normal(torch.full((1,), 2.5).double(), torch.full((1,), 0.5).double()), 1)
    found = population_bracket(q, prior, {"first": log_p}, torch.Generator().manual_seed(0))
    assert found.best == "first"
    assert found.information_high.value == pytest.approx(18, abs=0.5)  # 3² / (2 · 0.5²)
    assert found.gap_low.value == pytest.approx(-17.5, abs=0.5)
