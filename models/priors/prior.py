"""The base class of priors, and what mixtures share."""

import math
from abc import ABC, abstractmethod

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import Normal, constraints

from pyrovae.numerics import logsumexp


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

    Under diagonal normals and for a float32 z, it is a product of (z², z) and (−1/2σ², μ/σ²) in float64, whose rounding
    error is far below that of z.
    """
    normal = getattr(q, "base_dist", None)
    if z.dtype != torch.float32 or not isinstance(normal, Normal) or normal.loc.dim() != 2:
        return q.log_prob(z.unsqueeze(-2))
    point, loc, scale = (each.double() for each in (z, normal.loc, normal.scale))
    precision = scale.square().reciprocal()
    constant = (-precision * loc.square() / 2 - scale.log() - math.log(2 * math.pi) / 2).sum(-1)
    product = torch.cat([point.square(), point], -1) @ torch.cat([-precision / 2, precision * loc], -1).mT
    return (product + constant).to(z.dtype)
