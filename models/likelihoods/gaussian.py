"""Gaussian likelihoods with fixed σ, one learned σ, or a σ per pixel from the decoder."""

import math
from collections.abc import Sequence
from typing import Annotated

import pyro.distributions as dist
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.distributions import constraints

from pyrovae.models.likelihoods.likelihood import Likelihood

#: Initial σ, the largest standard deviation of values in [0, 1].
INITIAL_SCALE = 0.5
#: Bound on |log σ|; e⁻¹⁰ is far above float32 rounding near 1.
LOG_SCALE_BOUND = 10.0


class _Gaussian(Likelihood):
    """Base class: the decoder gives μ for each pixel."""

    support = constraints.real

    def initial_features(self, mean: Tensor) -> Tensor:
        """Features whose mean is the mean image."""
        return mean.flatten()

    def _normal(self, loc: Tensor, scale: float | Tensor) -> dist.Distribution:
        return dist.Normal(loc.unflatten(-1, self.event_shape), scale).to_event(len(self.event_shape))


class Gaussian(_Gaussian):
    """Independent values p(x|h) = ∏ᵢ N(xᵢ; hᵢ, σ²) with fixed σ.

    Args:
        event_shape: shape of one image.
        noise_scale: σ.

    Shapes: features ``[..., features]`` → a distribution with event shape ``event_shape``.

    Example:
        >>> import torch
        >>> Gaussian((1, 2, 2))(torch.zeros(7, 4)).log_prob(torch.ones(7, 1, 2, 2)).shape
        torch.Size([7])
    """

    def __init__(
        self, event_shape: Sequence[int], noise_scale: Annotated[float, Field(ge=1e-15, le=1e15)] = 1.0
    ) -> None:
        super().__init__(event_shape)
        self.noise_scale = noise_scale

    def forward(self, h: Tensor) -> dist.Distribution:
        return self._normal(h, self.noise_scale)

    def floor(self, x: Tensor) -> Tensor:
        """Smallest distortion that any decoder can reach, at h = x, in nats: ``[n, *event_shape] → [n]``.

        Example:
            >>> import torch
            >>> Gaussian((1, 1, 2)).floor(torch.zeros(1, 1, 1, 2))
            tensor([1.8379])
        """
        return self.distortion_at(x, x)

    def distortion_at(self, x: Tensor, mean: Tensor) -> Tensor:
        """−log N(x; mean, σ²), in nats: images and mean images ``[n, *event_shape]`` → ``[n]``."""
        return -dist.Normal(mean, self.noise_scale).log_prob(x).flatten(1).sum(1)


class GaussianShared(_Gaussian):
    """Independent values p(x|h) = ∏ᵢ N(xᵢ; hᵢ, σ²) with one learned σ for all pixels and images.

    Args:
        event_shape: shape of one image.

    Attributes:
        log_scale: the parameter log σ, ``[1]``, initially log 0.5.

    Shapes: features ``[..., features]`` → a distribution with event shape ``event_shape``.

    Source: Rybkin, Daniilidis & Levine 2021, "Simple and effective VAE training with calibrated decoders", section 3.

    Example:
        >>> GaussianShared((1, 2, 2))(torch.zeros(7, 4)).stddev.unique()
        tensor([0.5000], grad_fn=<Unique2Backward0>)
    """

    def __init__(self, event_shape: Sequence[int]) -> None:
        super().__init__(event_shape)
        self.log_scale = nn.Parameter(torch.tensor([math.log(INITIAL_SCALE)]))

    def forward(self, h: Tensor) -> dist.Distribution:
        return self._normal(h, _scale(self.log_scale))

    def floor(self, x: Tensor) -> Tensor:
        """NaN, because the density at h = x is unbounded as σ → 0: ``[n, *event_shape] → [n]``."""
        return x.new_full((len(x),), math.nan)


class GaussianPerPixel(_Gaussian):
    """Independent values p(x|h) = ∏ᵢ N(xᵢ; μᵢ, σᵢ²) with h = (μ, log σ).

    Args:
        event_shape: shape of one image.

    Shapes: features ``[..., features]``, first all μ and then all log σ → a distribution with event shape
    ``event_shape``.

    Source: Kingma & Welling 2014, "Auto-encoding variational Bayes", appendix C.2.

    Example:
        >>> GaussianPerPixel((1, 2, 2))(torch.zeros(7, 8)).log_prob(torch.ones(7, 1, 2, 2)).shape
        torch.Size([7])
    """

    per_pixel = 2

    def forward(self, h: Tensor) -> dist.Distribution:
        loc, log_scale = h.chunk(2, dim=-1)
        return self._normal(loc, _scale(log_scale).unflatten(-1, self.event_shape))

    def initial_features(self, mean: Tensor) -> Tensor:
        """Features whose mean is the mean image, with σ = 0.5."""
        return torch.cat([mean.flatten(), mean.new_full((mean.numel(),), math.log(INITIAL_SCALE))])

    def floor(self, x: Tensor) -> Tensor:
        """NaN, because the density at μ = x is unbounded as σ → 0: ``[n, *event_shape] → [n]``."""
        return x.new_full((len(x),), math.nan)


def _scale(log_scale: Tensor) -> Tensor:
    return log_scale.clamp(-LOG_SCALE_BOUND, LOG_SCALE_BOUND).exp()
