"""The standard normal prior."""

import pyro.distributions as dist
import torch
from torch import Tensor

from pyrovae.models.priors.prior import Prior


class StandardNormal(Prior):
    """The spherical Gaussian p(z) = N(z; 0, I) (Kingma & Welling 2014).

    Args:
        latent_size: number of latent dimensions d.

    Shapes: a distribution with event shape ``[latent_size]``.

    Example:
        >>> StandardNormal(10)().event_shape
        torch.Size([10])
    """

    loc: Tensor
    scale: Tensor

    def __init__(self, latent_size: int) -> None:
        super().__init__(latent_size)
        self.register_buffer("loc", torch.zeros(latent_size), persistent=False)
        self.register_buffer("scale", torch.ones(latent_size), persistent=False)

    def forward(self) -> dist.Distribution:
        return dist.Normal(self.loc, self.scale).to_event(1)
