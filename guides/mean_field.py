"""The mean-field Gaussian guide."""

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.nn import PyroModule
from torch import Tensor, nn


class MeanField(PyroModule):
    """The diagonal Gaussian q(z|x) = N(z; μ(x), diag σ²(x)), with its site scaled by β (Kingma & Welling 2014).

    Args:
        encoder: features of x; the first half is μ, the second log σ.
        latent_size: number of latent dimensions.

    Example:
        >>> from pyrovae.guides import MeanField
        >>> from pyrovae.networks import MLP
        >>> MeanField(MLP((1, 8, 8), (16,), 4), 2)
        MeanField: q(z|x)
          z ~ Normal(μ(x), σ(x)) [2]
          (μ, log σ) = MLP(64 → 16 → 4)
    """

    def __init__(self, encoder: nn.Module, latent_size: int) -> None:
        super().__init__("guide")
        self.event_shape = torch.Size([latent_size])
        self.encoder = encoder

    @staticmethod
    def features(latent_size: int) -> int:
        """Number of features that the encoder has to give."""
        return 2 * latent_size

    def posterior(self, x: Tensor) -> dist.Distribution:
        """The approximate posterior q(z|x): images ``[batch, *event_shape]`` → batch shape [batch]."""
        loc, log_scale = self.encoder(x).chunk(2, dim=-1)
        return dist.Normal(loc, log_scale.exp()).to_event(1)

    def forward(self, x: Tensor, beta: float | Tensor = 1.0) -> Tensor:
        """Runs the program on images ``x`` [batch, *event_shape]."""
        with pyro.plate("data", len(x)), poutine.scale(scale=beta):
            return pyro.sample("z", self.posterior(x))

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}: q(z|x)\n"
            f"  z ~ Normal(μ(x), σ(x)) {list(self.event_shape)}\n"
            f"  (μ, log σ) = {self.encoder!r}"
        )
