"""Gaussian vectors x ~ N(0, C), for which the linear pair has closed forms."""

import torch
from torch import Tensor

from pyrovae.data import Source

SIZE = 32_768
#: Variances along the principal axes of C.
VARIANCES = (16.0, 8.0, 4.0, 2.0, 1.0, 0.5)


def covariance() -> Tensor:
    """The covariance C = U diag(λ) Uᵀ, with U a fixed rotation, ``[6, 6]`` in float64.

    Example:
        >>> import torch
        >>> [round(value, 3) for value in torch.linalg.eigvalsh(covariance()).tolist()]
        [0.5, 1.0, 2.0, 4.0, 8.0, 16.0]
    """
    axes = _axes()
    return axes * torch.tensor(VARIANCES, dtype=torch.float64) @ axes.T


def source() -> Source:
    """Linear: 32,768 Gaussian vectors of 6 numbers."""
    draws = torch.randn(SIZE, len(VARIANCES), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    vectors = (draws * torch.tensor(VARIANCES, dtype=torch.float64).sqrt() @ _axes().T).float()
    return Source("linear", SIZE, lambda rows: vectors[rows])


def _axes() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.linalg.qr(torch.randn(len(VARIANCES), len(VARIANCES), generator=generator, dtype=torch.float64))[0]
