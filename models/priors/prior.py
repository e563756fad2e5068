"""The base class of priors, and what mixtures share."""

from abc import ABC, abstractmethod

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import Normal, constraints

from pyrovae.numerics import logsumexp, normal_log_densities


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

    def log_prob(self, value: Tensor) -> Tensor:
        log_p = log_densities(self.component_distribution, value)
        return logsumexp(log_p + self.mixture_distribution.logits, -1)


def log_densities(q: dist.Distribution, z: Tensor) -> Tensor:
    """log q(z|x_m) of vectors z, ``[..., d]``, under each of M encodings, or components: ``[..., M]``.

    Under diagonal normals and for a float32 z, it is a matrix product in float64, whose rounding error is far below
    that of z.
    """
    normal = getattr(q, "base_dist", None)
    if z.dtype != torch.float32 or not isinstance(normal, Normal) or normal.loc.dim() != 2:
        return q.log_prob(z.unsqueeze(-2))
    return normal_log_densities(z.double(), normal.loc.double(), normal.scale.double()).to(z.dtype)
