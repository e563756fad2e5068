"""The Poisson likelihood."""

import pyro.distributions as dist
from torch import Tensor

from pyrovae.models.likelihoods.counts import Counts, poisson_distortion


class Poisson(Counts):
    """Independent counts p(x|h) = ∏ᵢ Poisson(xᵢ; λᵢ) with log λ = h.

    The encoder sees log(1 + x).

    Args:
        event_shape: shape of one item.
        offset: whether the last dimension of x is the item's offset s > 0, with λ = s eʰ.

    Shapes: features ``[..., features]`` → a distribution with event shape ``event_shape``.

    Example:
        >>> import torch
        >>> Poisson((4,))(torch.zeros(7, 4)).log_prob(torch.ones(7, 4))
        tensor([-4., -4., -4., -4., -4., -4., -4.])
        >>> Poisson((2,)).floor(torch.tensor([[0.0, 1.0]]))
        tensor([1.])
    """

    def counts(self, mean: Tensor) -> dist.Distribution:
        return dist.Poisson(mean)

    def distortion_at(self, x: Tensor, mean: Tensor) -> Tensor:
        """−log p(x) under means ``[n, *event_shape]``, in nats: ``[n]``; ∞ where a positive count has mean 0."""
        (counts, s), (mean, mean_s) = self.parts(x), self.parts(mean)
        return poisson_distortion(counts, s * mean / mean_s)
