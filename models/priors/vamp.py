"""The VampPrior: a mixture of the guide at learned pseudo-inputs."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrovae.models.priors.prior import Prior, VectorMixture
from pyrovae.networks import Count

#: Initial distance of pseudo-inputs from the ends of the range, where the sigmoid has no gradient.
MARGIN = 0.01


class VampPrior(Prior):
    """The VampPrior p(z) = (1/K) Σ_k q(z|u_k) with K learned pseudo-inputs u_k (Tomczak & Welling 2018, eq. 9).

    The pseudo-inputs stay in the range of the data: u = low + (high − low) sigmoid(v).

    Args:
        latent_size: number of latent dimensions d.
        posterior: x → q(z|x), a bound method of the guide, so that the guide's weights are shared and not copied.
        event_shape: shape of an image.
        components: number of pseudo-inputs K.
        images: number → that many random training images.
        start: initial pseudo-inputs: training images ("images"), or uniform noise in their range ("random"). Without
            ``images``, noise in [0, 1].

    Shapes: a distribution with event shape ``[latent_size]``.

    Example:
        >>> from pyrovae.guides import MeanField
        >>> from pyrovae.networks import MLP
        >>> guide = MeanField(MLP((1, 8, 8), (16,), 4), 2)
        >>> prior = VampPrior(2, guide.posterior, (1, 8, 8), components=5)
        >>> prior().event_shape, prior.pseudo_inputs.shape
        (torch.Size([2]), torch.Size([5, 1, 8, 8]))
    """

    low: Tensor
    high: Tensor
    uniform: Tensor

    def __init__(
        self,
        latent_size: int,
        posterior: Callable[[Tensor], dist.Distribution],
        event_shape: Sequence[int],
        components: Count = 100,
        images: Callable[[int], Tensor] | None = None,
        start: Literal["images", "random"] = "images",
    ) -> None:
        super().__init__(latent_size)
        self.posterior = posterior
        drawn = None if images is None else images(components)
        low, high = (torch.tensor(0.0), torch.tensor(1.0)) if drawn is None else drawn.aminmax()
        self.register_buffer("low", low)
        self.register_buffer("high", high)
        self.register_buffer("uniform", torch.zeros(components), persistent=False)
        if drawn is None or start == "random":
            share = torch.rand(components, *event_shape)
        else:
            share = (drawn - low) / (high - low).clamp(min=torch.finfo(drawn.dtype).tiny)
        self.free = nn.Parameter(share.clamp(MARGIN, 1 - MARGIN).logit())

    @property
    def pseudo_inputs(self) -> Tensor:
        """The pseudo-inputs u, ``[components, *event_shape]``, in the range of the data."""
        return self.low + (self.high - self.low) * self.free.sigmoid()

    def forward(self) -> dist.Distribution:
        return VectorMixture(dist.Categorical(logits=self.uniform), self.posterior(self.pseudo_inputs))


vamp_random = partial(VampPrior, start="random")
