"""The Gaussian mixture prior."""

import math

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrovae.models.priors.prior import Prior, VectorMixture
from pyrovae.networks import Count


class Mixture(Prior):
    """The learned mixture p(z) = Σ_k w_k N(z; m_k, diag s_k²) of K diagonal Gaussians (Dilokthanakul et al. 2016).

    One component generates all dimensions of z. Initially, locations are draws from N(0, I), scales are 1, and weights
    are equal.

    Args:
        latent_size: number of latent dimensions d.
        components: number of components K.

    Shapes: a distribution with event shape ``[latent_size]``.

    Example:
        >>> Mixture(10, components=3)().event_shape
        torch.Size([10])
    """

    def __init__(self, latent_size: int, components: Count = 100) -> None:
        super().__init__(latent_size)
        self.logits = nn.Parameter(torch.zeros(components))
        self.loc = nn.Parameter(torch.randn(components, latent_size))
        self.log_scale = nn.Parameter(torch.zeros(components, latent_size))

    @torch.no_grad()
    def start_at(self, z: Tensor) -> None:
        """Sets locations to points ``[n, latent_size]`` and scales to their standard deviation times K^(−1/d)."""
        components, size = self.loc.shape
        self.loc.copy_(z[torch.arange(components) % len(z)])
        self.log_scale.copy_((z.std(0).log() - math.log(components) / size).expand_as(self.log_scale))

    def forward(self) -> dist.Distribution:
        components = dist.Normal(self.loc, self.log_scale.exp()).to_event(1)
        return VectorMixture(dist.Categorical(logits=self.logits), components)
