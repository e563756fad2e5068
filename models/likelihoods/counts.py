"""The base class of likelihoods of counts, with an optional offset of each item."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from pyrovae.models.likelihoods.likelihood import Likelihood

#: Bound on |log mean|; float32 holds every count up to e^16.6.
LOG_MEAN_BOUND = 16.0


class Counts(Likelihood):
    """Independent counts with log mean h, of which the encoder sees log(1 + x).

    Args:
        event_shape: shape of one item.
        offset: whether the last dimension of a vector x is no count, but the item's offset s > 0, such as its library
            size. The means are then s eʰ, the density is p(counts | h, s), and the encoder also sees log s.

    Raises:
        ValueError: there is an offset, but x is no vector of at least two dimensions.
    """

    support: constraints.Constraint = constraints.nonnegative_integer
    encoder_input: Callable[[Tensor], Tensor] = staticmethod(torch.log1p)

    def __init__(self, event_shape: Sequence[int], offset: bool = False) -> None:
        super().__init__(event_shape)
        self.offset = offset
        self.counts_shape = self.event_shape
        if offset:
            if len(self.event_shape) != 1 or self.event_shape[0] < 2:
                raise ValueError(
                    "offset: expected vectors of counts with the offset of each item as their last dimension, got "
                    f"items of shape {list(event_shape)}; take numpy.column_stack([counts, offset])"
                )
            self.counts_shape = torch.Size([self.event_shape[0] - 1])
            self.support = CountsAndOffset()
            self.encoder_input = log_counts_and_offset
        self.dimensions = self.features = self.counts_shape.numel()

    @abstractmethod
    def counts(self, mean: Tensor) -> dist.Distribution:
        """Independent counts with some means, ``[..., *counts_shape]``."""

    def forward(self, h: Tensor) -> dist.Distribution:
        """p(x|h); with an offset, draws and mean are those at s = 1."""
        return self.given(h, None)

    def given(self, h: Tensor, x: Tensor | None) -> dist.Distribution:
        mean = h.unflatten(-1, self.counts_shape).clamp(-LOG_MEAN_BOUND, LOG_MEAN_BOUND).exp()
        if not self.offset:
            return self.counts(mean).to_event(len(self.counts_shape))
        return OffsetCounts(self.counts, mean, mean.new_ones(1) if x is None else x[..., -1:])

    def initial_features(self, mean: Tensor) -> Tensor:
        """Features whose mean is that of the items, at least 1e-3; with an offset, mean counts over mean offset."""
        counts, s = self.parts(mean)
        return counts.flatten().clamp(min=1e-3).log() - s.log()

    def floor(self, x: Tensor) -> Tensor:
        """Smallest distortion that any decoder can reach, that of a Poisson at mean x: ``[n, *event_shape] → [n]``."""
        counts, _ = self.parts(x)
        return poisson_distortion(counts, counts)

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Counts and offset of items, ``[..., *event_shape]``; without an offset, that is 1."""
        return (x[..., :-1], x[..., -1:]) if self.offset else (x, x.new_ones(1))


class OffsetCounts(dist.TorchDistribution):
    """Vectors of counts and their offset s: log p(counts | s) under means that are s times the means at s = 1.

    The offset is given and adds nothing to the density. Draws and mean have the offset of the distribution, and a
    density that of x.

    Args:
        counts: means → independent counts.
        mean: means at s = 1, ``[..., D]``.
        offset: s, ``[..., 1]``.

    Example:
        >>> p = OffsetCounts(dist.Poisson, torch.tensor([0.5, 1.0]), torch.tensor([2.0]))
        >>> p.mean, p.event_shape
        (tensor([1., 2., 2.]), torch.Size([3]))
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    has_rsample = False

    def __init__(
        self,
        counts: Callable[[Tensor], dist.Distribution],
        mean: Tensor,
        offset: Tensor,
        validate_args: bool | None = None,
    ) -> None:
        batch = torch.broadcast_shapes(mean.shape[:-1], offset.shape[:-1])
        self.counts = counts
        self.unit, self.offset = mean.expand(*batch, -1), offset.expand(*batch, 1)
        super().__init__(batch, torch.Size([mean.shape[-1] + 1]), validate_args=validate_args)

    @property
    def support(self) -> constraints.Constraint:
        return CountsAndOffset()

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> "OffsetCounts":
        unit, offset = (part.expand(*batch_shape, -1) for part in (self.unit, self.offset))
        return OffsetCounts(self.counts, unit, offset, self._validate_args)

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(counts | s) in nats, with the counts and s of x."""
        if self._validate_args:
            self._validate_sample(x)
        return self.counts(self.unit * x[..., -1:]).log_prob(x[..., :-1]).sum(-1)

    @property
    def mean(self) -> Tensor:
        return torch.cat([self.unit * self.offset, self.offset], -1)

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        drawn = self.counts(self.unit * self.offset).sample(sample_shape)
        return torch.cat([drawn, self.offset.expand(*drawn.shape[:-1], 1)], -1)


class CountsAndOffset(constraints.Constraint):
    """Vectors of counts whose last dimension is an offset, finite and above 0."""

    is_discrete = True
    event_dim = 1
    #: What a density is conditional on.
    given = "the offset"

    def check(self, value: Tensor) -> Tensor:
        counts, s = value[..., :-1], value[..., -1]
        return constraints.nonnegative_integer.check(counts).all(-1) & (s > 0) & s.isfinite()

    def explain(self, x: Tensor) -> str:
        """What was expected, for values that are something else."""
        wrong = x[~self.check(x)][0]
        what = "values such as" if wrong[-1] > 0 else "an offset of"
        number = wrong[:-1][~constraints.nonnegative_integer.check(wrong[:-1])][0] if wrong[-1] > 0 else wrong[-1]
        return (
            "expected whole numbers ≥ 0, and as the last dimension of each item its offset > 0, such as its total over "
            f"the mean of these, got {what} {float(number):.6g}; without an offset, leave out the setting 'offset'"
        )


def log_counts_and_offset(x: Tensor) -> Tensor:
    """log(1 + x) of counts and log s of the offset, which is the last dimension."""
    return torch.cat([x[..., :-1].log1p(), x[..., -1:].log()], -1)


def poisson_distortion(x: Tensor, mean: Tensor) -> Tensor:
    """−Σᵢ log Poisson(xᵢ; mᵢ), in nats: counts and means ``[n, *event_shape]`` → ``[n]``."""
    return -dist.Poisson(mean, validate_args=False).log_prob(x).flatten(1).sum(1)
