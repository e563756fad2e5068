"""A model with separate weights for mutual information and prior gap."""

from collections.abc import Callable

import pyro
import pyro.distributions as dist
from pyro import poutine
from torch import Tensor, nn

from pyrovae.models.priors import AggregatePosterior
from pyrovae.models.vae import VAE
from pyrovae.networks import Count


class GapVAE(VAE):
    """The model with loss L = D + β I + γ G, which separates the weights of mutual information and prior gap.

    R = I + G (Hoffman & Johnson 2016) with I = E_x KL(q(z|x) ‖ q(z)) and G = KL(q(z) ‖ p(z)). z is sampled from the
    inference marginal q(z) under scale β, and a factor adds γ (log p(z) − log q(z)). γ = β is the β-VAE; at γ = 0, the
    aggregate posterior is the prior.

    q(z) is an `AggregatePosterior` of all training images. A bank b ≠ q(z) adds (β − γ) KL(q(z) ‖ b) to the loss, so
    γ > β would reward the error of the bank.

    Args:
        prior: () → p(z).
        decoder: z → features.
        likelihood: features → p(x|z).
        encode, distribution, refresh: as in `AggregatePosterior`.

    Example:
        >>> import torch
        >>> from pyrovae import Run, make_pair
        >>> pair = make_pair(Run(model="gap", depth=1, width=8, latent_size=2), (1, 8, 8))
        >>> x = torch.rand(10, 1, 8, 8)
        >>> pair.refresh(x)
        >>> terms = pair(x, beta=0.5, gamma=0.1, index=torch.arange(10))
        >>> I, G = terms.rates["z"], terms.rates["gap"]
        >>> torch.allclose(terms.loss, terms.distortion + 0.5 * I + 0.1 * G)
        True
    """

    def __init__(
        self,
        prior: nn.Module,
        decoder: nn.Module,
        likelihood: nn.Module,
        encode: Callable[[Tensor], Tensor],
        distribution: Callable[[Tensor], dist.Distribution],
        refresh: Count = 50,
    ) -> None:
        super().__init__(prior, decoder, likelihood)
        (size,) = prior.event_shape  # type: ignore[misc]
        self.marginal = AggregatePosterior(size, encode, distribution, refresh)

    def forward(
        self,
        x: Tensor | None = None,
        beta: float | Tensor = 1.0,
        n: int = 1,
        index: Tensor | None = None,
        gamma: float | Tensor | None = None,
    ) -> Tensor:
        """Runs the program, conditioned on images or sampling them.

        Args:
            x: images ``[batch, *event_shape]``; None to sample.
            beta: weight β of I.
            n: number of images to sample.
            index: rows of ``x`` in the training set, ``[batch]``; None for other images.
            gamma: weight γ of G; None for γ = β.
        """
        marginal = self.marginal() if index is None or x is None else self.marginal.of(x, index)
        with pyro.plate("data", n if x is None else len(x)):
            with poutine.scale(scale=beta):
                z = pyro.sample("z", marginal)
            gap = marginal.log_prob(z) - self.prior().log_prob(z)
            pyro.factor("gap", -(beta if gamma is None else gamma) * gap)
            pyro.deterministic("rate/gap", gap, event_dim=0)
            return pyro.sample("x", self.observed(z, x), obs=x)

    def __repr__(self) -> str:
        return super().__repr__().replace("VAE: p(z) p(x|z)", "VAE: q(z) (p(z)/q(z))^γ p(x|z)")
