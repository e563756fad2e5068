"""How far importance weights can be trusted: Pareto k̂ and the effective sample size."""

import math
from typing import NamedTuple

import numpy as np
import torch
from arviz_stats.base import array_stats
from torch import Tensor

#: Fewest draws whose tail can be fitted: it has to hold five.
MIN_TAIL = 25
#: Largest weights within this many nats are called the same: rounding may be all that tells them apart.
ALIKE = 0.01


class Diagnostics(NamedTuple):
    """Pareto k̂ and effective sample size of the importance weights of each image, ``[n]`` each."""

    pareto_k: Tensor
    ess: Tensor


def importance_diagnostics(log_w: Tensor) -> Diagnostics:
    """Pareto k̂ and effective sample size of importance weights, from Pareto smoothing (Vehtari et al. 2024, JMLR 25).

    k̂ is the shape of a generalised Pareto distribution fitted to the largest weights: moments of order 1/k̂ and above
    are infinite, and where k̂ exceeds `pareto_k_threshold` the mean of so many weights is not to be trusted. The
    effective sample size is 1 / Σ_k w̄_k² of the smoothed and normalised weights. The smoothed weights serve for
    nothing else: their mean is no bound.

    Args:
        log_w: log weights, ``[n, K]``.

    Returns:
        k̂ and effective sample size, ``[n]`` each, in float64. k̂ is −∞ where the largest weights are all the same,
        as under the exact posterior. Both are NaN where a weight is NaN or infinite, k̂ also where K is below 25.

    Example:
        >>> import torch
        >>> noise = torch.randn(1, 4000, generator=torch.Generator().manual_seed(0))
        >>> trusted = importance_diagnostics(0.1 * noise)  # weights that hardly differ, and weights that do
        >>> bool(trusted.pareto_k < 0.5) and bool(trusted.ess > 3900)
        True
        >>> bool(importance_diagnostics(8 * noise).pareto_k > pareto_k_threshold(4000))
        True
    """
    rows = [_of_image(row) for row in log_w.double().cpu().numpy()]
    k, ess = torch.tensor(rows, dtype=torch.float64).reshape(-1, 2).to(log_w.device).unbind(1)
    return Diagnostics(k, ess)


def pareto_k_threshold(particles: int) -> float:
    """The k̂ above which the mean of K weights is not to be trusted, min(1 − 1 / log₁₀ K, 0.7).

    Source: Vehtari et al. 2024, Pareto smoothed importance sampling, JMLR 25(72).

    Example:
        >>> pareto_k_threshold(100), pareto_k_threshold(10_000)
        (0.5, 0.7)
    """
    return min(1 - 1 / math.log10(particles), 0.7)


def _of_image(log_w: np.ndarray) -> tuple[float, float]:
    largest = log_w.max()
    if not np.isfinite(largest):
        return math.nan, math.nan
    log_w = log_w - largest
    if len(log_w) < MIN_TAIL:
        return math.nan, _size(log_w)
    # As many as the fit takes for its tail, and the one that it cuts at.
    tail = math.floor(3 * len(log_w) ** 0.5) if len(log_w) > 225 else len(log_w) // 5
    if np.partition(log_w, -tail - 1)[-tail - 1] > -ALIKE:
        return -math.inf, _size(log_w)
    with np.errstate(all="ignore"):  # a tail of few different values has no fit, and k̂ is then NaN
        smoothed, k = array_stats.psislw(-log_w)
    return float(k), _size(smoothed)


def _size(log_w: np.ndarray) -> float:
    w = np.exp(log_w)
    return float(w.sum() ** 2 / (w**2).sum())
