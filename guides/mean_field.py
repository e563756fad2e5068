"""The mean-field Gaussian guide."""

import pyro.distributions as dist
from torch import Tensor

from pyrovae.guides.guide import Guide, scale


class MeanField(Guide):
    """The diagonal Gaussian q(z|x) = N(z; μ(x), diag σ²(x)) with log σ ≥ −30 (Kingma & Welling 2014).

    Args:
        encoder: x → features, μ and log σ.
        latent_size: number of latent dimensions.

    Example:
        >>> from pyrovae.guides import MeanField
        >>> from pyrovae.networks import MLP
        >>> MeanField(MLP((1, 8, 8), (16,), 4), 2)
        MeanField: q(z|x)
          z ~ Normal(μ(x), σ(x)) [2]
          (μ, log σ) = MLP(64 → 16 → 4)
    """

    @staticmethod
    def features(latent_size: int) -> int:
        return 2 * latent_size

    def distribution(self, h: Tensor) -> dist.Distribution:
        loc, log_scale = h.chunk(2, dim=-1)
        return dist.Normal(loc, scale(log_scale)).to_event(1)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}: q(z|x)\n"
            f"  z ~ Normal(μ(x), σ(x)) {list(self.event_shape)}\n"
            f"  (μ, log σ) = {self.encoder!r}"
        )
