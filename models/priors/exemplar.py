"""The exemplar prior: a mixture of equal normal distributions around the codes of training images."""

from collections.abc import Callable

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrovae.models.priors.bank import BankMixture, BankPrior
from pyrovae.networks import Count


class Exemplar(BankPrior):
    """The exemplar prior p_n(z) = 1/(N−1) Σ_{m≠n} N(z; E[q(z|x_m)], σ² I) with one learned σ (Norouzi et al. 2020).

    It is a kernel density estimate of the codes with a bandwidth σ of its own: unlike the aggregate posterior, it can
    be smooth where each q(z|x_m) is narrow. A training image is never its own exemplar, so that σ cannot shrink to
    memorise them; test images have all N exemplars.

    A training step uses M random exemplars, resampled at each refresh, and gradients flow into their codes. The mean
    over these M is used in place of the mean over all N, so log-densities are a little too low on average. Evaluation
    uses all N.

    Args:
        latent_size: number of latent dimensions d.
        encode: images → features, a bound method of the guide's encoder.
        distribution: features → q(z|x), a bound method of the guide.
        refresh: training steps between resampling the exemplars.
        components: number M of exemplars per step.

    Attributes:
        bank: features of the training images, ``[N, features]``; empty until `refresh` is called.
        exemplars: images of the M exemplars, ``[M, *event_shape]``, and ``rows``, their rows in the training set.
        interval: training steps between refreshes.

    Shapes: a distribution with event shape ``[latent_size]``.

    Cost: M images more in the encoder at each step; N densities for each z that is measured, in chunks.

    Raises:
        RuntimeError: when called before the first `refresh`.

    Source: Norouzi, Fleet & Norouzi 2020, Exemplar VAE, NeurIPS.

    Example:
        >>> from pyrovae.guides import MeanField
        >>> from pyrovae.networks import MLP
        >>> guide = MeanField(MLP((1, 8, 8), (16,), 4), 2)
        >>> prior = Exemplar(2, guide.encoder.forward, guide.distribution, components=5)
        >>> x = torch.rand(10, 1, 8, 8)
        >>> prior.refresh(lambda rows: x[rows], 10)
        >>> prior().event_shape, prior.of(x[:3], torch.arange(3)).batch_shape, prior.scale.item()
        (torch.Size([2]), torch.Size([3]), 1.0)
    """

    exemplars: Tensor

    def __init__(
        self,
        latent_size: int,
        encode: Callable[[Tensor], Tensor],
        distribution: Callable[[Tensor], dist.Distribution],
        refresh: Count = 20,
        components: Count = 100,
    ) -> None:
        super().__init__(latent_size, encode, distribution, refresh)
        self.components = components
        self.log_scale = nn.Parameter(torch.zeros(1))
        self.register_buffer("exemplars", torch.empty(0))

    @property
    def scale(self) -> Tensor:
        """σ."""
        return self.log_scale.exp()

    @torch.no_grad()
    def refresh(self, images: Callable[[Tensor], Tensor], size: int, generator: torch.Generator | None = None) -> None:
        """Samples the exemplars of the next steps with a generator; without one, encodes all training images.

        Args:
            images: rows ``[n]`` → images, ``[n, *event_shape]``.
            size: number of training images N.
            generator: samples the exemplars.
        """
        count = min(self.components, size)
        if generator is None:
            self.bank = self.encoded(images, torch.arange(size))
        rows = torch.arange(count) if generator is None else torch.randperm(size, generator=generator)[:count]
        self.exemplars = images(rows)
        self.rows = rows.to(self.bank.device)

    def forward(self) -> dist.Distribution:
        return BankMixture(self._around, self.filled)

    def of(self, x: Tensor, index: Tensor) -> dist.Distribution:
        bank, rows = self.filled, torch.arange(len(self.bank), device=self.bank.device)
        if self.training:
            bank, rows = self.encode(self.exemplars), self.rows
        return BankMixture(self._around, bank, rows == index.unsqueeze(-1))

    def _around(self, features: Tensor) -> dist.Distribution:
        """N(E[q(z|x)], σ² I) of encodings."""
        means = self.distribution(features).mean
        return dist.Normal(means, self.scale.to(means.dtype).expand_as(means)).to_event(1)
