"""The normalizing flow guide."""

from collections.abc import Callable
from copy import deepcopy
from typing import ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn
from torch.distributions import constraints

from pyrovae.guides.guide import Guide
from pyrovae.networks import zuko_flows


class Flow(Guide):
    """The conditional flow q(z|x): z = T(ε; c(x)) with ε ~ N(0, I) (Rezende & Mohamed 2015).

    T is three affine couplings, in each of which one half of z sets location and scale of the other half: q can be
    skewed and correlated, and both sampling and density take one pass. Its KL to a prior has no closed form. The
    inference marginal takes one pass per pair of a draw and a training image; with tens of thousands of images, lower
    ``measure.outer``.

    Args:
        encoder: features of x, the context c(x).
        latent_size: number of latent dimensions.

    Example:
        >>> from pyrovae.guides import Flow
        >>> from pyrovae.networks import MLP
        >>> Flow(MLP((1, 8, 8), (16,), Flow.features(3)), 3)
        Flow: q(z|x)
          z ~ T(ε; c(x)) [3], T = 3 affine couplings
          c = MLP(64 → 16 → 32)
    """

    couplings = 3

    def __init__(self, encoder: nn.Module, latent_size: int) -> None:
        super().__init__(encoder, latent_size)
        self.flow = coupling_flow(latent_size, self.features(latent_size), self.couplings)

    @staticmethod
    def features(latent_size: int) -> int:
        return max(32, 2 * latent_size)

    def distribution(self, h: Tensor) -> dist.Distribution:
        return ConditionalFlow(self.flow, h)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}: q(z|x)\n"
            f"  z ~ T(ε; c(x)) {list(self.event_shape)}, T = {self.couplings} affine couplings\n"
            f"  c = {self.encoder!r}"
        )


def coupling_flow(size: int, context: int, couplings: int) -> nn.Module:
    """A conditional flow of affine couplings on ``size`` dimensions, given ``context`` features, by zuko.

    Example:
        >>> coupling_flow(3, 4, couplings=2)(torch.zeros(5, 4)).batch_shape
        torch.Size([5])
    """
    with torch.device("cpu"):  # zuko computes masks from values, which meta tensors lack
        return zuko_flows().MAF(size, context, transforms=couplings, passes=2, hidden_features=(64,))


class ConditionalFlow(TorchDistribution):
    """A conditional zuko flow at given contexts, as a reparameterized Pyro distribution.

    Args:
        flow: context → a zuko distribution with a standard normal base.
        context: ``[*batch, features]``; its dtype is the dtype of all computation.

    Example:
        >>> q = ConditionalFlow(coupling_flow(3, 4, couplings=2), torch.zeros(5, 4))
        >>> q.batch_shape, q.rsample().shape
        (torch.Size([5]), torch.Size([5, 3]))
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    has_rsample = True
    support = constraints.real_vector

    def __init__(self, flow: nn.Module, context: Tensor) -> None:
        # A context in double precision needs weights in double precision.
        weight = next(flow.parameters())
        self.flow = flow if weight.dtype == context.dtype else deepcopy(flow).to(context.dtype)
        self.context = context
        self._q = self.flow(context)
        super().__init__(context.shape[:-1], self._q.event_shape, validate_args=False)

    @property
    def noise_shape(self) -> torch.Size:
        """Shape of the standard normal noise of one draw."""
        return self.batch_shape + self.event_shape

    def from_noise(self, noise: Tensor) -> Tensor:
        """T(ε; c), one draw as a differentiable function of noise ε."""
        return self._q.transform.inv(noise)

    def mapped(self, function: Callable[..., Tensor], *others: "ConditionalFlow") -> "ConditionalFlow":
        """The flow at ``function(context, *other contexts)``."""
        return ConditionalFlow(self.flow, function(self.context, *(each.context for each in others)))

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        noise = torch.randn(*sample_shape, *self.noise_shape, dtype=self.context.dtype, device=self.context.device)
        return self.from_noise(noise)

    def log_prob(self, value: Tensor) -> Tensor:
        if value.dtype != self.context.dtype:
            return self.mapped(lambda context: context.to(value.dtype)).log_prob(value)
        return self._q.log_prob(value.expand(torch.broadcast_shapes(value.shape, self.noise_shape)))

    def expand(self, batch_shape: torch.Size, _instance: None = None) -> "ConditionalFlow":
        return ConditionalFlow(self.flow, self.context.expand(*batch_shape, -1))
