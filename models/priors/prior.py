"""The base class of priors."""

from abc import ABC, abstractmethod

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints


class Prior(nn.Module, ABC):
    """A prior p(z): called without arguments, it returns a distribution.

    Args:
        latent_size: number of latent dimensions d.

    Attributes:
        event_shape: ``[latent_size]``.
    """

    def __init__(self, latent_size: int) -> None:
        super().__init__()
        self.event_shape = torch.Size([latent_size])

    @abstractmethod
    def forward(self) -> dist.Distribution:
        """p(z), with event shape ``[latent_size]``."""

    def of(self, x: Tensor, index: Tensor) -> dist.Distribution:
        """The prior of given training images: p(z), unless a subclass treats training images specially.

        Args:
            x: training images, ``[batch, *event_shape]``.
            index: their rows in the training set, ``[batch]``.
        """
        return self()


class VectorMixture(dist.MixtureSameFamily):
    """A mixture over vectors whose support is that of a vector, so that NUTS and autoguides find a transform for it."""

    support = constraints.real_vector
