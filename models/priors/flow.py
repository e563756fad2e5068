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

    T is a learned shift and scale of each dimension (splines are the identity outside [−5, 5]), followed by three
    autoregressive transforms: rational-quadratic splines ("NSF", Durkan et al. 2019) or affine ("MAF", Papamakarios et
    al. 2017). A density takes one pass, a draw one pass per dimension.

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
        with torch.device("cpu"):  # zuko computes masks from values, which meta tensors lack
            self.flow = getattr(zuko, kind)(latent_size, transforms=self.transforms, hidden_features=(64, 64))
        shift_and_scale = zuko.ElementWiseTransform(latent_size)
        for parameter in shift_and_scale.parameters():
            nn.init.zeros_(parameter)
        self.flow.transform.transforms.insert(0, shift_and_scale)

    def forward(self) -> dist.Distribution:
        return _FlowDistribution(self.flow)


flow_maf = partial(Flow, kind="MAF")


class _FlowDistribution(TorchDistribution):
    """A zuko flow as a Pyro distribution, whose density has the precision of its argument."""

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

    def expand(self, batch_shape: torch.Size, _instance: None = None) -> "_FlowDistribution":
        return _FlowDistribution(self.flow, torch.Size(batch_shape))
