"""The Gaussian likelihood."""

import math
from collections.abc import Sequence

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints


class Gaussian(nn.Module):
    """Independent values p(x|h) = ∏ᵢ N(xᵢ; hᵢ, σ²) with one fixed σ, a density in the units of x.

    Args:
        event_shape: shape of one image.
        scale: σ.

    Shapes: features ``[..., features]`` → a distribution with event shape ``event_shape``.

    Example:
        >>> import torch
        >>> Gaussian((1, 2, 2))(torch.zeros(7, 4)).log_prob(torch.ones(7, 1, 2, 2)).shape
        torch.Size([7])
    """

    def __init__(self, event_shape: Sequence[int], scale: float = 1.0) -> None:
        super().__init__()
        self.event_shape = torch.Size(event_shape)
        self.features = self.event_shape.numel()
        self.support = constraints.real
        self.scale = scale

    def forward(self, h: Tensor) -> dist.Distribution:
        return dist.Normal(h.unflatten(-1, self.event_shape), self.scale).to_event(len(self.event_shape))

    def initial_features(self, mean: Tensor) -> Tensor:
        """Features at which the likelihood has its mean at the mean image."""
        return mean.flatten()

    def floor(self, x: Tensor) -> Tensor:
        """Smallest distortion that any decoder can reach, that at h = x: ``[n, *event_shape] → [n]``, in nats.

        Example:
            >>> import torch
            >>> Gaussian((1, 1, 2)).floor(torch.zeros(1, 1, 1, 2))
            tensor([1.8379])
        """
        return x.new_full((len(x),), self.features * math.log(self.scale * math.sqrt(2 * math.pi)))
