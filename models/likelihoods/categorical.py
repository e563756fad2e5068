"""The categorical likelihood."""

from collections.abc import Sequence
from typing import Annotated

import pyro.distributions as dist
import torch
from pydantic import Field
from torch import Tensor
from torch.distributions import constraints

from pyrovae.models.likelihoods.likelihood import Likelihood


class CategoricalLevels(dist.Categorical):
    """A categorical distribution over the numbers 0, 1, …, which have a mean, and draws in the type of its logits.

    Example:
        >>> import torch
        >>> CategoricalLevels(logits=torch.zeros(3)).mean
        tensor(1.)
    """

    @property
    def mean(self) -> Tensor:
        """E x = Σₖ k pₖ."""
        return self.probs @ torch.arange(self.probs.shape[-1]).to(self.probs)

    @property
    def variance(self) -> Tensor:
        """Σₖ k² pₖ − (E x)²."""
        return self.probs @ torch.arange(self.probs.shape[-1]).to(self.probs) ** 2 - self.mean**2

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        return super().sample(sample_shape).to(self.logits.dtype)


class Categorical(Likelihood):
    """Independent levels p(x|h) = ∏ᵢ softmax(hᵢ)ₓᵢ with xᵢ in {0, …, levels − 1}, and a feature for every level.

    Args:
        event_shape: shape of one item.
        levels: number of levels.

    Shapes: features ``[..., features]``, first those of level 0 → a distribution with event shape ``event_shape``.

    Example:
        >>> import torch
        >>> Categorical((4,), levels=2)(torch.zeros(7, 8)).log_prob(torch.ones(7, 4)).shape
        torch.Size([7])
    """

    def __init__(self, event_shape: Sequence[int], levels: Annotated[int, Field(ge=2, le=65536)] = 256) -> None:
        self.per_pixel = levels
        super().__init__(event_shape)
        self.support = constraints.integer_interval(0, levels - 1)

    def forward(self, h: Tensor) -> dist.Distribution:
        logits = h.unflatten(-1, (self.per_pixel, -1)).mT.unflatten(-2, self.event_shape)
        return CategoricalLevels(logits=logits).to_event(len(self.event_shape))

    def initial_features(self, mean: Tensor) -> Tensor:
        """Those of a binomial distribution whose mean is that of the items, with probabilities in [1e-3, 1 − 1e-3]."""
        most = self.per_pixel - 1
        k = torch.arange(self.per_pixel, dtype=torch.float64, device=mean.device)[:, None]
        log_odds = (mean.flatten().double() / most).clamp(1e-3, 1 - 1e-3).logit()
        log_choices = -torch.lgamma(k + 1) - torch.lgamma(most - k + 1)
        return (k * log_odds + log_choices).flatten().to(mean.dtype)

    def floor(self, x: Tensor) -> Tensor:
        """Smallest distortion that any decoder can reach, 0 (all mass on x): ``[n, *event_shape] → [n]``.

        Example:
            >>> import torch
            >>> Categorical((2,)).floor(torch.ones(3, 2))
            tensor([0., 0., 0.])
        """
        return x.new_zeros(len(x))
