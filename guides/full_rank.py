"""The full-rank Gaussian guide."""

import pyro.distributions as dist
import torch
from torch import Tensor

from pyrovae.guides.guide import Guide, scale


class FullRank(Guide):
    """The Gaussian q(z|x) = N(z; μ(x), L(x) L(x)ᵀ) with L lower-triangular.

    Unlike a mean-field guide, it can represent correlated posteriors, such as that of a linear decoder.

    Args:
        encoder: x → features: μ, log diag L, and the entries of L below the diagonal, row by row.
        latent_size: number of latent dimensions.

    Example:
        >>> from pyrovae.guides import FullRank
        >>> from pyrovae.networks import MLP
        >>> FullRank(MLP((1, 8, 8), (16,), FullRank.features(3)), 3)
        FullRank: q(z|x)
          z ~ MultivariateNormal(μ(x), L(x) L(x)ᵀ) [3]
          (μ, log diag L, L below) = MLP(64 → 16 → 9)
    """

    @staticmethod
    def features(latent_size: int) -> int:
        return latent_size * (latent_size + 3) // 2

    def distribution(self, h: Tensor) -> dist.Distribution:
        (d,) = self.event_shape
        loc, log_diagonal, below = h.split([d, d, d * (d - 1) // 2], dim=-1)
        row, column = torch.tril_indices(d, d, offset=-1, device=loc.device)
        strict = loc.new_zeros(*loc.shape[:-1], d * d).index_copy(-1, row * d + column, below)
        return dist.MultivariateNormal(loc, scale_tril=strict.unflatten(-1, (d, d)) + scale(log_diagonal).diag_embed())

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}: q(z|x)\n"
            f"  z ~ MultivariateNormal(μ(x), L(x) L(x)ᵀ) {list(self.event_shape)}\n"
            f"  (μ, log diag L, L below) = {self.encoder!r}"
        )
