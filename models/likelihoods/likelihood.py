"""The base class of likelihoods."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints


class Likelihood(nn.Module, ABC):
    """A likelihood p(x|h) of independent pixels, given the decoder's features h.

    Args:
        event_shape: shape of one image.

    Attributes:
        features: number of features per image, the decoder's output size.
        support: values that a pixel can take.
        dimensions: number of values of an image that p(x|h) is a density of.
        per_pixel: number of features per pixel.
        encoder_input: x → what the encoder sees of it, ``[..., *event_shape]``; None for x itself.
    """

    support: constraints.Constraint
    per_pixel = 1
    encoder_input: Callable[[Tensor], Tensor] | None = None

    def __init__(self, event_shape: Sequence[int]) -> None:
        super().__init__()
        self.event_shape = torch.Size(event_shape)
        self.dimensions = self.event_shape.numel()
        self.features = self.per_pixel * self.dimensions

    @abstractmethod
    def forward(self, h: Tensor) -> dist.Distribution:
        """p(x|h): features ``[..., features]`` → a distribution with event shape ``event_shape``."""

    def given(self, h: Tensor, x: Tensor | None) -> dist.Distribution:
        """p(x|h) where a part of x is given, which draws then share; none is, unless a likelihood says so."""
        return self(h)

    @abstractmethod
    def initial_features(self, mean: Tensor) -> Tensor:
        """Features ``[features]`` whose mean is a mean image ``[*event_shape]``: the initial output of the decoder."""

    @abstractmethod
    def floor(self, x: Tensor) -> Tensor:
        """Smallest distortion that any decoder can reach, in nats: ``[n, *event_shape] → [n]``; NaN if unbounded."""

    def distortion_at(self, x: Tensor, mean: Tensor) -> Tensor:
        """−log p(x) under mean images, in nats: ``[n, *event_shape]`` each → ``[n]``; ∞ where p(x) = 0.

        NaN, as here, for likelihoods that the mean alone does not determine.
        """
        return x.new_full((len(x),), torch.nan)
