"""Diagnostics of importance weights: Pareto k̂ and the effective sample size."""

import math
from typing import NamedTuple

import numpy as np
import torch
from arviz_stats.base import array_stats
from torch import Tensor

#: Fewest draws for a Pareto fit, whose tail needs five of them.
MIN_TAIL = 25
#: Weights within this many nats count as tied: they may differ by rounding alone.
TIE_TOLERANCE = 0.01


class Diagnostics(NamedTuple):
    """Pareto k̂ and effective sample size (ESS) of each image's importance weights, ``[n]`` each."""

    pareto_k: Tensor
    ess: Tensor


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
        the exact posterior. Both are NaN where a weight is NaN or infinite; k̂ is also NaN where K is below 25.

    Example:
        >>> import torch
        >>> noise = torch.randn(1, 4000, generator=torch.Generator().manual_seed(0))
        >>> even = importance_diagnostics(0.1 * noise)
        >>> bool(even.pareto_k < 0.5) and bool(even.ess > 3900)
        True
        >>> bool(importance_diagnostics(8 * noise).pareto_k > pareto_k_threshold(4000))  # a few weights dominate
        True
    """
    rows = [_diagnose(row) for row in log_w.double().cpu().numpy()]
    k, ess = torch.tensor(rows, dtype=torch.float64).reshape(-1, 2).to(log_w.device).unbind(1)
    return Diagnostics(k, ess)


def pareto_k_threshold(particles: int) -> float:
    """The k̂ above which the mean of K weights is unreliable, min(1 − 1 / log₁₀ K, 0.7).

    Source: Vehtari et al. 2024, Pareto smoothed importance sampling, JMLR 25(72).

    Example:
        >>> pareto_k_threshold(100), pareto_k_threshold(10_000)
        (0.5, 0.7)
    """
    return min(1 - 1 / math.log10(particles), 0.7)


def _diagnose(log_w: np.ndarray) -> tuple[float, float]:
    largest = log_w.max()
    if not np.isfinite(largest):
        return math.nan, math.nan
    log_w = log_w - largest
    if len(log_w) < MIN_TAIL:
        return math.nan, _ess(log_w)
    # The length of the tail that `psislw` fits.
    tail = math.floor(3 * len(log_w) ** 0.5) if len(log_w) > 225 else len(log_w) // 5
    if np.partition(log_w, -tail - 1)[-tail - 1] > -TIE_TOLERANCE:
        return -math.inf, _ess(log_w)
    with np.errstate(all="ignore"):  # a tail of mostly tied values has no fit: k̂ is NaN
        smoothed, k = array_stats.psislw(-log_w)
    return float(k), _ess(smoothed)


def _ess(log_w: np.ndarray) -> float:
    w = np.exp(log_w)
    return float(w.sum() ** 2 / (w**2).sum())
