"""Information estimators, compared with brute force, quadrature, higher precision and closed forms."""

import math

import mpmath
import pytest
import torch
from scipy import integrate
from seeds import any_seed
from torch import Tensor
from torch.distributions import Distribution, Gamma, Independent, MultivariateNormal, Normal, StudentT

from pyrovae.estimators import (
    LinearGaussian,
    active_units,
    marginal_rate,
    mutual_information,
    prior_gap,
    rate,
    rate_per_dimension,
    rate_terms,
)
from pyrovae.estimators.marginal import draw, encodings, log_marginal

#: Failure rate 2e-5, two-sided and one-sided.
TWO_SIDED, ONE_SIDED = 4.27, 4.11


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def diagonal(loc: Tensor, scale: Tensor) -> Distribution:
    return Independent(Normal(loc, scale), 1)


def standard_normal(size: int) -> Distribution:
    return diagonal(torch.zeros(size), torch.ones(size))


def student_t() -> Distribution:
    return Independent(StudentT(torch.tensor(5.0)).expand([3]), 1)


def some(kind: str, shift: float = 0, n: int = 200, d: int = 3) -> Distribution:
    """Encodings whose neighbours overlap, so that I is neither 0 nor log N."""
    loc = shift + 2 * torch.randn(n, d, generator=seeded(1))
    scale = 0.3 + torch.rand(n, d, generator=seeded(2))
    if kind == "diagonal":
        return diagonal(loc, scale)
    lower = torch.randn(n, d, d, generator=seeded(3)).tril(-1) / 3
    return MultivariateNormal(loc, scale_tril=lower + torch.diag_embed(scale))


def log_mixture_by_mpmath(z: Tensor, loc: Tensor, scale: Tensor, skip: int = -1) -> mpmath.mpf:
    """log of the mean density of diagonal normals at one point, to 60 digits."""
    total = mpmath.mpf(0)
    for m in range(len(loc)):
        if m != skip:
            log_q = mpmath.mpf(0)
            for z_d, mu, sigma in zip(z.tolist(), loc[m].tolist(), scale[m].tolist(), strict=True):
                u = (mpmath.mpf(z_d) - mpmath.mpf(mu)) / mpmath.mpf(sigma)
                log_q -= u * u / 2 + mpmath.log(sigma) + mpmath.log(2 * mpmath.pi) / 2
            total += mpmath.exp(log_q)
    return mpmath.log(total / (len(loc) - (skip >= 0)))


@pytest.mark.parametrize("shift", [0.0, 1e4])
@pytest.mark.parametrize("kind", ["diagonal", "full rank"])
def test_inference_marginal_matches_a_loop_over_encodings(kind: str, shift: float) -> None:
    q = encodings(some(kind, shift))
    z = draw(q, 2, seeded())
    # torch's density of each encoding separately, in float64.
    singles = [encodings(some(kind, shift), torch.tensor([m])) for m in range(200)]
    expected = torch.stack([single.log_prob(z) for single in singles]).logsumexp(0) - math.log(200)
    torch.testing.assert_close(log_marginal(z, q), expected, rtol=1e-12, atol=1e-10)
    others = torch.stack([single.log_prob(z) for single in singles])
    others[torch.arange(200), :, torch.arange(200)] = -torch.inf
    left_out = log_marginal(z, q, torch.arange(200))
    torch.testing.assert_close(left_out, others.logsumexp(0) - math.log(199), rtol=1e-12, atol=1e-10)


def test_inference_marginal_is_independent_of_chunk_size(monkeypatch: pytest.MonkeyPatch) -> None:
    q = encodings(some("diagonal"))
    z = draw(q, 1, seeded())
    whole = log_marginal(z, q), log_marginal(z, q, torch.arange(200))
    monkeypatch.setattr("pyrovae.estimators.marginal.CHUNK_ROWS", 7)
    monkeypatch.setattr("pyrovae.estimators.marginal.CHUNK_ELEMENTS", {"cpu": 7 * 3 * 11})
    for ours, expected in zip((log_marginal(z, q), log_marginal(z, q, torch.arange(200))), whole, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("sigma", [1e3, 1.0, 1e-2, 1e-4, 1e-6])
@pytest.mark.parametrize("shift", [0.0, 1e4])
def test_inference_marginal_matches_mpmath_at_any_scale(sigma: float, shift: float) -> None:
    loc = shift + 5 * torch.randn(12, 10, generator=seeded(4), dtype=torch.float64)
    loc[1] = loc[0] + sigma  # a neighbour that overlaps
    scale = sigma * (0.5 + torch.rand(12, 10, generator=seeded(5)))
    q = encodings(diagonal(loc, scale))
    z = draw(q, 1, seeded())[0]
    ours, left_out = log_marginal(z, q), log_marginal(z, q, torch.arange(12))
    with mpmath.workdps(60):
        for n in range(12):
            assert abs(ours[n].item() - log_mixture_by_mpmath(z[n], loc, scale)) < 1e-8
            exact = log_mixture_by_mpmath(z[n], loc, scale, skip=n)
            assert abs(left_out[n].item() - exact) < 1e-8 * abs(exact)


@pytest.mark.parametrize("sigma", [1e-4, 1e-6])
def test_information_of_narrow_encodings_is_log_n(sigma: float) -> None:
    n, d = 500, 20
    q = diagonal(torch.randn(n, d, generator=seeded(6)), torch.full((n, d), sigma))
    prior = standard_normal(d)
    terms = rate_terms(q, prior, samples=8, generator=seeded())
    exact = rate(q, prior)
    assert exact.value > 150
    assert abs(terms.mutual_information.value - math.log(n)) < 1e-9
    assert terms.mutual_information.notes == ("saturated at log N",)
    assert abs(terms.prior_gap.value - (exact.value - math.log(n))) < TWO_SIDED * terms.prior_gap.se


@pytest.mark.parametrize("kind", ["diagonal", "full rank"])
@pytest.mark.parametrize("leave_one_out", [False, True])
def test_rate_is_information_plus_gap(kind: str, leave_one_out: bool) -> None:
    q, prior = some(kind), standard_normal(3)
    terms = rate_terms(q, prior, samples=3, outer=50, leave_one_out=leave_one_out, generator=seeded())
    assert abs(terms.rate.value - terms.mutual_information.value - terms.prior_gap.value) < 1e-10
    alone = mutual_information(q, samples=3, outer=50, leave_one_out=leave_one_out, generator=seeded())
    assert alone == terms.mutual_information
    assert prior_gap(q, prior, samples=3, outer=50, leave_one_out=leave_one_out, generator=seeded()) == terms.prior_gap


def log_normal_by_mpmath(z: Tensor, loc: Tensor, lower: Tensor) -> mpmath.mpf:
    """log N(z | loc, lower lowerᵀ), to 60 digits."""
    u = mpmath.lu_solve(mpmath.matrix(lower.tolist()), mpmath.matrix(z.tolist()) - mpmath.matrix(loc.tolist()))
    log_scale = mpmath.fsum(mpmath.log(each) for each in lower.diagonal().tolist())
    return -mpmath.fsum(each**2 for each in u) / 2 - log_scale - len(u) * mpmath.log(2 * mpmath.pi) / 2


def kl_by_mpmath(loc: Tensor, lower: Tensor, m: Tensor, s: Tensor) -> mpmath.mpf:
    """KL(N(loc, lower lowerᵀ) ‖ N(m, diag s²)), to 60 digits."""
    difference = mpmath.matrix(loc.tolist()) - mpmath.matrix(m.tolist())
    columns = [*mpmath.matrix(lower.tolist()).T.tolist(), difference]
    spread = mpmath.fsum(
        (x / mpmath.mpf(s_d)) ** 2 for column in columns for x, s_d in zip(column, s.tolist(), strict=True)
    )
    log_det = mpmath.fsum(mpmath.log(each) for each in lower.diagonal().tolist())
    return (spread - len(s)) / 2 - log_det + mpmath.fsum(mpmath.log(each) for each in s.tolist())


@pytest.mark.parametrize("kind", ["diagonal", "full rank"])
@pytest.mark.parametrize("sigma", [1e-6, 1e-3, 1.0, 1e3])
@pytest.mark.parametrize("shift", [0.0, 1e4])
def test_rate_matches_mpmath_at_any_scale(kind: str, sigma: float, shift: float) -> None:
    unit, m, s = encodings(some(kind, n=2)), torch.tensor([0.5, 0.0, -1.0]), torch.tensor([1.1, 2.3, 0.7])
    lower = sigma * (unit.stddev.diag_embed() if kind == "diagonal" else unit.scale_tril)
    loc, p = shift + unit.mean, diagonal(m, s)
    q = diagonal(loc, sigma * unit.stddev) if kind == "diagonal" else MultivariateNormal(loc, scale_tril=lower)
    z = draw(q, 1, seeded())[0]
    terms = rate_terms(q, p, generator=seeded())
    with mpmath.workdps(60):
        exact = mpmath.fsum(kl_by_mpmath(loc[n], lower[n], m, s) for n in range(2)) / 2
        log_q = [log_normal_by_mpmath(z[n], loc[n], lower[n]) for n in range(2)]
        sampled = mpmath.fsum(log_q[n] - log_normal_by_mpmath(z[n], m, s.diag()) for n in range(2)) / 2
        for found, expected in ((rate(q, p), exact), (terms.rate, sampled)):
            assert abs(found.value - expected) < 1e-11 * max(1, abs(expected))


@any_seed
def test_information_and_gap_match_quadrature(seed: int) -> None:
    loc, scale = torch.tensor([[-2.0], [-1.5], [0.0], [0.1], [3.0]]), torch.tensor([[0.3], [0.8], [0.5], [0.2], [1.0]])
    q, prior = diagonal(loc, scale), standard_normal(1)
    wide = encodings(q)

    def at(z: float) -> tuple[Tensor, Tensor, Tensor]:
        point = torch.tensor([z], dtype=torch.float64)
        log_q = wide.log_prob(point)
        return log_q, log_q.logsumexp(0) - math.log(5), prior.log_prob(point)

    def information(z: float) -> float:
        log_q, log_marginal_z, _ = at(z)
        return float((log_q.exp() * (log_q - log_marginal_z)).mean())

    def gap(z: float) -> float:
        _, log_marginal_z, log_p = at(z)
        return float(log_marginal_z.exp() * (log_marginal_z - log_p))

    terms = rate_terms(q, prior, samples=20_000, generator=seeded(seed))
    for estimate, density in ((terms.mutual_information, information), (terms.prior_gap, gap)):
        truth, _ = integrate.quad(density, -12, 12, limit=400, epsabs=1e-10)
        # The standard error over five images says little about 100,000 draws, so compute theirs.
        z = draw(wide, 20_000, seeded(seed))
        log_q, log_m, log_p = wide.log_prob(z), log_marginal(z, wide), prior.log_prob(z)
        values = log_q - log_m if density is information else log_m - log_p
        monte_carlo = (values.var(0) / 20_000).sum().sqrt().item() / 5
        assert abs(estimate.value - truth) < TWO_SIDED * monte_carlo


@any_seed
def test_standard_error_is_the_spread_over_subsamples(seed: int) -> None:
    q, prior = some("diagonal", n=2000), standard_normal(3)
    estimates = [rate_terms(q, prior, outer=50, generator=seeded(1000 * seed + number)) for number in range(300)]
    truth = rate_terms(q, prior, samples=40, generator=seeded(1000 * seed + 300))
    for name in ("rate", "mutual_information", "prior_gap"):
        values = torch.tensor([getattr(each, name).value for each in estimates])
        claimed = torch.tensor([getattr(each, name).se for each in estimates]).square().mean().sqrt()
        # The relative error of a standard deviation from n draws is √((κ − 1) / 4n), with κ their kurtosis.
        kurtosis = ((values - values.mean()) / values.std()).pow(4).mean()
        assert abs(values.std() / claimed - 1) < TWO_SIDED * ((kurtosis - 1) / 1200).sqrt()
        error = math.hypot(values.std().item() / 300**0.5, getattr(truth, name).se * 0.1)
        assert abs(values.mean().item() - getattr(truth, name).value) < TWO_SIDED * error


def linear(beta: float = 1.0) -> LinearGaussian:
    covariance = torch.diag(torch.tensor([4.0, 2.0, 1.0, 0.5], dtype=torch.float64))
    return LinearGaussian(covariance, torch.tensor([[1.5, 0.3], [0.2, 1.0], [0.1, -0.4], [0.0, 0.2]]), 0.7, beta)


def vectors(pair: LinearGaussian, n: int, seed: int) -> Tensor:
    return torch.randn(n, 4, generator=seeded(seed), dtype=torch.float64) @ pair.covariance.sqrt()


@any_seed
def test_inclusive_and_leave_one_out_bracket_population_information(seed: int) -> None:
    pair, prior = linear(0.05), standard_normal(2)
    inclusive, excluded = [], []
    for number in range(1000 * seed, 1000 * seed + 100):
        q = pair.posterior(vectors(pair, 64, number))
        inclusive.append(rate_terms(q, prior, generator=seeded(number)))
        excluded.append(rate_terms(q, prior, leave_one_out=True, generator=seeded(number)))
    assert (excluded[0].mutual_information.kind, excluded[0].prior_gap.kind) == ("upper bound", "lower bound")

    def mean(values: list[float]) -> tuple[float, float]:
        return float(torch.tensor(values).mean()), float(torch.tensor(values).std()) / 10

    low, low_se = mean([each.mutual_information.value for each in inclusive])
    high, high_se = mean([each.mutual_information.value for each in excluded])
    assert low + ONE_SIDED * low_se < pair.mutual_information < high - ONE_SIDED * high_se
    assert low < math.log(64)
    gap, gap_se = mean([each.prior_gap.value for each in excluded])
    assert gap < pair.prior_gap + ONE_SIDED * gap_se


@any_seed
@pytest.mark.parametrize("beta", [0.3, 1.0, 10.0])
def test_small_information_matches_population(beta: float, seed: int) -> None:
    pair, prior = linear(beta), standard_normal(2)
    assert math.exp(pair.mutual_information) < 50  # the bias is of the order of exp(I) / N
    n, values = 4000, []
    for number in range(1000 * seed, 1000 * seed + 8):
        q = pair.posterior(vectors(pair, n, number))
        values.append(rate_terms(q, prior, outer=500, samples=4, generator=seeded(number)))
    for name in ("rate", "mutual_information", "prior_gap"):
        mean = sum(getattr(each, name).value for each in values) / 8
        error = math.sqrt(sum(getattr(each, name).se ** 2 for each in values)) / 8
        bias = math.exp(pair.mutual_information) / n
        assert abs(mean - getattr(pair, name)) < TWO_SIDED * error + bias


def test_information_vanishes_when_code_ignores_image() -> None:
    q = diagonal(torch.ones(300, 2), torch.ones(300, 2))
    terms = rate_terms(q, standard_normal(2), samples=5, generator=seeded())
    assert abs(terms.mutual_information.value) < 1e-12
    assert abs(terms.prior_gap.value - 1) < TWO_SIDED * terms.prior_gap.se


def test_marginal_rate_of_training_set_is_its_information() -> None:
    q = some("diagonal")
    ours = marginal_rate(q, q, samples=3, generator=seeded())
    assert abs(ours.value - mutual_information(q, samples=3, generator=seeded()).value) < 1e-12


def test_marginal_rate_of_unseen_images_can_exceed_log_n() -> None:
    pair = linear(0.01)
    q = pair.posterior(vectors(pair, 64, 0))
    unseen = pair.posterior(vectors(pair, 400, 1))
    z = draw(encodings(unseen), 1, seeded())[0]
    by_hand = encodings(unseen).log_prob(z) - encodings(q).log_prob(z[:, None]).logsumexp(1) + math.log(64)
    estimate = marginal_rate(unseen, q, generator=seeded())
    assert abs(estimate.value - by_hand.mean().item()) < 1e-9
    assert abs(estimate.se - by_hand.std().item() / 20) < 1e-9
    assert estimate.value > math.log(64)


@any_seed
@pytest.mark.parametrize("kind", ["diagonal", "full rank"])
def test_closed_form_rate_matches_monte_carlo(kind: str, seed: int) -> None:
    q, prior = some(kind), diagonal(torch.tensor([0.5, 0.0, -1.0]), torch.tensor([1.0, 2.0, 0.7]))
    exact = rate(q, prior)
    sampled = rate_terms(q, prior, samples=400, generator=seeded(seed)).rate
    assert exact.kind == "exact"
    z = draw(encodings(q), 400, seeded(seed))
    noise = (encodings(q).log_prob(z) - prior.log_prob(z)).mean(1).std().item() / 20
    assert abs(exact.value - sampled.value) < TWO_SIDED * noise
    mixture = torch.distributions.MixtureSameFamily(torch.distributions.Categorical(torch.ones(1)), prior.expand([1]))
    assert rate(q, mixture, generator=seeded(seed)).kind == "unbiased"


def test_rates_per_dimension_sum_to_rate() -> None:
    q, prior = some("diagonal"), diagonal(torch.tensor([0.5, 0.0, -1.0]), torch.tensor([1.0, 2.0, 0.7]))
    parts = rate_per_dimension(q, prior)
    assert len(parts) == 3
    assert abs(sum(part.value for part in parts) - rate(q, prior).value) < 1e-10


def test_active_units_count_dimensions_with_varying_means() -> None:
    loc = torch.randn(1000, 4, generator=seeded()) * torch.tensor([1.0, 0.2, 0.05, 0.0])
    assert active_units(diagonal(loc, torch.ones(1000, 4))).value == 2


def test_saturation_is_noted_within_tenth_of_nat_of_log_n() -> None:
    apart = 100 * torch.arange(50.0)[:, None]
    for twins, notes in ((0, ("saturated at log N",)), (3, ("saturated at log N",)), (4, ())):
        # Each pair of equal encodings lowers I by 2 log 2 / N nats.
        loc = apart.clone()
        loc[:twins] = loc[twins : 2 * twins]
        q = diagonal(loc, torch.ones(50, 1))
        terms = rate_terms(q, diagonal(torch.zeros(1), torch.full((1,), 1000.0)), generator=seeded())
        assert abs(terms.mutual_information.value - (math.log(50) - 2 * twins * math.log(2) / 50)) < 1e-9
        assert terms.mutual_information.notes == notes
        assert bool(terms.prior_gap.notes) == bool(notes)


def test_active_units_of_non_finite_encodings_are_nan() -> None:
    loc = torch.randn(100, 3, generator=seeded())
    loc[0, 0] = math.nan
    assert math.isnan(active_units(Independent(Normal(loc, 1.0, validate_args=False), 1)).value)


def test_estimators_keep_no_autograd_graph() -> None:
    loc = torch.randn(50, 2, generator=seeded(), requires_grad=True)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        ours = rate_terms(diagonal(loc, torch.ones(50, 2)), standard_normal(2), generator=seeded())
    assert not kept
    assert ours == rate_terms(diagonal(loc.detach(), torch.ones(50, 2)), standard_normal(2), generator=seeded())


@pytest.mark.parametrize("function", [rate_terms, prior_gap, rate, rate_per_dimension])
@pytest.mark.parametrize(
    ("prior", "message"),
    [
        (Normal(torch.zeros(3), 1.0), r"prior: expected the event shape \[3\] of q, got \[\]"),
        (standard_normal(1), r"expected the event shape \[3\]"),
        (standard_normal(3).expand([3]), "prior: expected one distribution"),
    ],
)
def test_prior_with_another_shape_raises(function: object, prior: Distribution, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        function(some("diagonal", n=3), prior)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: mutual_information(Normal(torch.zeros(5, 2), 1.0)), ValueError, r"needs \.to_event\(1\)"),
        (lambda: mutual_information(Gamma(torch.ones(5), 1.0)), TypeError, "expected a diagonal or full-rank normal"),
        (lambda: mutual_information(some("diagonal"), outer=201), ValueError, "outer: expected 1 to 200"),
        (lambda: mutual_information(some("diagonal", n=1), leave_one_out=True), ValueError, "at least 2 encodings"),
        (lambda: mutual_information(some("diagonal"), samples=0), ValueError, "at least 1 draw"),
        (lambda: active_units(some("diagonal", n=1)), ValueError, "at least 2 encodings"),
        (lambda: rate_per_dimension(some("diagonal"), student_t()), TypeError, "prior: expected a normal distribution"),
        (lambda: marginal_rate(some("diagonal"), standard_normal(2)), ValueError, "training: expected the event shape"),
    ],
)
def test_invalid_input_raises(call: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()  # type: ignore[operator]
