"""The Student-t prior."""

from typing import Annotated

import pyro.distributions as dist
import torch
from pydantic import Field
from torch import Tensor

from pyrovae.models.priors.prior import Prior


class StudentT(Prior):
    """The prior p(z) = Π_d t_ν(z_d), whose tails are heavier than the normal's, the more so for small ν.

    KL(q(z|x) ‖ p(z)) has no closed form, so the rate is Monte Carlo. E|z_d| is finite only for ν > 1.

    Args:
        latent_size: number of latent dimensions d.
        degrees: degrees of freedom ν > 0; the standard normal is the limit ν → ∞.

    Shapes: a distribution with event shape ``[latent_size]``.

    Example:
        >>> StudentT(10, degrees=3)().event_shape
        torch.Size([10])
    """

    degrees: Tensor

    def __init__(self, latent_size: int, degrees: Annotated[float, Field(gt=0)] = 5.0) -> None:
        super().__init__(latent_size)
        self.register_buffer("degrees", torch.full([latent_size], float(degrees)), persistent=False)

    def forward(self) -> dist.Distribution:
        return dist.StudentT(self.degrees).to_event(1)
