"""What torch's distributions lack: draws from given noise, a part of a batch, and KL divergences.

All of it is dispatched on the type of the distribution. A type that is not torch's own says it itself, as `FromNoise`.
"""

from collections.abc import Callable
from functools import singledispatch
from typing import Protocol, Self, runtime_checkable

import torch
from torch import Tensor
from torch.distributions import (
    Distribution,
    Independent,
    LowerCholeskyTransform,
    MultivariateNormal,
    Normal,
    kl_divergence,
    register_kl,
)
from torch.distributions import TransformedDistribution as Transformed

from pyrovae.errors import UnsupportedError


@runtime_checkable
class FromNoise(Protocol):
    """A distribution that can be drawn from given noise and be cut, and knows itself how."""

    noise_shape: torch.Size
    """Shape of the standard normal noise behind one draw, batch shape first."""

    def from_noise(self, noise: Tensor) -> Tensor:
        """One draw as a differentiable function of standard normal noise."""
        ...

    def mapped(self, function: Callable[..., Tensor], *others: Self) -> Self:
        """The same with parameters that are a function of its own, and of those of others of its type."""
        ...


@singledispatch
def base_normal(q: Distribution) -> Normal | MultivariateNormal | None:
    """The normal distribution that ``q`` transforms, or None if it is made of something else."""
    return None


@base_normal.register
def _(q: Normal) -> Normal:
    return q


@base_normal.register
def _(q: MultivariateNormal) -> MultivariateNormal:
    return q


@base_normal.register(Independent)
@base_normal.register(Transformed)
def _(q: Independent | Transformed) -> Normal | MultivariateNormal | None:
    return base_normal(q.base_dist)


def noise_shape(q: Distribution) -> torch.Size | None:
    """Shape of the standard normal noise that `reparameterize` needs for one draw from ``q``, if any can do."""
    if isinstance(q, FromNoise):
        return q.noise_shape
    base = base_normal(q)
    return None if base is None else base.batch_shape + base.event_shape


@singledispatch
def reparameterize(q: Distribution, noise: Tensor) -> Tensor:
    """One draw from ``q`` as a differentiable function of standard normal ``noise``.

    Example:
        >>> import torch
        >>> from torch.distributions import Normal
        >>> reparameterize(Normal(torch.tensor(1.0), torch.tensor(2.0)), torch.tensor(3.0))
        tensor(7.)
    """
    if isinstance(q, FromNoise):
        return q.from_noise(noise)
    raise TypeError(f"a {type(q).__name__} is not a transformed normal distribution")


@reparameterize.register
def _(q: Normal, noise: Tensor) -> Tensor:
    return q.loc + q.scale * noise


@reparameterize.register
def _(q: MultivariateNormal, noise: Tensor) -> Tensor:
    return q.loc + (q.scale_tril @ noise.unsqueeze(-1)).squeeze(-1)


@reparameterize.register
def _(q: Independent, noise: Tensor) -> Tensor:
    return reparameterize(q.base_dist, noise)


@reparameterize.register
def _(q: Transformed, noise: Tensor) -> Tensor:
    z = reparameterize(q.base_dist, noise)
    for transform in q.transforms:
        z = transform(z)
    return z


@singledispatch
def mapped(q: Distribution, function: Callable[..., Tensor], *others: Distribution) -> Distribution:
    """A distribution whose parameters are ``function`` of the parameters of ``q`` and of ``others``, all of one type.

    Raises:
        UnsupportedError: the type is not known here.
    """
    if isinstance(q, FromNoise):
        return q.mapped(function, *others)  # type: ignore[arg-type]
    raise UnsupportedError(f"expected a diagonal or full-rank normal distribution or a flow, got {type(q).__name__}")


@mapped.register
def _(q: Normal, function: Callable[..., Tensor], *others: Normal) -> Normal:
    alike = (q, *others)
    return Normal(function(*(each.loc for each in alike)), function(*(each.scale for each in alike)), False)


@mapped.register
def _(q: MultivariateNormal, function: Callable[..., Tensor], *others: MultivariateNormal) -> MultivariateNormal:
    alike = (q, *others)
    scale_tril = function(*(each.scale_tril for each in alike))
    return MultivariateNormal(function(*(each.loc for each in alike)), scale_tril=scale_tril, validate_args=False)


@mapped.register
def _(q: Independent, function: Callable[..., Tensor], *others: Independent) -> Independent:
    base = mapped(q.base_dist, function, *(each.base_dist for each in others))
    return Independent(base, q.reinterpreted_batch_ndims, False)


@singledispatch
def unconstrained(q: Distribution) -> tuple[list[Tensor], Callable[..., Distribution]]:
    """Numbers free of any constraint that say which of its family ``q`` is, and what makes a distribution of them.

    Raises:
        UnsupportedError: the type is not known here.

    Example:
        >>> values, distribution = unconstrained(Normal(torch.zeros(2), torch.ones(2)))
        >>> values[1], distribution(*values).scale
        (tensor([0., 0.]), tensor([1., 1.]))
    """
    values: list[Tensor] = []

    def noted(value: Tensor) -> Tensor:
        values.append(value)
        return value

    def distribution(*others: Tensor) -> Distribution:
        rest = iter(others)
        return mapped(q, lambda _: next(rest))

    mapped(q, noted)  # what is not torch's own has parameters without constraints, or is not known
    return values, distribution


@unconstrained.register
def _(q: Normal) -> tuple[list[Tensor], Callable[..., Distribution]]:
    return [q.loc, q.scale.log()], lambda loc, log_scale: Normal(loc, log_scale.exp(), False)


@unconstrained.register
def _(q: MultivariateNormal) -> tuple[list[Tensor], Callable[..., Distribution]]:
    cholesky = LowerCholeskyTransform()

    def distribution(loc: Tensor, factor: Tensor) -> Distribution:
        return MultivariateNormal(loc, scale_tril=cholesky(factor), validate_args=False)

    return [q.loc, cholesky.inv(q.scale_tril)], distribution


@unconstrained.register
def _(q: Independent) -> tuple[list[Tensor], Callable[..., Distribution]]:
    values, base = unconstrained(q.base_dist)
    return values, lambda *others: Independent(base(*others), q.reinterpreted_batch_ndims, False)


def concatenated(parts: list[Distribution]) -> Distribution:
    """One distribution whose batch holds those of ``parts`` one after the other.

    Example:
        >>> import torch
        >>> concatenated([Normal(torch.zeros(2), 1.0), Normal(torch.zeros(3), 1.0)]).batch_shape
        torch.Size([5])
    """
    return mapped(parts[0], lambda *tensors: torch.cat(tensors), *parts[1:])


@register_kl(MultivariateNormal, Independent)
def _kl_full_rank_diagonal(q: MultivariateNormal, p: Independent) -> Tensor:
    """KL(N(μ, L Lᵀ) ‖ N(m, diag s²)), which torch leaves out and a full-rank guide needs."""
    if not (isinstance(p.base_dist, Normal) and p.event_shape == q.event_shape):
        # The protocol of kl_divergence: whoever calls it, Pyro too, goes on by Monte Carlo.
        raise NotImplementedError("no formula for this pair")
    m, s = p.base_dist.loc, p.base_dist.scale
    spread = (q.scale_tril / s.unsqueeze(-1)).square().sum((-2, -1))
    distance = ((q.loc - m) / s).square().sum(-1)
    log_det = (s.log() - q.scale_tril.diagonal(dim1=-2, dim2=-1).log()).sum(-1)
    return (spread + distance - q.event_shape[0]) / 2 + log_det


def mean_of(p: Distribution) -> Tensor | None:
    """E[x] under p where it is known, else None: torch's distributions tell by NotImplementedError.

    Example:
        >>> from torch.distributions import SigmoidTransform
        >>> mean_of(Normal(2.0, 1.0)), mean_of(Transformed(Normal(2.0, 1.0), [SigmoidTransform()]))
        (tensor(2.), None)
    """
    try:
        return p.mean
    except NotImplementedError:
        return None


def closed_form_kl(q: Distribution, p: Distribution) -> Tensor | None:
    """KL(q ‖ p) where a formula is registered for it, else None: kl_divergence tells by NotImplementedError."""
    try:
        return kl_divergence(q, p)
    except NotImplementedError:
        return None


def kl(q: Distribution, p: Distribution, z: Tensor) -> Tensor:
    """KL(q ‖ p) in closed form, or else its unbiased estimate log q(z) − log p(z) at z ~ q."""
    exact = closed_form_kl(q, p)
    return log_ratio(q, p, z) if exact is None else exact


def log_ratio(q: Distribution, p: Distribution, z: Tensor) -> Tensor:
    """log q(z) − log p(z), the estimate of KL(q ‖ p) at z ~ q."""
    return q.log_prob(z) - p.log_prob(z)
