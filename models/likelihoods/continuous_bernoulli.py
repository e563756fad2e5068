"""The continuous Bernoulli likelihood."""

import math
from collections.abc import Sequence

import pyro.distributions as dist
import torch
from scipy.special import zeta
from torch import Tensor
from torch.distributions import constraints

from pyrovae.models.likelihoods.likelihood import Likelihood

#: Coefficients c₁, c₂, … of log(sinh(η/2) / (η/2)) = Σₖ cₖ η²ᵏ; at |η| < 1 ten of them leave an error below 1e-18.
SERIES = tuple((-1) ** (k + 1) * float(zeta(2 * k)) / (k * (2 * math.pi) ** (2 * k)) for k in range(1, 11))


class ContinuousBernoulliDistribution(dist.TorchDistribution):
    """The density p(x) = C(η) e^{ηx} on [0, 1], with log C(η) = −log((e^η − 1)/η) = −η/2 − log(sinh(η/2)/(η/2)).

    Unlike torch's distribution of that name, it is exact up to rounding for every η, including η near 0 and |η| of many
    hundreds. It is symmetric: x at η has the density of 1 − x at −η.

    Args:
        logits: η, the natural parameter.

    Source: Loaiza-Ganem & Cunningham 2019, "The continuous Bernoulli: fixing a pervasive error in variational
    autoencoders", section 3, written in the natural parameter.

    Example:
        >>> import torch
        >>> ContinuousBernoulliDistribution(torch.tensor([1e-4, 1000.0])).log_prob(torch.tensor([0.0, 1.0]))
        tensor([-5.0000e-05,  6.9078e+00])
    """

    arg_constraints = {"logits": constraints.real}  # noqa: RUF012
    support = constraints.unit_interval
    has_rsample = True

    def __init__(self, logits: Tensor, validate_args: bool | None = None) -> None:
        self.logits = logits
        super().__init__(logits.shape, validate_args=validate_args)

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> "ContinuousBernoulliDistribution":
        return ContinuousBernoulliDistribution(self.logits.expand(batch_shape), self._validate_args)

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x) in nats."""
        if self._validate_args:
            self._validate_sample(x)
        small, near, t = self._split(1.0)
        far = t.log() - torch.log(-torch.expm1(-t)) - t * torch.where(self.logits < 0, x, 1 - x)
        return torch.where(small, near * (x - 0.5) - near**2 * _polynomial(SERIES, near**2), far)

    @property
    def mean(self) -> Tensor:
        """E x = 1/2 + coth(η/2)/2 − 1/η."""
        small, near, t = self._split(1.0)
        mirrored = 1 / t + torch.exp(-t) / torch.expm1(-t)
        slopes = [2 * k * coefficient for k, coefficient in enumerate(SERIES, start=1)]
        return torch.where(small, 0.5 + near * _polynomial(slopes, near**2), self._mirror(mirrored))

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        """Draws x = log(1 + u (e^η − 1))/η, the inverse cdf at a uniform u; for η > 0, one minus that at −η."""
        u = torch.rand(self._extended_shape(sample_shape), dtype=self.logits.dtype, device=self.logits.device)
        small, near, t = self._split(1e-3)
        mirrored = -torch.log1p(u * torch.expm1(-t)) / t
        # Expands log(1 + u (e^η − 1)), the cumulant-generating function of Bernoulli(u), around η = 0.
        variance = u * (1 - u)
        return torch.where(
            small, u + near * variance / 2 + near**2 * variance * (1 - 2 * u) / 6, self._mirror(mirrored)
        )

    def _split(self, threshold: float) -> tuple[Tensor, Tensor, Tensor]:
        """Where |η| is small; η there and 0 elsewhere; |η| elsewhere and 1 there, to keep unused branches finite."""
        small = self.logits.abs() < threshold
        return small, torch.where(small, self.logits, 0.0), torch.where(small, 1.0, self.logits.abs())

    def _mirror(self, x: Tensor) -> Tensor:
        """Maps values for −|η| to values for η."""
        return torch.where(self.logits < 0, x, 1 - x)


class ContinuousBernoulli(Likelihood):
    """Independent pixels p(x|h) = ∏ᵢ C(hᵢ) e^{hᵢxᵢ} on [0, 1]: the Bernoulli's logits with a normalised density.

    Args:
        event_shape: shape of one image.

    Shapes: features ``[..., features]`` → a distribution with event shape ``event_shape``.

    Source: Loaiza-Ganem & Cunningham 2019, "The continuous Bernoulli: fixing a pervasive error in variational
    autoencoders", section 3.

    Example:
        >>> import torch
        >>> ContinuousBernoulli((1, 2, 2))(torch.zeros(7, 4)).log_prob(torch.rand(7, 1, 2, 2)).shape
        torch.Size([7])
    """

    support = constraints.unit_interval

    def forward(self, h: Tensor) -> dist.Distribution:
        logits = h.unflatten(-1, self.event_shape)
        return ContinuousBernoulliDistribution(logits).to_event(len(self.event_shape))

    def initial_features(self, mean: Tensor) -> Tensor:
        """Features whose mean is the mean image, clamped to [1e-3, 1 − 1e-3]."""
        return _logits(mean.flatten().double().clamp(1e-3, 1 - 1e-3)).to(mean.dtype)

    def floor(self, x: Tensor) -> Tensor:
        """Smallest distortion that any decoder can reach, where the mean is x, in nats.

        NaN where a pixel is exactly 0 or 1, whose density is unbounded.

        Shapes: ``[n, *event_shape] → [n]``.

        Example:
            >>> import torch
            >>> ContinuousBernoulli((1, 1, 2)).floor(torch.tensor([[[[0.5, 0.1]]], [[[0.5, 1.0]]]]))
            tensor([-1.3026,     nan])
        """
        inside = (x > 0) & (x < 1)
        safe = torch.where(inside, x, 0.5).double()
        best = -ContinuousBernoulliDistribution(_logits(safe)).log_prob(safe)
        return torch.where(inside, best, math.nan).flatten(1).sum(1).to(x.dtype)


def _logits(mean: Tensor) -> Tensor:
    """η as a function of the mean in (0, 1), by bisection, with |η| < 1/min(mean, 1 − mean)."""
    target = torch.minimum(mean, 1 - mean)
    low, high = torch.zeros_like(mean), 1 / target
    for _ in range(55):
        t = (low + high) / 2
        above = ContinuousBernoulliDistribution(-t).mean > target
        low, high = torch.where(above, t, low), torch.where(above, high, t)
    return torch.where(mean < 0.5, -high, high)


def _polynomial(coefficients: Sequence[float], x: Tensor) -> Tensor:
    """c₁ + c₂ x + c₃ x² + …, by Horner's rule."""
    total = torch.zeros_like(x)
    for coefficient in reversed(coefficients):
        total = total * x + coefficient
    return total
