"""The guide of the two-level model."""

from typing import Any

import pyro
import pyro.distributions as dist
from pyro import poutine
from torch import Tensor, nn

from pyrovae.guides.guide import scale
from pyrovae.guides.mean_field import MeanField
from pyrovae.networks import MLP, Count


class Hierarchical(MeanField):
    """The bottom-up guide q(z1|x) q(z2|z1) of `HierarchicalVAE`, both diagonal Gaussians (Burda et al. 2016).

    z1 is sampled before z2, so the rates have no closed form.

    Args:
        encoder: x → features, μ and log σ of z1.
        latent_size: number of latent dimensions of either level.
        level_width: units of the hidden layer from z1 to z2.

    Example:
        >>> from pyrovae.guides import Hierarchical
        >>> from pyrovae.networks import MLP
        >>> Hierarchical(MLP((1, 8, 8), (16,), 4), 2, level_width=8)
        Hierarchical: q(z1|x) q(z2|z1)
          z1 ~ Normal(μ(x), σ(x)) [2]
          z2 ~ Normal(μ(z1), σ(z1)) [2]
          (μ, log σ)(x) = MLP(64 → 16 → 4)
          (μ, log σ)(z1) = MLP(2 → 8 → 4)
    """

    def __init__(self, encoder: nn.Module, latent_size: int, level_width: Count = 512) -> None:
        super().__init__(encoder, latent_size)
        self.above = MLP((latent_size,), (level_width,), 2 * latent_size)

    def forward(self, x: Tensor, beta: float | Tensor = 1.0, **model_arguments: Any) -> Tensor:
        """Runs the program on images ``x`` ``[batch, *event_shape]``."""
        with pyro.plate("data", len(x)), poutine.scale(scale=beta):
            z1 = pyro.sample("z1", self.posterior(x))
            loc, log_scale = self.above(z1).chunk(2, dim=-1)
            return pyro.sample("z2", dist.Normal(loc, scale(log_scale)).to_event(1))

    def __repr__(self) -> str:
        size = list(self.event_shape)
        return (
            f"{type(self).__name__}: q(z1|x) q(z2|z1)\n"
            f"  z1 ~ Normal(μ(x), σ(x)) {size}\n"
            f"  z2 ~ Normal(μ(z1), σ(z1)) {size}\n"
            f"  (μ, log σ)(x) = {self.encoder!r}\n"
            f"  (μ, log σ)(z1) = {self.above!r}"
        )
