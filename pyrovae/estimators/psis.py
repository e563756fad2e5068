"""Diagnostics of importance weights: Pareto k̂ and the effective sample size.

Everything is computed from logarithms of weights, which may be any number of nats apart.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

#: Fewest draws for a Pareto fit, whose tail needs five of them.
MIN_TAIL = 25
#: Weights within this many nats count as tied: they may differ by rounding alone.
TIE_TOLERANCE = 0.01
#: Logarithms up to this one have an exp in float64, also when negated or multiplied by the inverse scales of a fit.
MAX_EXPONENT = 700.0
#: The prior of k̂ counts as so many draws with this shape.
PRIOR_DRAWS, PRIOR_SHAPE = 10, 0.5


class Diagnostics(NamedTuple):
    """Pareto k̂ and effective sample size (ESS) of each image's importance weights, ``[n]`` each."""

    pareto_k: Tensor
    ess: Tensor


@torch.no_grad()
def importance_diagnostics(log_w: Tensor) -> Diagnostics:
    """Pareto k̂ and effective sample size of importance weights, from Pareto smoothing (Vehtari et al. 2024, JMLR 25).

    k̂ is the shape of a generalised Pareto distribution fitted to the largest weights. Moments of order 1/k̂ and above
    are infinite; where k̂ exceeds `pareto_k_threshold`, the mean of the weights is unreliable. The effective sample
    size is 1 / Σ_k w̄_k² of the smoothed, normalised weights. The smoothed weights are used for nothing else, because
    their mean is not a bound.

    Args:
        log_w: log weights, ``[n, K]``.

    Returns:
        k̂ and effective sample size, ``[n]`` each, in float64. k̂ is −∞ where the largest weights are tied, as under
        the exact posterior, and ∞ where most of them are zero. Both are NaN where a weight is NaN or infinite; k̂ is
        also NaN where K is below 25, or where a part of the largest weights is tied.

    Example:
        >>> import torch
        >>> noise = torch.randn(1, 4000, generator=torch.Generator().manual_seed(0))
        >>> even = importance_diagnostics(0.1 * noise)
        >>> bool(even.pareto_k < 0.5) and bool(even.ess > 3900)
        True
        >>> bool(importance_diagnostics(8 * noise).pareto_k > pareto_k_threshold(4000))  # a few weights dominate
        True
    """
    log_w = log_w.double()
    largest = log_w.amax(1, keepdim=True)
    log_w = (log_w - largest).masked_fill(~largest.isfinite(), torch.nan)
    if log_w.shape[1] < MIN_TAIL:
        return Diagnostics(torch.full_like(largest[:, 0], torch.nan), _ess(log_w))
    k, smoothed = _smoothed(log_w)
    return Diagnostics(k, _ess(smoothed))


def pareto_k_threshold(particles: int) -> float:
    """The k̂ above which the mean of K weights is unreliable, min(1 − 1 / log₁₀ K, 0.7).

    Source: Vehtari et al. 2024, Pareto smoothed importance sampling, JMLR 25(72).

    Example:
        >>> pareto_k_threshold(100), pareto_k_threshold(10_000)
        (0.5, 0.7)
    """
    return min(1 - 1 / math.log10(particles), 0.7)


def underflows(log_w: Tensor) -> Tensor:
    """Images ``[n]`` whose k̂ cannot be fitted to exp(log w), as ArviZ does: most of the tail is zero in float64.

    Args:
        log_w: log weights, ``[n, K]``, of which at least 25 make a fit.

    Example:
        >>> import torch
        >>> noise = torch.randn(1, 100, generator=torch.Generator().manual_seed(0))
        >>> underflows(torch.cat([100 * noise, 10_000 * noise])).tolist()
        [False, True]
    """
    if log_w.shape[1] < MIN_TAIL:
        return log_w.new_zeros(len(log_w), dtype=torch.bool)
    size = _tail_size(log_w.shape[1])
    ordered = log_w.double().topk(size).values
    return ordered[:, size - _quartile(size) - 1] - ordered[:, 0] < math.log(torch.finfo(torch.float64).tiny)


class _Pareto(NamedTuple):
    """Generalised Pareto distributions, with shape k̂ and the logarithm of their scale, ``[n, 1]`` each."""

    shape: Tensor
    log_scale: Tensor

    def log_quantile(self, p: Tensor) -> Tensor:
        """log of scale · ((1 − p)^−k̂ − 1) / k̂, ``[n, len(p)]``."""
        exponent = -self.shape * torch.log1p(-p)
        power = exponent.clamp(min=0) + (-torch.expm1(-exponent.abs())).log()
        return self.log_scale - self.shape.abs().log() + power


def _smoothed(log_w: Tensor) -> tuple[Tensor, Tensor]:
    """k̂ ``[n]``, and the log weights ``[n, K]`` with the largest replaced by quantiles of the fit, where there is one.

    Args:
        log_w: log weights whose maximum is 0, at least `MIN_TAIL`.
    """
    size = _tail_size(log_w.shape[1])
    top, rows = log_w.topk(size + 1)
    cutoff, tail = top[:, -1:], top[:, :-1].flip(1)
    # log (w − cutoff); where both are zero, so is the difference.
    excess = tail + (-torch.expm1((cutoff - tail).nan_to_num(0.0))).log()
    fit = _fitted(excess)
    k = fit.shape.masked_fill(fit.shape.isnan() & cutoff.isneginf(), torch.inf)
    k = k.masked_fill(cutoff > -TIE_TOLERANCE, -torch.inf)
    p = (torch.arange(size, device=log_w.device, dtype=log_w.dtype) + 0.5) / size
    quantiles = torch.logaddexp(cutoff, fit.log_quantile(p)).clamp(max=0.0)
    smoothed = torch.where(k.isfinite(), quantiles, tail)
    return k[:, 0], log_w.scatter(1, rows[:, :-1].flip(1), smoothed)


def _fitted(log_x: Tensor) -> _Pareto:
    """Fits x = exp(log_x), ascending in each row of ``[n, size]``; NaN where a quarter of a row is −∞.

    Source: Zhang & Stephens 2009, A new and efficient estimation method for the generalized Pareto distribution,
    Technometrics 51(3), with the prior of Vehtari et al. 2024. Inverse scales b are in units of 1 / x*, where x* is
    the first quartile, because b · x then neither overflows nor underflows where it matters.
    """
    size = log_x.shape[1]
    unit = log_x[:, _quartile(size), None]
    log_ratio = log_x - unit
    points = 30 + math.floor(size**0.5)
    grid = torch.arange(points, device=log_x.device, dtype=log_x.dtype) + 0.5
    b = (1 - (points / grid).sqrt()) / 3 + (-log_ratio[:, -1:]).exp()
    shape = _mean_log1p(b, log_ratio)
    w = (size * ((-b / shape).log() - shape)).softmax(1)
    b = (w * b).sum(1, keepdim=True)
    shape = _mean_log1p(b, log_ratio)
    log_scale = (-shape / b).log() + unit
    return _Pareto((size * shape + PRIOR_DRAWS * PRIOR_SHAPE) / (size + PRIOR_DRAWS), log_scale)


def _mean_log1p(b: Tensor, log_x: Tensor) -> Tensor:
    """Mean of log(1 − b x) over x: ``b`` is ``[n, points]``, and log x ``[n, size]``."""
    x, beyond = log_x.clamp(max=MAX_EXPONENT).exp(), (log_x - MAX_EXPONENT).clamp(min=0)
    return torch.log1p(-b.unsqueeze(2) * x.unsqueeze(1)).mean(2) + beyond.mean(1, keepdim=True)


def _tail_size(draws: int) -> int:
    """How many of the largest weights are fitted."""
    return math.floor(3 * draws**0.5) if draws > 225 else draws // 5


def _quartile(size: int) -> int:
    """Row of the first quartile of ascending values."""
    return math.floor(size / 4 + 0.5) - 1


def _ess(log_w: Tensor) -> Tensor:
    return (2 * log_w.logsumexp(1) - (2 * log_w).logsumexp(1)).exp()
