"""What all priors have in common."""

from abc import ABC, abstractmethod

import pyro.distributions as dist
import torch
from torch import Tensor, nn


class Prior(nn.Module, ABC):
    """A prior p(z): called without arguments, it returns a distribution.

    Args:
        latent_size: number of latent dimensions d, which becomes the ``event_shape`` ``[d]``.
    """

    def __init__(self, latent_size: int) -> None:
        super().__init__()
        self.event_shape = torch.Size([latent_size])

    @abstractmethod
    def forward(self) -> dist.Distribution:
        """p(z), with event shape ``[latent_size]``."""

    def of(self, x: Tensor, index: Tensor) -> dist.Distribution:
        """p(z) as training images are held to it: p(z) itself, unless the prior knows its training images.

        Args:
            x: images, ``[batch, *event_shape]``.
            index: which training images they are, ``[batch]``.
        """
        return self()
