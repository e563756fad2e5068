"""Operations that torch's distributions lack: samples from injected noise, indexing of a batch, further KL divergences.

They are dispatched on the type of the distribution. Other distributions than torch's implement `FromNoise`.
"""

from collections.abc import Callable
from functools import singledispatch
from typing import Any, Protocol, Self, runtime_checkable

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
    """A distribution that can be sampled from injected noise and whose parameters can be mapped."""

    noise_shape: torch.Size
    """Shape of the standard normal noise of one draw, batch shape first."""

    def from_noise(self, noise: Tensor) -> Tensor:
        """One draw as a differentiable function of standard normal noise."""
        ...

    def mapped(self, function: Callable[..., Tensor], *others: Self) -> Self:
        """A distribution of this type whose parameters are ``function`` of those of ``self`` and ``others``."""
        ...


@singledispatch
def base_normal(q: Distribution) -> Normal | MultivariateNormal | None:
    """The normal distribution that ``q`` transforms, or None if its base is not normal."""
    return None


@base_normal.register
def _(q: Normal) -> Normal:
    return q


@base_normal.register
def _(q: MultivariateNormal) -> MultivariateNormal:
    return q


@base_normal.register(Independent)
@base_normal.register(Transformed)
def _(q: Independent[Any] | Transformed) -> Normal | MultivariateNormal | None:
    return base_normal(q.base_dist)


def noise_shape(q: Distribution) -> torch.Size | None:
    """Shape of the standard normal noise of one draw from ``q``, or None if `reparameterize` does not support it."""
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


@reparameterize.register(Independent)
def _(q: Independent[Any], noise: Tensor) -> Tensor:
    return reparameterize(q.base_dist, noise)


@reparameterize.register
def _(q: Transformed, noise: Tensor) -> Tensor:
    z = reparameterize(q.base_dist, noise)
    for transform in q.transforms:
        z = transform(z)
    return z


@singledispatch
def mapped(q: Distribution, function: Callable[..., Tensor], *others: Distribution) -> Distribution:
    """A distribution whose parameters are ``function`` of the parameters of ``q`` and ``others``, all of one type.

    Raises:
        UnsupportedError: the type is not supported.
    """
    if isinstance(q, FromNoise):
        return q.mapped(function, *others)  # type: ignore[arg-type]
    raise UnsupportedError(f"expected a diagonal or full-rank normal distribution or a flow, got {type(q).__name__}")


@mapped.register
def _(q: Normal, function: Callable[..., Tensor], *others: Normal) -> Normal:
    each_q = (q, *others)
    return Normal(function(*(each.loc for each in each_q)), function(*(each.scale for each in each_q)), False)


@mapped.register
def _(q: MultivariateNormal, function: Callable[..., Tensor], *others: MultivariateNormal) -> MultivariateNormal:
    each_q = (q, *others)
    scale_tril = function(*(each.scale_tril for each in each_q))
    return MultivariateNormal(function(*(each.loc for each in each_q)), scale_tril=scale_tril, validate_args=False)


@mapped.register(Independent)
def _(q: Independent[Any], function: Callable[..., Tensor], *others: Independent[Any]) -> Independent[Any]:
    base = mapped(q.base_dist, function, *(each.base_dist for each in others))
    return Independent(base, q.reinterpreted_batch_ndims, False)


@singledispatch
def unconstrained(q: Distribution) -> tuple[list[Tensor], Callable[..., Distribution]]:
    """Unconstrained parameters of ``q``, and the function from them to a distribution of its family.

    Raises:
        UnsupportedError: the type is not supported.

    Example:
        >>> values, distribution = unconstrained(Normal(torch.zeros(2), torch.ones(2)))
        >>> values[1], distribution(*values).scale
        (tensor([0., 0.]), tensor([1., 1.]))
    """
    values: list[Tensor] = []

    def collect(value: Tensor) -> Tensor:
        values.append(value)
        return value

    def distribution(*others: Tensor) -> Distribution:
        rest = iter(others)
        return mapped(q, lambda _: next(rest))

    mapped(q, collect)  # the parameters of a FromNoise have no constraints
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


@unconstrained.register(Independent)
def _(q: Independent[Any]) -> tuple[list[Tensor], Callable[..., Distribution]]:
    values, base = unconstrained(q.base_dist)
    return values, lambda *others: Independent(base(*others), q.reinterpreted_batch_ndims, False)


def concatenated(parts: list[Distribution]) -> Distribution:
    """One distribution with the batches of ``parts`` concatenated.

    Example:
        >>> import torch
        >>> concatenated([Normal(torch.zeros(2), 1.0), Normal(torch.zeros(3), 1.0)]).batch_shape
        torch.Size([5])
    """
    return mapped(parts[0], lambda *tensors: torch.cat(tensors), *parts[1:])


@register_kl(MultivariateNormal, Independent)  # type: ignore[untyped-decorator]
def _kl_full_rank_diagonal(q: MultivariateNormal, p: Independent[Any]) -> Tensor:
    """KL(N(μ, L Lᵀ) ‖ N(m, diag s²)), which torch lacks and a full-rank guide needs."""
    if not (isinstance(p.base_dist, Normal) and p.event_shape == q.event_shape):
        # kl_divergence expects this error, and its callers (Pyro too) fall back on Monte Carlo.
        raise NotImplementedError("no closed form for this pair")
    m, s = p.base_dist.loc, p.base_dist.scale
    spread = (q.scale_tril / s.unsqueeze(-1)).square().sum((-2, -1))
    distance = ((q.loc - m) / s).square().sum(-1)
    log_det = (s.log() - q.scale_tril.diagonal(dim1=-2, dim2=-1).log()).sum(-1)
    return (spread + distance - q.event_shape[0]) / 2 + log_det


def mean_of(p: Distribution) -> Tensor | None:
    """E[x] under p, or None if torch has no formula for it.

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
    """KL(q ‖ p), or None if no closed form is registered."""
    try:
        return kl_divergence(q, p)
    except NotImplementedError:
        return None


def kl(q: Distribution, p: Distribution, z: Tensor) -> Tensor:
    """KL(q ‖ p) in closed form, or its unbiased estimate log q(z) − log p(z) at z ~ q."""
    exact = closed_form_kl(q, p)
    return log_ratio(q, p, z) if exact is None else exact


def log_ratio(q: Distribution, p: Distribution, z: Tensor) -> Tensor:
    """log q(z) − log p(z), the estimate of KL(q ‖ p) at z ~ q."""
    return q.log_prob(z) - p.log_prob(z)
