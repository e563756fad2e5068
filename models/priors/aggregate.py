"""The aggregate posterior prior: a mixture of the guide at the training images."""

from collections.abc import Callable
from functools import partial
from typing import Self

import pyro.distributions as dist
import torch
from torch import Tensor

from pyrovae.models.priors.bank import BankMixture, BankPrior
from pyrovae.networks import Count


class AggregatePosterior(BankPrior):
    """The aggregate posterior p(z) = q(z) = (1/N) Σ_n q(z|x_n) over the training set.

    Encodings are kept in a bank, which `refresh` recomputes. For training image n, the prior is

        p_n(z) = (1/N) q(z|x_n) + (N−1)/(N M) Σ_m q̃(z|x_m)

    with the current encoding of n and M other encodings q̃ from the bank, m ≠ n: all of them, or a random subsample.
    With all of a fresh bank, R = I ≤ log N: the prior memorises the training set (Hoffman & Johnson 2016). With
    ``leave_one_out``, p_n(z) = 1/(N−1) Σ_{m≠n} q̃(z|x_m): training images are treated like unseen ones.

    No gradient flows into the bank. With all of a fresh bank, the gradient of R is still unbiased, because
    E_q(z)[∇ log q(z)] = 0. A subsample, a stale bank and leave-one-out do not follow the gradient of their own
    objective. The score of q(z|x_n) at its own draw, which has mean zero, is removed from the gradient (Roeder et al.
    2017); otherwise it would add noise of size 1/σ where R is at log N and has no gradient.

    Args:
        latent_size: number of latent dimensions d.
        encode: images → features, a bound method of the guide's encoder.
        distribution: features → q(z|x), a bound method of the guide.
        refresh: training steps between refreshes of the bank.
        others: number M of other encodings per step; None for all.
        leave_one_out: exclude the image's own term.

    Attributes:
        bank: features of the training images, ``[N, features]``; empty until `refresh` is called.
        rows: rows of the current subsample.
        interval: training steps between refreshes.

    Shapes: a distribution with event shape ``[latent_size]``.

    Cost: N densities for each z, M for that of a training image, in chunks; without gradients, memory is bounded.

    Raises:
        RuntimeError: when called before the first `refresh`.

    Example:
        >>> from pyrovae.guides import MeanField
        >>> from pyrovae.networks import MLP
        >>> guide = MeanField(MLP((1, 8, 8), (16,), 4), 2)
        >>> prior = AggregatePosterior(2, guide.encoder.forward, guide.distribution, refresh=1)
        >>> x = torch.rand(10, 1, 8, 8)
        >>> prior.refresh(lambda rows: x[rows], 10)
        >>> prior().event_shape, prior.of(x[:3], torch.arange(3)).batch_shape
        (torch.Size([2]), torch.Size([3]))
    """

    def __init__(
        self,
        latent_size: int,
        encode: Callable[[Tensor], Tensor],
        distribution: Callable[[Tensor], dist.Distribution],
        refresh: Count = 50,
        others: Count | None = None,
        leave_one_out: bool = False,
    ) -> None:
        super().__init__(latent_size, encode, distribution, refresh)
        self.others = others
        self.leave_one_out = leave_one_out

    @classmethod
    def subsampled(
        cls,
        latent_size: int,
        encode: Callable[[Tensor], Tensor],
        distribution: Callable[[Tensor], dist.Distribution],
        refresh: Count = 50,
        components: Count = 100,
    ) -> Self:
        """The aggregate posterior with M = ``components`` other encodings per step, for large training sets."""
        return cls(latent_size, encode, distribution, refresh, others=components)

    @torch.no_grad()
    def refresh(self, images: Callable[[Tensor], Tensor], size: int, generator: torch.Generator | None = None) -> None:
        """Encodes training images: all of them, or with a generator a new subsample of ``others``.

        Args:
            images: rows ``[n]`` → images, ``[n, *event_shape]``.
            size: number of training images N.
            generator: draws the subsample.
        """
        others = min(self.others or size, size)
        rows = torch.arange(size) if generator is None else torch.randperm(size, generator=generator)[:others]
        features = self.encoded(images, rows)
        if len(rows) < size:
            self.bank = self.bank.index_copy(0, rows.to(features.device), features)
        else:
            self.bank = torch.empty_like(features).index_copy(0, rows.to(features.device), features)
        self.rows = rows[:others].to(features.device)

    def forward(self) -> dist.Distribution:
        return BankMixture(self.distribution, self.filled)

    def of(self, x: Tensor, index: Tensor) -> dist.Distribution:
        size = len(self.filled)
        rows = self.rows if self.training else torch.arange(size, device=self.bank.device)
        left_out = rows == index.unsqueeze(-1)
        if self.leave_one_out:
            return BankMixture(self.distribution, self.bank[rows], left_out)
        return BankMixture(self.distribution, self.bank[rows], left_out, self.encode(x), size)


leave_one_out = partial(AggregatePosterior, leave_one_out=True)
