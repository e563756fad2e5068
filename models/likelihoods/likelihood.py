"""What all likelihoods have in common."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints


class Likelihood(nn.Module, ABC):
    """A likelihood p(x|h) of independent pixels: called with features, it returns a distribution.

    Args:
        event_shape: shape of one image.

    Attributes:
        features: numbers that the decoder has to give for one image.
        support: values that a pixel can take.
        per_pixel: features that the decoder gives for each pixel.
    """

    support: constraints.Constraint
    per_pixel = 1

    def __init__(self, event_shape: Sequence[int]) -> None:
        super().__init__()
        self.event_shape = torch.Size(event_shape)
        self.features = self.per_pixel * self.event_shape.numel()

    @abstractmethod
    def forward(self, h: Tensor) -> dist.Distribution:
        """p(x|h): features ``[..., features]`` → a distribution with event shape ``event_shape``."""

    @abstractmethod
    def initial_features(self, mean: Tensor) -> Tensor:
        """Features ``[features]`` at which the likelihood reproduces a mean image, where the decoder starts."""

    @abstractmethod
    def floor(self, x: Tensor) -> Tensor:
        """Smallest distortion that any decoder can reach, in nats: ``[n, *event_shape] → [n]``; NaN for none."""

    def distortion_at(self, x: Tensor, mean: Tensor) -> Tensor:
        """−log p(x) under mean images, in nats: ``[n, *event_shape]`` each → ``[n]``; ∞ for images that they rule out.

        NaN where the mean alone does not say what p is, as here, unless a likelihood knows better.
        """
        return x.new_full((len(x),), torch.nan)
