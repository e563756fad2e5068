"""What all guides have in common: the Pyro program."""

from abc import ABCMeta, abstractmethod
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.nn import PyroModule
from torch import Tensor, nn


class _AbstractModule(ABCMeta, type(PyroModule)):  # type: ignore[misc]
    """Lets a PyroModule, which has a metaclass of its own, have abstract methods."""


class Guide(PyroModule, metaclass=_AbstractModule):
    """A guide q(z|x), with its latent site scaled by β; `distribution` says which one it is.

    Args:
        encoder: features of x.
        latent_size: number of latent dimensions.
    """

    def __init__(self, encoder: nn.Module, latent_size: int) -> None:
        super().__init__("guide")
        self.event_shape = torch.Size([latent_size])
        self.encoder = encoder

    @staticmethod
    @abstractmethod
    def features(latent_size: int) -> int:
        """Number of features that the encoder has to give."""

    @abstractmethod
    def distribution(self, h: Tensor) -> dist.Distribution:
        """q(z|x) by the features of x: ``[batch, features]`` → batch shape [batch]."""

    def posterior(self, x: Tensor) -> dist.Distribution:
        """The approximate posterior q(z|x): images ``[batch, *event_shape]`` → batch shape [batch]."""
        return self.distribution(self.encoder(x))

    def forward(self, x: Tensor, beta: float | Tensor = 1.0, **of_the_model: Any) -> Tensor:
        """Runs the program on images ``x`` ``[batch, *event_shape]``."""
        with pyro.plate("data", len(x)), poutine.scale(scale=beta):
            return pyro.sample("z", self.posterior(x))
