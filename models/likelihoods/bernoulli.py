"""The Bernoulli likelihood."""

import pyro.distributions as dist
from torch import Tensor
from torch.distributions import constraints
from torch.special import xlog1py, xlogy

from pyrovae.models.likelihoods.likelihood import Likelihood


class Bernoulli(Likelihood):
    """Independent pixels p(x|h) = ∏ᵢ σ(hᵢ)^xᵢ (1 − σ(hᵢ))^(1 − xᵢ).

    On binary pixels, this is a normalised density. On grey pixels in [0, 1], the same expression (used by Bozkurt et
    al. 2021) is a cross-entropy, and its floor is the entropy of the pixels.

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
        # Validation would reject grey pixels.
        return dist.Bernoulli(logits=logits, validate_args=False).to_event(len(self.event_shape))

    def initial_features(self, mean: Tensor) -> Tensor:
        """Features whose mean is the mean image, clamped to [1e-3, 1 − 1e-3]."""
        return mean.flatten().clamp(1e-3, 1 - 1e-3).logit()

    def floor(self, x: Tensor) -> Tensor:
        """Smallest distortion that any decoder can reach, Σᵢ H(xᵢ), in nats per image: ``[n, *event_shape] → [n]``.

        Example:
            >>> import torch
            >>> Bernoulli((1, 1, 2)).floor(torch.tensor([[[[0.5, 1.0]]]]))
            tensor([0.6931])
        """
        return self.distortion_at(x, x)

    def distortion_at(self, x: Tensor, mean: Tensor) -> Tensor:
        """−Σᵢ xᵢ log mᵢ + (1 − xᵢ) log (1 − mᵢ) under mean images m, in nats: ``[n, *event_shape]`` each → ``[n]``.

        ∞ where a lit pixel has mean 0 or a dark pixel mean 1, without clamping.

        Example:
            >>> import torch
            >>> x, mean = torch.tensor([[[[0.0, 1.0]]]]), torch.tensor([[[[0.0, 0.5]]]])
            >>> Bernoulli((1, 1, 2)).distortion_at(x, mean), Bernoulli((1, 1, 2)).distortion_at(1 - x, mean)
            (tensor([0.6931]), tensor([inf]))
        """
        mean = mean.clamp(0, 1)  # removes rounding errors
        return -(xlogy(x, mean) + xlog1py(1 - x, -mean)).flatten(1).sum(1)
