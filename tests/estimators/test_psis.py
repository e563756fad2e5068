"""Pareto k̂ and effective sample size, compared with ArviZ, higher precision and weights of known shape."""

import math

import mpmath
import numpy as np
import pytest
import torch
from arviz_stats.base import array_stats
from seeds import any_seed
from torch import Tensor

from pyrovae.estimators import importance_diagnostics, pareto_k_threshold

#: Failure rate 2e-5, two-sided.
TWO_SIDED = 4.27


def normal(rows: int, draws: int) -> Tensor:
    return torch.randn(rows, draws, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def smoothed_by_arviz(log_w: Tensor) -> tuple[float, float]:
    log_smoothed, k = array_stats.psislw(-log_w.numpy())
    w = np.exp(log_smoothed)
    return float(k), float(w.sum() ** 2 / (w**2).sum())


def pareto_k_by_mpmath(log_w: Tensor) -> float:
    """k̂ by Zhang & Stephens 2009, with the prior of Vehtari et al. 2024, from weights to 50 digits."""
    with mpmath.workdps(50):
        w = sorted(mpmath.exp(each) for each in log_w.tolist())
        size = math.floor(3 * len(w) ** 0.5) if len(w) > 225 else len(w) // 5
        x = [each - w[-size - 1] for each in w[-size:]]
        points = 30 + math.floor(size**0.5)
        quartile = x[math.floor(size / 4 + 0.5) - 1]
        b = [(1 - mpmath.sqrt(points / mpmath.mpf(j + 0.5))) / (3 * quartile) + 1 / x[-1] for j in range(points)]
        shape = [mpmath.fsum(mpmath.log(1 - each * x_i) for x_i in x) / size for each in b]
        log_posterior = [size * (mpmath.log(-each / k) - k - 1) for each, k in zip(b, shape, strict=True)]
        posterior = [mpmath.exp(each - max(log_posterior)) for each in log_posterior]
        mean = mpmath.fsum(p * each for p, each in zip(posterior, b, strict=True)) / mpmath.fsum(posterior)
        k = mpmath.fsum(mpmath.log(1 - mean * x_i) for x_i in x) / size
        return float((size * k + 5) / (size + 10))


@pytest.mark.parametrize("draws", [25, 226, 5000])
@pytest.mark.parametrize("spread", [0.1, 1.0, 10.0, 100.0])
def test_diagnostics_match_arviz_on_moderate_weights(draws: int, spread: float) -> None:
    log_w = spread * normal(20, draws)
    found = importance_diagnostics(log_w)
    expected = torch.tensor([smoothed_by_arviz(row) for row in log_w], dtype=torch.float64)
    torch.testing.assert_close(torch.stack(found, 1), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("spread", [1e-2, 1.0, 1e2, 1e3, 1e5])
@pytest.mark.parametrize("draws", [25, 500])
def test_pareto_k_matches_mpmath_at_any_spread(draws: int, spread: float) -> None:
    log_w = spread * normal(2, draws)
    expected = torch.tensor([pareto_k_by_mpmath(row) for row in log_w], dtype=torch.float64)
    torch.testing.assert_close(importance_diagnostics(log_w).pareto_k, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("lead", [700.0, 708.0, 720.0, 1e5])
def test_leading_weight_is_flagged_however_far_ahead(lead: float) -> None:
    log_w = 0.1 * normal(1, 1000).repeat(3, 1)
    log_w[0, 17] += lead
    log_w[1, :2] += torch.tensor([lead, 2 * lead])
    log_w[2, :30] += lead * torch.arange(1, 31)
    found = importance_diagnostics(log_w)
    assert (found.pareto_k > pareto_k_threshold(1000)).all()
    assert (found.ess < 2).all()
    expected = torch.tensor([pareto_k_by_mpmath(row) for row in log_w], dtype=torch.float64)
    torch.testing.assert_close(found.pareto_k, expected, rtol=1e-9, atol=1e-9)


def test_diagnostics_are_independent_of_a_constant_factor() -> None:
    log_w = 3 * normal(5, 400)
    for nats in (-1e5, 1e5):
        for ours, expected in zip(importance_diagnostics(log_w + nats), importance_diagnostics(log_w), strict=True):
            torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-6)


@any_seed
@pytest.mark.parametrize("shape", [0.2, 0.5, 0.9])
def test_pareto_k_recovers_the_shape_of_a_pareto_distribution(shape: float, seed: int) -> None:
    draws = torch.empty(10, 50_000, dtype=torch.float64).exponential_(generator=torch.Generator().manual_seed(seed))
    found = importance_diagnostics(shape * draws)  # w = exp(shape · E) is Pareto with that shape
    tail = 3 * 50_000**0.5
    # The fit has a prior at 1/2 that counts as ten draws.
    bias, error = 10 / (tail + 10) * abs(shape - 0.5), (1 + shape) / (10 * tail) ** 0.5
    assert abs(found.pareto_k.mean() - shape) < bias + TWO_SIDED * error


def test_diagnostics_handle_degenerate_weights() -> None:
    noise = torch.randn(3, 100, dtype=torch.float64)
    noise[0, 5], noise[1, 5] = math.nan, math.inf
    noise[2, :40] = -math.inf  # draws with weight zero
    found = importance_diagnostics(noise)
    assert found.pareto_k.isnan().tolist() == found.ess.isnan().tolist() == [True, True, False]
    assert found.ess[2] < 60
    constant = importance_diagnostics(torch.zeros(1, 100))
    assert (constant.pareto_k.item(), constant.ess.item()) == (-math.inf, pytest.approx(100))
    few = importance_diagnostics(torch.zeros(1, 10))
    assert few.pareto_k.isnan()
    assert few.ess.item() == pytest.approx(10)


def test_pareto_k_is_infinite_where_few_weights_are_not_zero() -> None:
    log_w = torch.full((2, 100), -torch.inf, dtype=torch.float64)
    log_w[0, 0] = 3.0
    log_w[1, :15] = normal(1, 15)  # of a tail of 20
    found = importance_diagnostics(log_w)
    assert found.pareto_k.tolist() == [math.inf, math.inf]
    assert found.ess[0].item() == pytest.approx(1)
    w = log_w[1].exp()
    assert found.ess[1].item() == pytest.approx((w.sum() ** 2 / w.square().sum()).item())


def test_pareto_k_is_unknown_where_largest_weights_are_partly_tied() -> None:
    log_w = torch.zeros(1, 100)
    log_w[0, :10] = math.log(2)
    found = importance_diagnostics(log_w)
    assert found.pareto_k.isnan()
    assert found.ess.item() == pytest.approx(110**2 / 130)
