"""The Bernoulli likelihood."""

import pyro.distributions as dist
from torch import Tensor
from torch.distributions import constraints
from torch.nn.functional import binary_cross_entropy

from pyrovae.models.likelihoods.likelihood import Likelihood


class Bernoulli(Likelihood):
    """Independent pixels p(x|h) = ∏ᵢ σ(hᵢ)^xᵢ (1 − σ(hᵢ))^(1 − xᵢ).

    On binary pixels this is a normalised density. On grey pixels in [0, 1] the same expression is a
    cross-entropy: it is used all the same in the paper, and its floor is then the pixels' entropy.

    Args:
        event_shape: shape of one image.

    Shapes: features ``[..., features]`` → a distribution with event shape ``event_shape``.

    Example:
        >>> import torch
        >>> Bernoulli((1, 2, 2))(torch.zeros(7, 4)).log_prob(torch.ones(7, 1, 2, 2)).shape
        torch.Size([7])
    """

    support = constraints.unit_interval

    def forward(self, h: Tensor) -> dist.Distribution:
        logits = h.unflatten(-1, self.event_shape)
        # The support check would refuse grey pixels.
        return dist.Bernoulli(logits=logits, validate_args=False).to_event(len(self.event_shape))

    def initial_features(self, mean: Tensor) -> Tensor:
        """Features at which the likelihood reproduces the mean image, clamped to [1e-3, 1 − 1e-3]."""
        return mean.flatten().clamp(1e-3, 1 - 1e-3).logit()

    def floor(self, x: Tensor) -> Tensor:
        """Smallest distortion that any decoder can reach, Σᵢ H(xᵢ), in nats per image: ``[n, *event_shape] → [n]``.

        Example:
            >>> import torch
            >>> Bernoulli((1, 1, 2)).floor(torch.tensor([[[[0.5, 1.0]]]]))
            tensor([0.6931])
        """
        return binary_cross_entropy(x, x, reduction="none").flatten(1).sum(1)
