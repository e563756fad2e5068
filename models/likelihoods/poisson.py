"""The Poisson likelihood."""

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from pyrovae.models.likelihoods.likelihood import Likelihood

#: Bound on |log λ|; float32 holds every count up to e^16.6.
LOG_MEAN_BOUND = 16.0


class Poisson(Likelihood):
    """Independent counts p(x|h) = ∏ᵢ Poisson(xᵢ; λᵢ) with log λ = h.

    The encoder sees log(1 + x).

    Args:
        event_shape: shape of one item.

    Shapes: features ``[..., features]`` → a distribution with event shape ``event_shape``.

    Example:
        >>> import torch
        >>> Poisson((4,))(torch.zeros(7, 4)).log_prob(torch.ones(7, 4))
        tensor([-4., -4., -4., -4., -4., -4., -4.])
    """

    support = constraints.nonnegative_integer
    encoder_input = staticmethod(torch.log1p)

    def forward(self, h: Tensor) -> dist.Distribution:
        return dist.Poisson(count_mean(h.unflatten(-1, self.event_shape))).to_event(len(self.event_shape))

    def initial_features(self, mean: Tensor) -> Tensor:
        """Features whose mean is that of the items, at least 1e-3."""
        return initial_log_mean(mean)

    def floor(self, x: Tensor) -> Tensor:
        """Smallest distortion that any decoder can reach, at λ = x, in nats: ``[n, *event_shape] → [n]``.

        Example:
            >>> import torch
            >>> Poisson((2,)).floor(torch.tensor([[0.0, 1.0]]))
            tensor([1.])
        """
        return poisson_distortion(x, x)

    def distortion_at(self, x: Tensor, mean: Tensor) -> Tensor:
        """−log p(x) under means ``[n, *event_shape]``, in nats: ``[n]``; ∞ where a positive count has mean 0."""
        return poisson_distortion(x, mean)


def poisson_distortion(x: Tensor, mean: Tensor) -> Tensor:
    """−Σᵢ log Poisson(xᵢ; mᵢ), in nats: counts and means ``[n, *event_shape]`` → ``[n]``."""
    return -dist.Poisson(mean, validate_args=False).log_prob(x).flatten(1).sum(1)


def count_mean(log_mean: Tensor) -> Tensor:
    """The mean of a count from the decoder's feature."""
    return log_mean.clamp(-LOG_MEAN_BOUND, LOG_MEAN_BOUND).exp()


def initial_log_mean(mean: Tensor) -> Tensor:
    """The feature of a mean of at least 1e-3."""
    return mean.flatten().clamp(min=1e-3).log()
