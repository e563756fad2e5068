"""Closed forms of the linear-Gaussian pair, compared with definitions, gradients and simulation."""

import math
from dataclasses import replace

import mpmath
import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence

from pyrovae.estimators import LinearGaussian

BETAS = [0.01, 0.1, 1.0, 3.0, 10.0]


def pair(beta: float = 1.0, latent: int = 3) -> LinearGaussian:
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(5, 5, generator=generator, dtype=torch.float64)
    return LinearGaussian(root @ root.T, torch.randn(5, latent, generator=generator, dtype=torch.float64), 0.6, beta)


def loss(of: LinearGaussian, A: Tensor, S: Tensor) -> Tensor:
    """D + β R of any linear encoder N(A x, S)."""
    W, C, d = of.weight, of.covariance, of.weight.shape[1]
    residual = torch.eye(len(C), dtype=C.dtype) - W @ A
    squares = (residual @ C @ residual.T).trace() + (W @ S @ W.T).trace()
    distortion = squares / (2 * of.scale**2) + len(C) / 2 * math.log(2 * math.pi * of.scale**2)
    return distortion + of.beta * ((A @ C @ A.T).trace() + S.trace() - d - S.logdet()) / 2


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("latent", [1, 3])
def test_encoder_minimises_the_loss(beta: float, latent: int) -> None:
    of = pair(beta, latent)
    A, S = of.encoder.requires_grad_(), of.posterior_covariance.requires_grad_()
    value = loss(of, A, S)
    assert abs(value.item() - (of.distortion + beta * of.rate)) < 1e-9
    for gradient in torch.autograd.grad(value, (A, S)):
        assert gradient.abs().max() < 1e-8 * max(1, 1 / beta)


@pytest.mark.parametrize("beta", BETAS)
def test_closed_form_rate_is_information_plus_gap(beta: float) -> None:
    of = pair(beta)
    V = of.marginal
    zero = torch.zeros(3, dtype=torch.float64)
    prior = MultivariateNormal(zero, torch.eye(3, dtype=torch.float64))
    assert abs(of.prior_gap - kl_divergence(V, prior).item()) < 1e-9
    posterior = MultivariateNormal(zero, of.posterior_covariance)
    assert abs(of.mutual_information - (V.entropy() - posterior.entropy()).item()) < 1e-9
    assert abs(of.rate - of.mutual_information - of.prior_gap) < 1e-9


def test_elbo_is_tight_only_at_beta_one() -> None:
    gaps = {beta: pair(beta).log_likelihood + pair(beta).distortion + pair(beta).rate for beta in BETAS}
    assert abs(gaps[1.0]) < 1e-9
    assert all(gap > 1e-3 for beta, gap in gaps.items() if beta != 1)
    of = pair()
    marginal = MultivariateNormal(
        torch.zeros(5, dtype=torch.float64), of.weight @ of.weight.T + 0.36 * torch.eye(5, dtype=torch.float64)
    )
    x = torch.randn(200_000, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    values = marginal.log_prob(x @ torch.linalg.cholesky(of.covariance).T)
    assert abs(values.mean().item() - of.log_likelihood) < 4.27 * values.std().item() / 200_000**0.5


def values_by_mpmath(of: LinearGaussian) -> dict[str, mpmath.mpf]:
    """The definitions, to 80 digits."""
    C, W, eye = mpmath.matrix(of.covariance.tolist()), mpmath.matrix(of.weight.tolist()), mpmath.eye
    D, d, square = W.rows, W.cols, mpmath.mpf(of.scale) ** 2
    S = (eye(d) + W.T * W / (square * of.beta)) ** -1
    A = S * W.T / (square * of.beta)
    V, M, residual = A * C * A.T + S, W * W.T + square * eye(D), eye(D) - W * A
    trace, log_det = (lambda X: mpmath.fsum(X[i, i] for i in range(X.rows))), (lambda X: mpmath.log(mpmath.det(X)))
    squares = trace(residual * C * residual.T) + trace(W * S * W.T)
    return {
        "distortion": squares / (2 * square) + D * mpmath.log(2 * mpmath.pi * square) / 2,
        "rate": (trace(V) - d - log_det(S)) / 2,
        "mutual_information": (log_det(V) - log_det(S)) / 2,
        "prior_gap": (trace(V) - d - log_det(V)) / 2,
        "log_likelihood": -(D * mpmath.log(2 * mpmath.pi) + log_det(M) + trace(M**-1 * C)) / 2,
    }


@pytest.mark.parametrize("scale", [1e-8, 1e-6, 1e-3, 1.0, 1e3])
@pytest.mark.parametrize("latent", [1, 3, 7])
@pytest.mark.parametrize("beta", [0.01, 1.0])
def test_closed_forms_match_mpmath_at_any_scale(scale: float, latent: int, beta: float) -> None:
    of = replace(pair(beta, latent), scale=scale)
    with mpmath.workdps(80):
        for name, expected in values_by_mpmath(of).items():
            assert abs(getattr(of, name) - expected) < 1e-12 * max(1, abs(expected)), name


@pytest.mark.parametrize("scale", [1e-8, 1e-3, 1e3])
@pytest.mark.parametrize("latent", [3, 7])
def test_encodings_have_the_moments_of_the_closed_form(scale: float, latent: int) -> None:
    of = replace(pair(1.0, latent), scale=scale)
    x = torch.randn(4, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    q = of.posterior(x)
    assert (q.batch_shape, q.event_shape) == ((4,), (latent,))
    torch.testing.assert_close(q.mean, x @ of.encoder.T)
    S = of.posterior_covariance
    torch.testing.assert_close(q.covariance_matrix, S.expand(4, -1, -1), rtol=1e-9, atol=1e-14 * float(S.abs().max()))
    information = (of.marginal.entropy() - q.entropy()).tolist()
    assert information == pytest.approx([of.mutual_information] * 4, rel=1e-8, abs=1e-12)
    gap = kl_divergence(of.marginal, MultivariateNormal(torch.zeros(latent).double(), torch.eye(latent).double()))
    assert of.prior_gap == pytest.approx(gap.item(), rel=1e-9, abs=1e-12)


def test_more_latent_dimensions_than_pixels_stay_unused() -> None:
    C = pair().covariance
    full, more = LinearGaussian.best(C, 5, 0.6), LinearGaussian.best(C, 8, 0.6)
    assert more.weight.shape == (5, 8)
    assert more.posterior(torch.zeros(2, 5)).event_shape == (8,)
    for name in ("distortion", "rate", "mutual_information", "prior_gap", "log_likelihood"):
        assert abs(getattr(more, name) - getattr(full, name)) < 1e-12


def test_best_pair_without_latent_dimensions_raises() -> None:
    with pytest.raises(ValueError, match="latent_size: expected at least 1, got 0"):
        LinearGaussian.best(pair().covariance, 0)


@pytest.mark.parametrize("size", [1e-12, 1e12])
def test_covariance_may_have_any_unit(size: float) -> None:
    C = pair().covariance
    of = LinearGaussian((size * C).float(), pair().weight * size**0.5, 0.6 * size**0.5)
    shift = 5 / 2 * math.log(size)  # of a density in five dimensions
    assert abs(of.log_likelihood + shift - pair().log_likelihood) < 1e-5
    assert abs(of.rate - pair().rate) < 1e-5
    with pytest.raises(ValueError, match="symmetric"):
        LinearGaussian(size * (C + C.triu(1)), pair().weight)


@pytest.mark.parametrize("beta", BETAS)
def test_slope_of_rate_distortion_curve_is_minus_beta(beta: float) -> None:
    def best(at: float) -> LinearGaussian:
        return LinearGaussian.best(pair().covariance, 3, 0.6, at)

    for make in (pair, best):
        step = 1e-4 * beta
        before, after = make(beta - step), make(beta + step)
        slope = (after.distortion - before.distortion) / (after.rate - before.rate)
        assert abs(slope + beta) < 1e-5 * beta


@pytest.mark.parametrize("beta", BETAS)
def test_best_decoder_minimises_the_loss(beta: float) -> None:
    best = LinearGaussian.best(pair().covariance, 3, 0.6, beta)
    generator = torch.Generator().manual_seed(2)
    for size in (1e-3, 1e-1, 1.0):
        step = size * torch.randn(5, 3, generator=generator, dtype=torch.float64)
        for weight in (best.weight + step, best.weight - step):
            other = replace(best, weight=weight)
            assert other.distortion + beta * other.rate > best.distortion + beta * best.rate - 1e-12


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"beta": 0.0}, "positive"),
        ({"covariance": torch.eye(4)}, "shape"),
        ({"covariance": -torch.eye(5)}, "positive semidefinite"),
    ],
)
def test_invalid_parameters_raise(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(pair(), **change)  # type: ignore[arg-type]
