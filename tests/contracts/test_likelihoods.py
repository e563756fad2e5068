"""The contract of likelihoods: every likelihood in `pyrovae.parts` is tested here and needs no further test.

Then, exact answers for the distributions that torch lacks or computes inexactly.
"""

from collections.abc import Sequence
from itertools import product
from typing import Any

import mpmath
import numpy as np
import pyro
import pytest
import torch
from seeds import any_seed
from torch import Tensor
from torch.distributions import constraints
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from pyrovae import InputError, Run, build, fit, make_pair, parts
from pyrovae.models.likelihoods.continuous_bernoulli import ContinuousBernoulliDistribution
from pyrovae.models.likelihoods.discretised_logistic import DiscretisedLogisticDistribution
from pyrovae.models.likelihoods.negative_binomial import NegativeBinomialDistribution

LIKELIHOODS = list(parts.names("likelihood"))
#: Those that may have an offset.
COUNTS = ["poisson", "negative_binomial"]
#: Settings at which a contract is cheap.
SETTINGS: dict[str, dict[str, Any]] = {"categorical": {"levels": 3}}
EVENT = torch.Size([1, 2, 3])
PIXEL = torch.Size([1])
#: Failure rate 2e-5, two-sided.
TWO_SIDED = 4.27


def make(name: str, event_shape: torch.Size = EVENT) -> Any:
    return build.make_likelihood(Run(likelihood=name, **SETTINGS.get(name, {})), event_shape)


def make_moved(name: str) -> Any:
    """A likelihood of one pixel whose parameters, if it has any, are not at their initial values."""
    likelihood = make(name, PIXEL)
    with torch.no_grad():
        for parameter in likelihood.parameters():
            parameter.sub_(0.5)
    return likelihood


def combinations(features: int, values: Sequence[float]) -> Tensor:
    """Every combination of the values as features, ``[n, features]`` in float64."""
    return torch.tensor(list(product(values, repeat=features)), dtype=torch.float64)


def draw_images(n: int, lowest: int = 0, highest: int = 255) -> Tensor:
    """Images of 8-bit levels, in [0, 1]."""
    return torch.randint(lowest, highest + 1, (n, *EVENT), generator=torch.Generator().manual_seed(0)) / 255


def supported(likelihood: Any, x: Tensor) -> Tensor:
    """8-bit levels, for likelihoods of whole numbers as 0, 1 and 2."""
    return x if likelihood.support.check(x).all() else (2 * x).round()


def unbounded(likelihood: Any) -> bool:
    """Whether it is a likelihood of counts without an upper bound."""
    return likelihood.support.is_discrete and not hasattr(likelihood.support, "upper_bound")


def quadrature(likelihood: Any, p: Any) -> tuple[Tensor, Tensor]:
    """Points x and weights w with Σ w f(x) = ∫ f over the support of p: exact sums, or Gauss–Legendre quadrature."""
    if p.has_enumerate_support:
        x = p.enumerate_support()
        return x, torch.ones_like(x)
    if unbounded(likelihood):
        x = torch.arange(float((p.mean + 60 * p.stddev).max().ceil()) + 30, dtype=p.mean.dtype)
        x = x.reshape(-1, *(1 for _ in p.batch_shape))
        return x, torch.ones_like(x)
    bounded = isinstance(likelihood.support, constraints.interval)
    low = likelihood.support.lower_bound + 0 * p.mean if bounded else p.mean - 40 * p.stddev
    high = likelihood.support.upper_bound + 0 * p.mean if bounded else p.mean + 40 * p.stddev
    nodes, weights = (torch.from_numpy(each)[:, None, None] for each in np.polynomial.legendre.leggauss(400))
    half = (high - low) / 2
    return low + half * (1 + nodes), half * weights


def expectation(p: Any, values: Tensor, x: Tensor, w: Tensor) -> Tensor:
    return (w * p.log_prob(x).exp() * values).sum(0)


# The largest error is the rounding of x at μ = 1000 to 1e-13, which is 3e-9 of the smallest σ.
@pytest.mark.parametrize("name", LIKELIHOODS)
def test_density_is_normalised_and_has_the_stated_mean(name: str) -> None:
    likelihood = make(name, PIXEL)
    large = () if unbounded(likelihood) else (50.0, 1000.0)
    values = (0.0, 1e-8, -1e-8, 1e-3, 0.5, -0.5, 2.0, -2.0, -50.0, -1000.0, *large)
    with torch.no_grad():
        p = likelihood(combinations(likelihood.features, values)).base_dist
        x, w = quadrature(likelihood, p)
        one = torch.ones_like(p.mean)
        torch.testing.assert_close(expectation(p, one, x, w), one, rtol=0, atol=1e-8)
        torch.testing.assert_close(expectation(p, x, x, w), p.mean, rtol=1e-8, atol=1e-8)


@any_seed
@pytest.mark.parametrize("name", LIKELIHOODS)
def test_samples_follow_the_density(name: str, seed: int) -> None:
    likelihood = make_moved(name)
    n = 20_000
    means = torch.tensor([[0.02], [0.5], [0.98]], dtype=torch.float64)
    starts = torch.stack([likelihood.initial_features(mean) for mean in means])
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(seed)
        p = likelihood(torch.cat([starts, combinations(likelihood.features, (-4.0, 0.0, 1.0))])).base_dist
        draws = p.sample((n,))
        assert draws.dtype == torch.float64
        assert likelihood.support.check(draws).all()
        x, w = quadrature(likelihood, p)
        first = expectation(p, x, x, w)
        second, fourth = (expectation(p, (x - first) ** power, x, w) for power in (2, 4))
        spread = ((draws - first) ** 2).mean(0) - second
        # A statistic without variance, such as the deviation of a fair coin from its mean, agrees up to rounding.
        assert ((draws.mean(0) - first).abs() < TWO_SIDED * (second / n).sqrt() + 1e-12).all()
        assert (spread.abs() < TWO_SIDED * ((fourth - second**2).clamp(min=0) / n).sqrt() + 1e-12).all()


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_density_and_gradients_are_finite_at_extreme_features(name: str) -> None:
    likelihood = make(name, PIXEL)
    h = combinations(likelihood.features, (0.0, 1e-30, 1.0, 50.0, -50.0, 1000.0, -1000.0)).float().requires_grad_()
    for x in (0.0, 1 / 255, 0.2, 1.0):
        log_prob = likelihood(h).log_prob(supported(likelihood, torch.full(PIXEL, x)))
        assert log_prob.isfinite().all()
        (first,) = torch.autograd.grad(log_prob.sum(), h, create_graph=True)
        assert first.isfinite().all()


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_likelihood_has_the_same_gradients_in_lockstep(name: str) -> None:
    runs = [make(name) for _ in range(3)]
    with torch.no_grad():
        for number, run in enumerate(runs):
            for parameter in run.parameters():
                parameter.add_(0.1 * number)
    state = tuple(stack_module_state(runs))
    h = torch.randn(3, 5, runs[0].features, generator=torch.Generator().manual_seed(1))
    x = supported(runs[0], draw_images(5))

    def distortion(of_run: tuple[dict[str, Tensor], Tensor]) -> Tensor:
        parameters, features = of_run
        return -functional_call(runs[0], parameters, features).log_prob(x).sum()

    with pyro.validation_enabled(False):
        together = (state[0], h)
        parameters, features = make_fx(vmap(grad(distortion)))(together)(together)
    for number, run in enumerate(runs):
        alone = h[number].clone().requires_grad_()
        (-run(alone).log_prob(x).sum()).backward()
        torch.testing.assert_close(features[number], alone.grad, rtol=1e-4, atol=1e-5)
        assert alone.grad is not None
        assert (alone.grad != 0).all()
        for key, parameter in run.named_parameters():
            assert parameter.grad is not None
            assert (parameter.grad != 0).all()
            torch.testing.assert_close(parameters[key][number], parameter.grad, rtol=1e-4, atol=1e-5)


def test_compiled_densities_and_gradients_match_float64() -> None:
    x = torch.tensor([0.0, 0.2, 1.0])[:, None, None]
    likelihoods = [make(name, PIXEL) for name in LIKELIHOODS]
    values = [supported(likelihood, x) for likelihood in likelihoods]
    exact = [combinations(likelihood.features, (0.0, 1e-3, -1.5, 2.5, 8.0, -30.0)) for likelihood in likelihoods]

    def densities(features: list[Tensor]) -> list[Tensor]:
        each = zip(likelihoods, features, values, strict=True)
        return [likelihood(h).log_prob(x.to(h)) for likelihood, h, x in each]

    def total(features: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        each = densities(features)
        return torch.stack([one.sum() for one in each]).sum(), each

    def with_gradients(features: list[Tensor]) -> list[Tensor]:
        gradients, each = grad(total, has_aux=True)(features)
        return [*each, *gradients]

    single = [h.float() for h in exact]
    with pyro.validation_enabled(False), torch.no_grad():
        compiled = torch.compile(make_fx(with_gradients)(single))(single)
        for got, expected in zip(compiled, with_gradients(exact), strict=True):
            torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_floor_is_a_lower_bound_of_distortion(name: str) -> None:
    likelihood = make(name)
    generator = torch.Generator().manual_seed(0)
    for x in (supported(likelihood, draw_images(50)), supported(likelihood, draw_images(50, 1, 254))):
        assert likelihood.support.check(x).all()
        floor = likelihood.floor(x)
        assert floor.shape == (50,)
        with torch.no_grad():
            for size in (0.1, 1.0, 5.0, 100.0):
                h = size * torch.randn(50, likelihood.features, generator=generator)
                assert (floor.isnan() | (-likelihood(h).log_prob(x) >= floor - 1e-4)).all()


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_gradient_descent_reaches_the_floor(name: str) -> None:
    likelihood = make(name).double()
    x = supported(likelihood, torch.cat([draw_images(3, 1, 254), draw_images(3).round(), draw_images(3)])).double()
    h = torch.stack([likelihood.initial_features(image) for image in x]).requires_grad_()
    optimizer = torch.optim.Adam([h, *likelihood.parameters()])
    for rate in np.geomspace(0.1, 1e-3, 1000):
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        distortion = -likelihood(h).log_prob(x)
        distortion.sum().backward()
        optimizer.step()
    floor = likelihood.floor(x)
    below_any = distortion.detach() < -EVENT.numel()
    # A floor at infinite features is approached like one over the number of steps.
    assert (floor.isnan() & below_any | ((distortion - floor).abs() < 0.02)).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", LIKELIHOODS)
def test_initial_features_reproduce_the_mean_image(name: str, dtype: torch.dtype) -> None:
    likelihood = make(name).to(dtype)
    mean = torch.linspace(0.01, 0.99, 6, dtype=dtype).reshape(EVENT)
    h = likelihood.initial_features(mean)
    assert (h.shape, h.dtype) == ((likelihood.features,), dtype)
    torch.testing.assert_close(likelihood(h).mean, mean, rtol=0, atol=1e-5)
    assert likelihood.initial_features(mean.round()).isfinite().all()


@pytest.mark.parametrize("leading", [(), (4,), (2, 4)])
@pytest.mark.parametrize("name", LIKELIHOODS)
def test_likelihood_broadcasts_over_leading_dimensions(name: str, leading: tuple[int, ...]) -> None:
    likelihood = make(name)
    p = likelihood(torch.zeros(*leading, likelihood.features))
    assert (p.batch_shape, p.event_shape) == (leading, EVENT) == (leading, likelihood.event_shape)
    assert p.mean.shape == (*leading, *EVENT)
    wider, x = p.expand((3, *leading)), supported(likelihood, draw_images(1)[0])
    assert wider.batch_shape == (3, *leading)
    assert wider.sample().shape == wider.log_prob(x).shape + EVENT == (3, *leading, *EVENT)
    torch.testing.assert_close(wider.log_prob(x)[0], p.log_prob(x))


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_support_excludes_invalid_pixels(name: str) -> None:
    support = make(name).support
    outside = [torch.nan]
    outside += [0.5] if unbounded(make(name)) else []
    outside += [support.lower_bound - 1e-3] if hasattr(support, "lower_bound") else []
    outside += [support.upper_bound + 1e-3] if hasattr(support, "upper_bound") else []
    if support.is_discrete and not unbounded(make(name)):
        levels = make(name, PIXEL)(torch.zeros(make(name, PIXEL).features)).base_dist.enumerate_support()
        assert support.check(levels).all()
        outside += ((levels[1:] + levels[:-1]) / 2).flatten().tolist()
    assert not support.check(torch.tensor(outside)).any()


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_model_passes_validation(name: str) -> None:
    run = Run(likelihood=name, depth=1, width=8, **SETTINGS.get(name, {}))
    x = supported(make(name), draw_images(5))
    pair = make_pair(run, EVENT, x.mean(0))
    pair.check(x, beta=0.5)
    assert pair(x, beta=0.5).loss.isfinite().all()


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_encoder_sees_the_logarithm_of_counts_alone(name: str) -> None:
    likelihood = make(name)
    x = 1e6 * supported(likelihood, draw_images(5)) if unbounded(likelihood) else draw_images(5)
    pair = make_pair(Run(likelihood=name, depth=1, width=8, **SETTINGS.get(name, {})), EVENT)
    encoder = getattr(pair.guide.encoder, "network", pair.guide.encoder)
    expected = encoder((1 + x).log() if unbounded(likelihood) else x)
    torch.testing.assert_close(pair.guide.encoder(x), expected)


OFFSETS = torch.tensor([[0.5], [1.0], [3.0]], dtype=torch.float64)


def make_with_offset(name: str, counts: int) -> Any:
    return build.make_likelihood(Run(likelihood=name, offset=True), torch.Size([counts + 1])).double()


@pytest.mark.parametrize("name", COUNTS)
def test_density_given_the_offset_is_that_of_scaled_means(name: str) -> None:
    with_offset, without = make_with_offset(name, 2), make(name, torch.Size([2])).double()
    h, counts = torch.randn(3, 2, dtype=torch.float64), torch.tensor([[0.0, 4.0], [1.0, 2.0], [9.0, 0.0]]).double()
    x = torch.cat([counts, OFFSETS], 1)
    expected = without(h + OFFSETS.log()).log_prob(counts)
    for p in (with_offset(h), with_offset.given(h, x), with_offset(h).expand((3,))):
        torch.testing.assert_close(p.log_prob(x), expected)
    torch.testing.assert_close(with_offset.floor(x), without.floor(counts))
    if name == "poisson":
        torch.testing.assert_close(expected, torch.distributions.Poisson(OFFSETS * h.exp()).log_prob(counts).sum(1))
        mean = torch.cat([2 * h.exp(), torch.full_like(OFFSETS, 2)], 1)
        torch.testing.assert_close(with_offset.distortion_at(x, mean), -expected)


@pytest.mark.parametrize("name", COUNTS)
def test_density_given_the_offset_is_normalised(name: str) -> None:
    counts = torch.arange(2000, dtype=torch.float64)[:, None]
    for s in OFFSETS:
        x = torch.cat([counts, s.expand(len(counts), 1)], 1)
        total = make_with_offset(name, 1)(torch.tensor([1.5], dtype=torch.float64)).log_prob(x).exp().sum()
        torch.testing.assert_close(total, torch.ones_like(total))


@pytest.mark.parametrize("name", COUNTS)
def test_draws_have_the_offset_of_their_item(name: str) -> None:
    x = torch.cat([torch.tensor([[0.0, 4.0], [1.0, 2.0], [9.0, 0.0]]), OFFSETS.float()], 1)
    pair = make_pair(Run(likelihood=name, offset=True, depth=1, width=8), torch.Size([3]), x.mean(0))
    assert pair.check(x, beta=0.5).distortion_kind == "negative log-probability given the offset"
    assert "(decoder(z)) [3] given the offset" in repr(pair)
    pair(x).loss.sum().backward()
    assert all(each.grad is not None and (each.grad != 0).any() for each in pair.parameters())
    seen = torch.cat([(1 + x[:, :2]).log(), x[:, 2:].log()], 1)
    torch.testing.assert_close(pair.guide.encoder(x), pair.guide.encoder.network(seen))
    z = torch.zeros(3, 10)
    assert torch.equal(pair.reconstruct(x)[:, 2:], x[:, 2:])
    torch.testing.assert_close(pair.likelihood(x, z).mean, pair.decode(z).mean * x[:, 2:])
    drawn = pair.simulate(x).nodes["x"]["value"]
    assert torch.equal(drawn[:, 2:], x[:, 2:])
    assert torch.equal(pair.generate(2)[:, 2], torch.ones(2))


@pytest.mark.parametrize(
    ("x", "expected"),
    [
        ([[1.0, 2.0, 0.0], [1.0, 2.0, 1.0]], "its offset > 0, .* got an offset of 0; without an offset"),
        ([[1.0, 2.0, 1.0], [1.0, 2.0, -2.5]], "got an offset of -2.5"),
        ([[1.0, 2.0, 1.0], [1.0, 0.5, 1.0]], "expected whole numbers ≥ 0.* got values such as 0.5"),
        ([[1.0, 2.0, np.inf], [1.0, 2.0, 1.0]], r"got NaN or ∞ in 1 of 2 items, first in item 0"),
        ([[1.0], [2.0]], r"likelihood: 'poisson': offset: expected vectors of counts with the offset .* shape \[1\]"),
        (np.ones((2, 1, 4, 4)), r"offset: expected vectors of counts .* got items of shape \[1, 4, 4\]"),
    ],
)
def test_missing_or_invalid_offset_is_one_line(x: Any, expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        fit(np.array(x), likelihood="poisson", offset=True, steps=1, width=4, quiet=True)


def test_no_whole_numbers_are_one_line() -> None:
    with pytest.raises(InputError, match=r"expected whole numbers ≥ 0.* from 0.5 to 2; give .* such as 0.5, "):
        fit(np.array([[0.5, 2.0], [1.0, 1.0]]), likelihood="poisson", steps=1, width=4, quiet=True)


def _log_continuous_bernoulli(eta: float, x: float) -> float:
    """ηx − log((e^η − 1)/η) from the definition, in 60 digits."""
    with mpmath.workdps(60):
        return float(eta * mpmath.mpf(x) - (mpmath.log(mpmath.expm1(eta) / eta) if eta else 0))


ETAS = [
    0.0,
    *(sign * size for size in (1e-8, 1e-4, 1e-2, 0.1, 0.999, 1.001, 2, 5, 10, 100, 700, 1000) for sign in (1, -1)),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_continuous_bernoulli_density_is_exact_up_to_rounding(dtype: torch.dtype) -> None:
    eta = torch.tensor(ETAS, dtype=dtype)
    for x in (0.0, 0.25, 1.0):
        expected = [_log_continuous_bernoulli(value, x) for value in eta.tolist()]
        log_prob = ContinuousBernoulliDistribution(eta).log_prob(torch.tensor(x, dtype=dtype))
        rounding = 4 * torch.finfo(dtype).eps
        torch.testing.assert_close(log_prob, torch.tensor(expected, dtype=dtype), rtol=rounding, atol=rounding)


def test_continuous_bernoulli_moments_are_derivatives_of_log_normaliser() -> None:
    eta = torch.tensor(ETAS, dtype=torch.float64, requires_grad=True)
    p = ContinuousBernoulliDistribution(eta)
    with mpmath.workdps(60):
        mean = [float(mpmath.exp(e) / mpmath.expm1(e) - 1 / mpmath.mpf(e)) if e else 0.5 for e in ETAS]
        variance = [float(1 / mpmath.mpf(e) ** 2 - 1 / (4 * mpmath.sinh(e / 2) ** 2)) if e else 1 / 12 for e in ETAS]
    log_normaliser = -p.log_prob(torch.zeros_like(eta))
    (first,) = torch.autograd.grad(log_normaliser.sum(), eta, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), eta)
    torch.testing.assert_close(p.mean.tolist(), mean, rtol=1e-14, atol=1e-15)
    torch.testing.assert_close(first.tolist(), mean, rtol=1e-14, atol=1e-15)
    torch.testing.assert_close(second.tolist(), variance, rtol=1e-13, atol=1e-15)


def test_continuous_bernoulli_sample_gradients_match_the_cdf() -> None:
    eta = torch.tensor([0.0, 1e-11, 1e-4, 0.1, -0.1, 30.0, -30.0], dtype=torch.float64, requires_grad=True)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        x = ContinuousBernoulliDistribution(eta).rsample((1000,))
    (moved,) = torch.autograd.grad(x.sum(), eta)
    # dx/dη = −(∂F/∂η)/p at fixed F, with F = (e^{ηx} − 1)/(e^η − 1).
    columns = zip(eta.tolist(), x.T.tolist(), strict=True)
    expected = [sum(_movement(value, each) for each in column) for value, column in columns]
    torch.testing.assert_close(moved.tolist(), expected, rtol=1e-6, atol=1e-6)


def _movement(eta: float, x: float) -> float:
    if abs(eta) < 1e-9:
        return x * (1 - x) / 2
    slope = (x * np.exp(eta * x) * np.expm1(eta) - np.expm1(eta * x) * np.exp(eta)) / np.expm1(eta) ** 2
    return float(-slope / (eta * np.exp(eta * x) / np.expm1(eta)))


def test_continuous_bernoulli_has_no_floor_at_0_or_1() -> None:
    likelihood = make("continuous_bernoulli", PIXEL)
    x = torch.tensor([[0.0], [1.0], [0.5], [1e-30], [0.999]], dtype=torch.float64)
    floor = likelihood.floor(x)
    assert floor.isnan().tolist() == [True, True, False, False, False]
    # Towards 0 the best η is −1/x, where log p = −1 + log(1/x).
    torch.testing.assert_close(floor[2:4], torch.tensor([0.0, 1 - 30 * np.log(10)], dtype=torch.float64))
    eta = torch.linspace(-2000, 2000, 4_000_001, dtype=torch.float64)
    best = ContinuousBernoulliDistribution(eta).log_prob(x[4]).max()
    torch.testing.assert_close(floor[4], -best, rtol=1e-9, atol=0)


def test_discretised_logistic_matches_exact_bits_per_dimension() -> None:
    levels, loc, log_scale = np.array([0, 1, 77, 128, 254, 255]), 0.3, -3.0
    with mpmath.workdps(60):
        scale, half = mpmath.exp(log_scale), mpmath.mpf(1) / 510
        cuts = [(mpmath.mpf(int(k)) / 255 - loc) / scale for k in levels]
        upper = [
            1 / (1 + mpmath.exp(-cut - half / scale)) if k < 255 else 1 for k, cut in zip(levels, cuts, strict=True)
        ]
        lower = [1 / (1 + mpmath.exp(-cut + half / scale)) if k > 0 else 0 for k, cut in zip(levels, cuts, strict=True)]
        bits = float(sum(-mpmath.log(u - v, 2) for u, v in zip(upper, lower, strict=True)) / len(levels))
    h = torch.tensor([loc] * 6 + [log_scale] * 6, dtype=torch.float64)
    x = torch.from_numpy(levels / 255).reshape(EVENT)
    nats = -make("discretised_logistic")(h).log_prob(x)
    assert nats.item() / len(levels) / np.log(2) == pytest.approx(bits, rel=1e-12)


def test_discretised_logistic_is_accurate_in_the_tails() -> None:
    loc, scale, x = (torch.tensor(value) for value in (0.0, 0.01, 1 - 1 / 255))
    log_prob = DiscretisedLogisticDistribution(loc, scale).log_prob(x)
    with mpmath.workdps(60):
        cut, half = (1 - mpmath.mpf(1) / 255) / mpmath.mpf("0.01"), mpmath.mpf(1) / 510 / mpmath.mpf("0.01")
        expected = float(mpmath.log(1 / (1 + mpmath.exp(-cut - half)) - 1 / (1 + mpmath.exp(-cut + half))))
    assert log_prob.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_negative_binomial_density_is_exact_up_to_rounding(dtype: torch.dtype) -> None:
    triples = list(product((1e-3, 0.7, 30.0), (1e-4, 1 / 65, 1 / 63, 0.5, 20.0), (0, 1, 7, 400)))
    mean, dispersion, x = torch.tensor(triples, dtype=dtype).T
    found = NegativeBinomialDistribution(mean, dispersion).log_prob(x)
    expected = [_log_negative_binomial(*each) for each in torch.stack([mean, dispersion, x], 1).tolist()]
    rounding = 2e3 * torch.finfo(dtype).eps
    torch.testing.assert_close(found, torch.tensor(expected, dtype=dtype), rtol=1e-6, atol=rounding)


def _log_negative_binomial(mean: float, dispersion: float, x: float) -> float:
    with mpmath.workdps(60):
        r, m = 1 / mpmath.mpf(dispersion), mpmath.mpf(mean)
        choices = mpmath.loggamma(r + x) - mpmath.loggamma(r) - mpmath.loggamma(x + 1)
        return float(choices + r * mpmath.log(r / (r + m)) + x * mpmath.log(m / (r + m)))
