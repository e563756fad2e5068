"""The model in which mutual information and prior gap have weights of their own."""

from collections.abc import Callable

import pyro
import pyro.distributions as dist
from pyro import poutine
from torch import Tensor, nn

from pyrovae.models.priors import AggregatePosterior
from pyrovae.models.vae import VAE
from pyrovae.networks import Count


class GapVAE(VAE):
    """The model whose loss is L = D + β I + γ G: the dial for the prior gap.

    R = I + G (Hoffman & Johnson 2016) with I = E_x KL(q(z|x) ‖ q(z)) and G = KL(q(z) ‖ p(z)). z is drawn from the
    inference marginal q(z) under scale β, and a factor brings γ (log p(z) − log q(z)). At γ = β this is the β-VAE, at
    γ = 0 the aggregate posterior is the prior.

    q(z) is an `AggregatePosterior` of all training images. Where its bank is b instead, the loss gains
    (β − γ) KL(q(z) ‖ b), so that γ > β would reward the bank's error.

    Args:
        prior: called without arguments, returns p(z).
        decoder: features of z.
        likelihood: called with these features, returns p(x|z).
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
        """Runs the program: conditioned on images ``x`` ``[batch, *event_shape]``, or sampling ``n`` of them.

        Args:
            index: which training images ``x`` are, ``[batch]``; None if they are none.
            gamma: weight of the prior gap; None for that of β.
        """
        marginal = self.marginal() if index is None or x is None else self.marginal.of(x, index)
        with pyro.plate("data", n if x is None else len(x)):
            with poutine.scale(scale=beta):
                z = pyro.sample("z", marginal)
            gap = marginal.log_prob(z) - self.prior().log_prob(z)
            pyro.factor("gap", -(beta if gamma is None else gamma) * gap)
            pyro.deterministic("rate/gap", gap, event_dim=0)
            return pyro.sample("x", self.likelihood(self.decoder(z)), obs=x)

    def __repr__(self) -> str:
        return super().__repr__().replace("VAE: p(z) p(x|z)", "VAE: q(z) (p(z)/q(z))^γ p(x|z)")
