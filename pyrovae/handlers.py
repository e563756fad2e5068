"""Effect handlers that let a Pyro program run inside ``torch.func`` transforms."""

from collections.abc import Mapping
from functools import singledispatch
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import Distribution, Independent, MultivariateNormal, Normal
from torch.distributions import TransformedDistribution as Transformed


class LocalParams(Messenger):
    """Answers every ``pyro.param`` with the module's own tensor, so that Pyro's store stays empty."""

    def _pyro_param(self, msg: dict[str, Any]) -> None:
        msg["value"] = msg["args"][1]
        msg["done"] = True


class Noise(Messenger):
    """Draws latent sites from noise that is passed in, as in z = μ + σ ε, instead of from a generator.

    It belongs around the guide alone: around the model it would overwrite the replayed z.

    Args:
        noise: standard normal draws by site name, each in the shape that `noise_shape` gives.
            A site without noise is drawn as Pyro draws it.
    """

    def __init__(self, noise: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.noise = noise

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if msg["done"] or msg["is_observed"] or msg["name"] not in self.noise:
            return
        msg["value"] = reparameterize(msg["fn"], self.noise[msg["name"]])
        msg["done"] = True


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
