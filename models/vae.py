"""The generative model p(z) p(x|z) as a Pyro program."""

from typing import Any

import pyro
import pyro.distributions as dist
from pyro import poutine
from pyro.nn import PyroModule
from torch import Tensor, nn

from pyrovae.models.likelihoods.likelihood import Likelihood
from pyrovae.models.priors import Prior


class VAE(PyroModule):
    """The generative model p(x, z) = p(z) p(x|z), with its latent site scaled by β.

    With a guide under the same scale, the losses of ``Trace_ELBO`` and ``TraceMeanField_ELBO`` are the sum over the
    batch of L = D + β R (Higgins et al. 2017), in nats.

    Args:
        prior: () → p(z).
        decoder: z → features.
        likelihood: features → p(x|z).

    Example:
        >>> import torch
        >>> from pyrovae.models import VAE
        >>> from pyrovae.models.likelihoods import Bernoulli
        >>> from pyrovae.models.priors import StandardNormal
        >>> from pyrovae.networks import MLP
        >>> VAE(StandardNormal(2), MLP((2,), (16,), 64), Bernoulli((1, 8, 8)))
        VAE: p(z) p(x|z)
          z ~ StandardNormal [2]
          x ~ Bernoulli(decoder(z)) [1, 8, 8]
          decoder = MLP(2 → 16 → 64)
    """

    def __init__(self, prior: nn.Module, decoder: nn.Module, likelihood: nn.Module) -> None:
        super().__init__("model")
        self.prior = prior
        self.decoder = decoder
        self.likelihood = likelihood

    def forward(
        self, x: Tensor | None = None, beta: float | Tensor = 1.0, n: int = 1, index: Tensor | None = None
    ) -> Tensor:
        """Runs the program, conditioned on images or sampling them.

        Args:
            x: images ``[batch, *event_shape]``; None to sample.
            beta: weight β of the rate.
            n: number of images to sample.
            index: rows of ``x`` in the training set, ``[batch]``, for priors that treat training images specially;
                None for other images.
        """
        in_training = x is not None and index is not None and isinstance(self.prior, Prior)
        prior = self.prior.of(x, index) if in_training else self.prior()  # type: ignore[operator]
        with pyro.plate("data", n if x is None else len(x)):
            with poutine.scale(scale=beta):
                z = pyro.sample("z", prior)
            return pyro.sample("x", self.observed(z, x), obs=x)

    def observed(self, z: Tensor, x: Tensor | None) -> dist.Distribution:
        """p(x|z), given what the likelihood takes as given of images ``x``, if there are any."""
        h = self.decoder(z)
        return self.likelihood.given(h, x) if isinstance(self.likelihood, Likelihood) else self.likelihood(h)

    def decode(self, z: Tensor) -> dist.Distribution:
        """p(x|z) at codes ``[..., latent_size]``, with the event shape of an image."""
        return self.likelihood(self.decoder(z))

    @property
    def _given(self) -> str:
        """What p(x|z) is conditional on besides z, for people to read."""
        name = getattr(getattr(self.likelihood, "support", None), "given", None)
        return f" given {name}" if name else ""

    def __repr__(self) -> str:
        prior: Any = self.prior
        likelihood: Any = self.likelihood
        return (
            f"{type(self).__name__}: p(z) p(x|z)\n"
            f"  z ~ {type(prior).__name__} {list(prior.event_shape)}\n"
            f"  x ~ {type(likelihood).__name__}(decoder(z)) {list(likelihood.event_shape)}{self._given}\n"
            f"  decoder = {self.decoder!r}"
        )
