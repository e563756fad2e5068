"""Numerics that torch lacks, for every layer."""

import math

import torch
from torch import Tensor

#: Below this, a term of `logsumexp` counts nothing next to the largest one, which is e⁰.
_NEGLIGIBLE = -80.0


def logsumexp(x: Tensor, dim: int) -> Tensor:
    """log Σ exp(x) along a dimension, as `torch.logsumexp`, and as fast where the terms differ much in size.

    On a CPU, exp takes a hundred times as long where its result underflows, as it does for almost all encodings that a
    mixture of them adds up. Terms are bounded at e⁻⁸⁰ times the largest one.

    Example:
        >>> logsumexp(torch.tensor([[0.0, -1e4], [-torch.inf, -torch.inf]]), 1)
        tensor([0., -inf])
    """
    largest = x.detach().amax(dim, keepdim=True)
    terms = (x - largest).clamp(min=_NEGLIGIBLE).exp()
    return torch.where(largest.isfinite(), terms.sum(dim, keepdim=True).log() + largest, largest).squeeze(dim)


def normal_log_densities(z: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    """log N(z_n; μ_m, diag σ_m²) of points ``[..., n, d]`` under M normal distributions ``[M, d]``: ``[..., n, M]``.

    A product of (z², z) and (−1/2σ², μ/σ²), which takes a tenth of the time of differences but loses about
    ε (|z| + |μ|)²/σ² nats to rounding.

    Example:
        >>> z, loc, scale = torch.ones(3, 2), torch.zeros(4, 2), torch.ones(4, 2)
        >>> torch.allclose(normal_log_densities(z, loc, scale), -torch.tensor(1 + math.log(2 * math.pi)))
        True
    """
    precision = scale.square().reciprocal()
    constant = -(precision * loc.square() / 2 + scale.log() + math.log(2 * math.pi) / 2).sum(-1)
    return torch.cat([z.square(), z], -1) @ torch.cat([-precision / 2, precision * loc], -1).mT + constant
