"""The two-level model p(z2) p(z1|z2) p(x|z1) as a Pyro program."""

from typing import Any

import pyro
import pyro.distributions as dist
from pyro import poutine
from torch import Tensor, nn

from pyrovae.models.vae import VAE
from pyrovae.networks import MLP, Count


class HierarchicalVAE(VAE):
    """The two-level model p(x, z1, z2) = p(z2) p(z1|z2) p(x|z1), with its latent sites scaled by β (Burda et al. 2016).

    p(z1|z2) is a diagonal Gaussian. Its guide is `Hierarchical`. R is the sum over both levels.

    Args:
        prior: () → p(z2).
        decoder: z1 → features.
        likelihood: features → p(x|z1).
        level_width: units of the hidden layer from z2 to z1.

    Example:
        >>> from pyrovae.models import HierarchicalVAE
        >>> from pyrovae.models.likelihoods import Bernoulli
        >>> from pyrovae.models.priors import StandardNormal
        >>> from pyrovae.networks import MLP
        >>> HierarchicalVAE(StandardNormal(2), MLP((2,), (16,), 64), Bernoulli((1, 8, 8)), level_width=8)
        HierarchicalVAE: p(z2) p(z1|z2) p(x|z1)
          z2 ~ StandardNormal [2]
          z1 ~ Normal(μ(z2), σ(z2)) [2]
          x ~ Bernoulli(decoder(z1)) [1, 8, 8]
          (μ, log σ) = MLP(2 → 8 → 4)
          decoder = MLP(2 → 16 → 64)
    """

    def __init__(self, prior: nn.Module, decoder: nn.Module, likelihood: nn.Module, level_width: Count = 512) -> None:
        super().__init__(prior, decoder, likelihood)
        (size,) = prior.event_shape  # type: ignore[misc]
        self.below = MLP((size,), (level_width,), 2 * size)

    def forward(  # type: ignore[override]
        self, x: Tensor | None = None, beta: float | Tensor = 1.0, n: int = 1
    ) -> Tensor:
        """Runs the program, conditioned on images ``x`` ``[batch, *event_shape]`` or sampling ``n`` of them."""
        with pyro.plate("data", n if x is None else len(x)):
            with poutine.scale(scale=beta):
                z2 = pyro.sample("z2", self.prior())
                loc, log_scale = self.below(z2).chunk(2, dim=-1)
                z1 = pyro.sample("z1", dist.Normal(loc, log_scale.exp()).to_event(1))
            return pyro.sample("x", self.observed(z1, x), obs=x)

    def __repr__(self) -> str:
        prior: Any = self.prior
        likelihood: Any = self.likelihood
        size = list(prior.event_shape)
        return (
            f"{type(self).__name__}: p(z2) p(z1|z2) p(x|z1)\n"
            f"  z2 ~ {type(prior).__name__} {size}\n"
            f"  z1 ~ Normal(μ(z2), σ(z2)) {size}\n"
            f"  x ~ {type(likelihood).__name__}(decoder(z1)) {list(likelihood.event_shape)}{self._given}\n"
            f"  (μ, log σ) = {self.below!r}\n"
            f"  decoder = {self.decoder!r}"
        )
