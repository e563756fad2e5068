"""Where generalization is lost, on linear-Gaussian pairs whose log p(x), rates and distortions are closed forms."""

import pytest
import torch
from seeds import any_seed
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal, kl_divergence

from pyrovae.data import linear
from pyrovae.estimators import (
    Annealing,
    LinearGaussian,
    Optimisation,
    amortised_distortion,
    annealed_log_likelihood,
    bidirectional_log_likelihood,
    generalization_gap,
)

#: Failure rate 2e-5, two-sided.
TWO_SIDED = 4.27
COVARIANCE = linear.covariance()
BEST = LinearGaussian.best(COVARIANCE, latent_size=4)
W = BEST.weight.float()


def prior() -> Distribution:
    return Independent(Normal(torch.zeros(4), torch.ones(4)), 1)


def log_p(x: Tensor, z: Tensor) -> Tensor:
    return Normal(z @ W.T, 1.0).log_prob(x).sum(-1)


def truth(x: Tensor) -> Tensor:
    """log p(x)."""
    q = BEST.posterior(x)
    z = q.mean
    return (log_p(x, z.float()) + prior().log_prob(z.float())).double() - q.log_prob(z)


def data(count: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(count, 6) @ torch.linalg.cholesky(COVARIANCE).T.float()


def closed_form(x: Tensor, b: float) -> tuple[Tensor, Tensor]:
    """Rate and distortion of each vector under q_b(z|x) ∝ p(z) p(x|z)^b."""
    q = LinearGaussian(COVARIANCE, BEST.weight, beta=1 / b).posterior(x)
    rate = kl_divergence(q, torch.distributions.MultivariateNormal(torch.zeros(4).double(), torch.eye(4).double()))
    blur = torch.trace(BEST.weight @ q.covariance_matrix[0] @ BEST.weight.T)
    return rate, blur / 2 - Normal(q.mean @ BEST.weight.T, 1.0).log_prob(x.double()).sum(-1)


def error_of_mean(values: Tensor) -> float:
    return TWO_SIDED * float(values.std()) / len(values) ** 0.5


@any_seed
def test_decoder_curve_is_the_closed_form(seed: int) -> None:
    torch.manual_seed(seed)
    x = data(300)
    curve = annealed_log_likelihood(prior(), log_p, x, Annealing(200, 4)).curve
    assert curve.inverse_temperature[0] == 0
    assert curve.inverse_temperature[-1] == 1
    assert curve.rate[0].abs().max() == 0
    for step in (50, 100, 150, 199):
        rate, distortion = closed_form(x, float(curve.inverse_temperature[step]))
        excess = curve.rate[step] - rate
        assert -error_of_mean(excess) < excess.mean() < 0.1 + error_of_mean(excess)
        difference = curve.distortion[step] - distortion
        assert abs(difference.mean()) < 0.05 + error_of_mean(difference)


@any_seed
def test_few_temperatures_give_an_upper_bound_of_the_rate(seed: int) -> None:
    """Of what the chains follow: R + b D, the bound of −log Z_b, is above the closed form."""
    torch.manual_seed(seed)
    x = data(300)
    curve = annealed_log_likelihood(prior(), log_p, x, Annealing(5, 4)).curve
    b = curve.inverse_temperature[-1]
    rate, distortion = closed_form(x, 1.0)
    excess = curve.rate[-1] + b * curve.distortion[-1] - rate - distortion
    assert excess.mean() > error_of_mean(excess) + 0.1


@any_seed
@pytest.mark.parametrize("temperatures", [10, 100])
def test_forward_and_backward_curves_enclose_the_closed_form(temperatures: int, seed: int) -> None:
    torch.manual_seed(seed)
    z = prior().sample((400,))
    x = z @ W.T + torch.randn(400, 6)
    found = bidirectional_log_likelihood(prior(), log_p, x, z, Annealing(temperatures, 4))
    assert torch.equal(found.forward.inverse_temperature, found.backward.inverse_temperature)
    for step in (temperatures // 2, temperatures):
        b = float(found.forward.inverse_temperature[step])
        rate, distortion = closed_form(x, b)
        above, below = (
            curve.rate[step] + b * curve.distortion[step] - rate - b * distortion
            for curve in (found.forward, found.backward)
        )
        assert above.mean() > -error_of_mean(above)
        assert below.mean() < error_of_mean(below)
        width = float((above - below).mean())
        assert width < 0.5 if temperatures == 100 else width > 1


@any_seed
def test_exact_guide_leaves_everything_to_the_decoder(seed: int) -> None:
    """With the exact posterior as the guide, the ELBO is log p(x): the decoder's part is its difference."""
    torch.manual_seed(seed)
    train, test = data(2000), data(2000, scale=1.5)
    elbo = (truth(train), truth(test))
    bounds = [annealed_log_likelihood(prior(), log_p, x[:64], Annealing(100, 4)).bound for x in (train, test)]
    gap = generalization_gap(elbo, (bounds[0] - elbo[0][:64], bounds[1] - elbo[1][:64]))
    assert abs(gap.guide.value) < 0.05 + TWO_SIDED * gap.guide.se
    expected = BEST.log_likelihood - LinearGaussian(2.25 * COVARIANCE, BEST.weight).log_likelihood
    assert expected > 1
    assert abs(gap.decoder.value - expected) < 0.05 + TWO_SIDED * gap.decoder.se
    assert gap.decoder.se < 0.2


@any_seed
def test_guide_that_is_wrong_on_new_data_alone_has_the_whole_gap(seed: int) -> None:
    """A guide that is shifted by d on test data loses KL = dᵀ S⁻¹ d / 2 there."""
    torch.manual_seed(seed)
    train, test = data(2000), data(2000)
    shift = 0.3 * torch.ones(4, dtype=torch.float64)
    lost = shift @ torch.linalg.inv(BEST.posterior_covariance) @ shift / 2
    elbo = (truth(train), truth(test) - lost)
    bounds = [annealed_log_likelihood(prior(), log_p, x[:64], Annealing(100, 4)).bound for x in (train, test)]
    gap = generalization_gap(elbo, (bounds[0] - elbo[0][:64], bounds[1] - elbo[1][:64]))
    assert abs(gap.guide.value - lost) < 0.05 + TWO_SIDED * gap.guide.se
    assert abs(gap.decoder.value) < 0.05 + TWO_SIDED * gap.decoder.se
    assert gap.decoder.value + gap.guide.value == pytest.approx(float(elbo[0].mean() - elbo[1].mean()))


@any_seed
def test_standard_errors_are_the_spread_over_data_sets(seed: int) -> None:
    torch.manual_seed(seed)
    found = []
    for _ in range(500):
        elbo = [5 * torch.randn(200) for _ in range(2)]
        gaps = [torch.randn(40) - 0.1 * each[:40] for each in elbo]
        found.append(generalization_gap((elbo[0], elbo[1]), (gaps[0], gaps[1])))
    for part in ("decoder", "guide"):
        values, errors = (torch.tensor([getattr(getattr(each, part), of) for each in found]) for of in ("value", "se"))
        assert abs(values.std() / errors.mean() - 1) < TWO_SIDED * 1.1 / 1000**0.5


@any_seed
def test_amortisation_costs_what_a_shift_of_the_guide_costs(seed: int) -> None:
    """At β, the best guide is the posterior of `LinearGaussian`; a shift d of its means adds |W d|² / 2 to D."""
    torch.manual_seed(seed)
    x = data(40)
    best = LinearGaussian(COVARIANCE, BEST.weight, beta=0.5).posterior(x)
    scale = best.covariance_matrix.diagonal(dim1=-2, dim2=-1).sqrt().float()
    shift = 0.5 * torch.randn(40, 4)
    shifted = Independent(Normal(best.mean.float() + shift, scale), 1)
    lost = amortised_distortion(
        shifted, prior(), log_p, x, 0.5, optimisation=Optimisation(steps=600, samples=16, draws=400)
    )
    # The means end at the optimum, the scales nearly do: those of a diagonal q are smaller than the marginal ones.
    residual = x - best.mean.float() @ W.T
    expected = (shift @ W.T).square().sum(1) / 2 - (residual * (shift @ W.T)).sum(1)
    difference = lost - expected
    assert abs(difference.mean()) < 0.1 + error_of_mean(difference)
