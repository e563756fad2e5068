"""The discretised logistic likelihood."""

import math
from collections.abc import Sequence

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints
from torch.nn.functional import logsigmoid

from pyrovae.models.likelihoods.likelihood import Likelihood

#: Steps between the 256 levels of an 8-bit pixel, 0, 1/255, …, 1.
STEPS = 255
#: Initial s: a standard deviation of π s/√3 = 0.45, about the largest for values in [0, 1].
INITIAL_SCALE = 0.25
#: Bound on |log s|; e⁻¹⁰ is a hundredth of a level.
LOG_SCALE_BOUND = 10.0


class Levels(constraints.interval):
    """The levels of an 8-bit pixel.

    Example:
        >>> import torch
        >>> Levels(), Levels().check(torch.tensor([0.0, 0.2, 0.3, 1.2]))
        ({0, 1/255, 2/255, …, 1}, tensor([ True,  True, False, False]))
    """

    is_discrete = True

    def __init__(self) -> None:
        super().__init__(0.0, 1.0)

    def check(self, value: Tensor) -> Tensor:
        # The tolerance is well above float32 rounding of k/255 and well below half a step.
        return super().check(value) & ((STEPS * value - (STEPS * value).round()).abs() < 1e-3)

    def __repr__(self) -> str:
        return f"{{0, 1/{STEPS}, 2/{STEPS}, …, 1}}"


class DiscretisedLogisticDistribution(dist.TorchDistribution):
    """A logistic variable rounded to the nearest of 256 levels: P(x) = σ(b) − σ(a) with a, b = (x ∓ 1/510 − μ)/s.

    The end levels include the tails: a = −∞ at x = 0, b = ∞ at x = 1. The density is computed without cancellation as
    log P = log σ(b) + log σ(−a) + log(1 − e^{a−b}).

    Args:
        loc: μ.
        scale: s.

    Source: Salimans et al. 2017, "PixelCNN++", section 2.1, there with pixels in [−1, 1].

    Example:
        >>> import torch
        >>> p = DiscretisedLogisticDistribution(torch.tensor(0.4), torch.tensor(0.1))
        >>> p.log_prob(torch.tensor([0.0, 0.4, 1.0])).exp()
        tensor([0.0183, 0.0098, 0.0025])
    """

    arg_constraints = {"loc": constraints.real, "scale": constraints.positive}  # noqa: RUF012
    support = Levels()
    has_enumerate_support = True

    def __init__(self, loc: Tensor, scale: Tensor, validate_args: bool | None = None) -> None:
        self.loc, self.scale = torch.broadcast_tensors(loc, scale)
        super().__init__(self.loc.shape, validate_args=validate_args)

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> "DiscretisedLogisticDistribution":
        loc, scale = self.loc.expand(batch_shape), self.scale.expand(batch_shape)
        return DiscretisedLogisticDistribution(loc, scale, self._validate_args)

    def log_prob(self, x: Tensor) -> Tensor:
        """log P(x) in nats."""
        if self._validate_args:
            self._validate_sample(x)
        centre, width = (x - self.loc) / self.scale, 1 / (STEPS * self.scale)
        first, last = x < 0.5 / STEPS, x > 1 - 0.5 / STEPS
        below = torch.where(last, 0.0, logsigmoid(centre + width / 2))
        above = torch.where(first, 0.0, logsigmoid(width / 2 - centre))
        # 1 − e^{−w} = 2t/(1 + t) with t = tanh(w/2), because compiled CPU code computes expm1 as exp − 1.
        t = torch.tanh(width / 2)
        return below + above + torch.where(first | last, 0.0, torch.log(2 * t / (1 + t)))

    @property
    def mean(self) -> Tensor:
        """E x = Σₖ P(x ≥ k/255)/255, k = 1 … 255."""
        total = torch.zeros_like(self.loc)
        for k in range(1, STEPS + 1):
            total = total + torch.sigmoid((self.loc - (k - 0.5) / STEPS) / self.scale)
        return total / STEPS

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        """Draws μ + s log(u/(1 − u)) with uniform u, rounded to the nearest level."""
        with torch.no_grad():
            u = torch.rand(self._extended_shape(sample_shape), dtype=self.loc.dtype, device=self.loc.device)
            return (STEPS * (self.loc + self.scale * u.logit())).round().clamp(0, STEPS) / STEPS

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """All levels along a new leading dimension."""
        levels = torch.arange(STEPS + 1, dtype=self.loc.dtype, device=self.loc.device) / STEPS
        levels = levels.reshape(-1, *(1 for _ in self.batch_shape))
        return levels.expand(-1, *self.batch_shape) if expand else levels


class DiscretisedLogistic(Likelihood):
    """Independent 8-bit pixels p(x|h) = ∏ᵢ P(xᵢ; μᵢ, sᵢ), each a rounded logistic variable, with h = (μ, log s).

    The distortion divided by log 2 and the number of values is in bits per dimension.

    Args:
        event_shape: shape of one image.

    Shapes: features ``[..., features]``, first all μ and then all log s → a distribution with event shape
    ``event_shape``.

    Source: Salimans et al. 2017, "PixelCNN++", section 2.1, with one component.

    Example:
        >>> import torch
        >>> DiscretisedLogistic((1, 2, 2))(torch.zeros(7, 8)).log_prob(torch.ones(7, 1, 2, 2)).shape
        torch.Size([7])
    """

    support = Levels()
    per_pixel = 2

    def forward(self, h: Tensor) -> dist.Distribution:
        loc, log_scale = h.unflatten(-1, (2, *self.event_shape)).unbind(-1 - len(self.event_shape))
        scale = log_scale.clamp(-LOG_SCALE_BOUND, LOG_SCALE_BOUND).exp()
        return DiscretisedLogisticDistribution(loc, scale).to_event(len(self.event_shape))

    def initial_features(self, mean: Tensor) -> Tensor:
        """Features whose mean m is the mean image, clamped to [1e-3, 1 − 1e-3], with s = 0.25.

        To 1e-6, m = ∫₀¹ σ((μ − t)/s) dt, so that μ = s log((e^{m/s} − 1)/(1 − e^{(m−1)/s})).
        """
        m = mean.flatten().double().clamp(1e-3, 1 - 1e-3)
        loc = INITIAL_SCALE * (torch.expm1(m / INITIAL_SCALE).log() - torch.log(-torch.expm1((m - 1) / INITIAL_SCALE)))
        return torch.cat([loc, torch.full_like(loc, math.log(INITIAL_SCALE))]).to(mean.dtype)

    def floor(self, x: Tensor) -> Tensor:
        """Smallest distortion that any decoder can reach, 0 (all mass on x): ``[n, *event_shape] → [n]``.

        Example:
            >>> import torch
            >>> DiscretisedLogistic((1, 1, 2)).floor(torch.rand(3, 1, 1, 2))
            tensor([0., 0., 0.])
        """
        return x.new_zeros(len(x))
