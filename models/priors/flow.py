"""The normalizing flow prior."""

from copy import deepcopy
from functools import partial
from typing import ClassVar, Literal

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn
from torch.distributions import constraints

from pyrovae.models.priors.prior import Prior
from pyrovae.networks import zuko_flows


class Flow(Prior):
    """The learned flow p(z) = ``N(T(z); 0, I) |det ∂T/∂z|`` (Rezende & Mohamed 2015), by zuko.

    T shifts and stretches every dimension, because splines bend nothing outside of [−5, 5], and then makes three
    autoregressive transforms: rational-quadratic splines ("NSF", Durkan et al. 2019), or affine ones ("MAF",
    Papamakarios et al. 2017). Its density takes one pass, a draw one pass a dimension.

    Args:
        latent_size: number of latent dimensions d.
        kind: "NSF" or "MAF".

    Shapes: a distribution with event shape ``[latent_size]``.

    Example:
        >>> Flow(3)().sample().shape, Flow(3, kind="MAF")().log_prob(torch.zeros(5, 3)).shape
        (torch.Size([3]), torch.Size([5]))
    """

    transforms = 3

    def __init__(self, latent_size: int, kind: Literal["NSF", "MAF"] = "NSF") -> None:
        super().__init__(latent_size)
        zuko = zuko_flows()
        with torch.device("cpu"):  # its masks are computed from numbers, which a meta device has not
            self.flow = getattr(zuko, kind)(latent_size, transforms=self.transforms, hidden_features=(64, 64))
        stretch = zuko.ElementWiseTransform(latent_size)
        for parameter in stretch.parameters():
            nn.init.zeros_(parameter)
        self.flow.transform.transforms.insert(0, stretch)

    def forward(self) -> dist.Distribution:
        return _Flowed(self.flow)


flow_maf = partial(Flow, kind="MAF")


class _Flowed(TorchDistribution):
    """What a zuko flow gives, as a distribution for Pyro, in the precision of the point that it is evaluated at."""

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    has_rsample = False
    support = constraints.real_vector

    def __init__(self, flow: nn.Module, batch_shape: torch.Size = torch.Size()) -> None:
        self.flow = flow
        self._p = flow()
        super().__init__(batch_shape, self._p.event_shape, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        weight = next(self.flow.parameters())
        p = self._p if value.dtype == weight.dtype else deepcopy(self.flow).to(value.dtype)()
        return p.log_prob(value.expand(torch.broadcast_shapes(value.shape, self.batch_shape + self.event_shape)))

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        with torch.no_grad():
            return self._p.sample(torch.Size(sample_shape) + self.batch_shape)

    def expand(self, batch_shape: torch.Size, _instance: None = None) -> "_Flowed":
        return _Flowed(self.flow, torch.Size(batch_shape))
