"""The base class of guides."""

from abc import ABCMeta, abstractmethod
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.nn import PyroModule
from torch import Tensor, nn

#: Smallest log σ of a code. Far below it, σ² underflows in float32, and the gradient of the rate is infinite.
MIN_LOG_SCALE = -30.0


def scale(log_scale: Tensor) -> Tensor:
    """σ, at least e^−30: without a pull towards the prior, at β ≈ 0, nothing else bounds it from below.

    Example:
        >>> scale(torch.tensor([0.0, -100.0]))
        tensor([1.0000e+00, 9.3576e-14])
    """
    return log_scale.clamp(min=MIN_LOG_SCALE).exp()


class _AbstractModule(ABCMeta, type(PyroModule)):  # type: ignore[misc]
    """Metaclass of a PyroModule with abstract methods."""


class Guide(PyroModule, metaclass=_AbstractModule):
    """A guide q(z|x) with its latent site scaled by β; subclasses define `features` and `distribution`.

    Args:
        encoder: x → features.
        latent_size: number of latent dimensions.
    """

    def __init__(self, encoder: nn.Module, latent_size: int) -> None:
        super().__init__("guide")
        self.event_shape = torch.Size([latent_size])
        self.encoder = encoder

    @staticmethod
    @abstractmethod
    def features(latent_size: int) -> int:
        """Number of features of the encoder."""

    @abstractmethod
    def distribution(self, h: Tensor) -> dist.Distribution:
        """q(z|x) at features ``[batch, features]``, with batch shape [batch]."""

    def posterior(self, x: Tensor) -> dist.Distribution:
        """q(z|x) of images ``[batch, *event_shape]``, with batch shape [batch]."""
        return self.distribution(self.encoder(x))

    def forward(self, x: Tensor, beta: float | Tensor = 1.0, **model_arguments: Any) -> Tensor:
        """Runs the program on images ``x`` ``[batch, *event_shape]``."""
        with pyro.plate("data", len(x)), poutine.scale(scale=beta):
            return pyro.sample("z", self.posterior(x))
