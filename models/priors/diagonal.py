"""The diagonal Gaussian prior."""

import pyro.distributions as dist
import torch
from torch import nn

from pyrovae.models.priors.prior import Prior


class Diagonal(Prior):
    """The diagonal Gaussian p(z) = N(z; m, diag s²) with learned m and log s, initially N(0, I).

    It does not change the family of models, because encoder and decoder can shift and scale z themselves.

    Args:
        latent_size: number of latent dimensions d.

    Shapes: a distribution with event shape ``[latent_size]``.

    Example:
        >>> Diagonal(10)().event_shape
        torch.Size([10])
    """

    def __init__(self, latent_size: int) -> None:
        super().__init__(latent_size)
        self.loc = nn.Parameter(torch.zeros(latent_size))
        self.log_scale = nn.Parameter(torch.zeros(latent_size))

    def forward(self) -> dist.Distribution:
        return dist.Normal(self.loc, self.log_scale.exp()).to_event(1)
