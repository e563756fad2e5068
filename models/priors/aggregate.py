"""The aggregate posterior prior: a mixture of the guide at the training images."""

import math
from collections.abc import Callable
from functools import partial
from typing import ClassVar, Self

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from pyrovae.models.priors.prior import Prior
from pyrovae.networks import Count

#: Images encoded per chunk, and pairs of a z and an encoding evaluated per chunk.
CHUNK_IMAGES = {"cpu": 256, "cuda": 2**13}
CHUNK_PAIRS = {"cpu": 2**18, "cuda": 2**26}
#: Log density of excluded encodings; −∞ would give NaN gradients.
MASKED_LOG_PROB = -1e30


class AggregatePosterior(Prior):
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

    bank: Tensor
    rows: Tensor

    def __init__(
        self,
        latent_size: int,
        encode: Callable[[Tensor], Tensor],
        distribution: Callable[[Tensor], dist.Distribution],
        refresh: Count = 50,
        others: Count | None = None,
        leave_one_out: bool = False,
    ) -> None:
        super().__init__(latent_size)
        self.encode = encode
        self.distribution = distribution
        self.interval = refresh
        self.others = others
        self.leave_one_out = leave_one_out
        self.register_buffer("bank", torch.empty(0))
        self.register_buffer("rows", torch.empty(0, dtype=torch.long))

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
        features = torch.cat([self.encode(images(part)) for part in rows.split(CHUNK_IMAGES[self.bank.device.type])])
        if len(rows) < size:
            self.bank = self.bank.index_copy(0, rows.to(features.device), features)
        else:
            self.bank = torch.empty_like(features).index_copy(0, rows.to(features.device), features)
        self.rows = rows[:others].to(features.device)

    def forward(self) -> dist.Distribution:
        self._check_filled()
        return BankMixture(self.distribution, self.bank)

    def of(self, x: Tensor, index: Tensor) -> dist.Distribution:
        self._check_filled()
        size = len(self.bank)
        rows = self.rows if self.training else torch.arange(size, device=self.bank.device)
        left_out = rows == index.unsqueeze(-1)
        if self.leave_one_out:
            return BankMixture(self.distribution, self.bank[rows], left_out)
        return BankMixture(self.distribution, self.bank[rows], left_out, self.encode(x), size)

    def _check_filled(self) -> None:
        if not len(self.bank):
            raise RuntimeError("expected a bank of encodings, but it is empty: call refresh() on training images first")


leave_one_out = partial(AggregatePosterior, leave_one_out=True)


class BankMixture(TorchDistribution):
    """A mixture of encodings with equal weights; each batch entry may exclude some and add its own.

    Args:
        distribution: features ``[..., features]`` → distributions.
        bank: features of M encodings, ``[M, features]``.
        left_out: encodings that each batch entry excludes, bool ``[batch, M]``.
        own: features of each batch entry's own encoding, ``[batch, features]``, which has weight 1/size.
        size: number of encodings N in the full mixture, including the own one.
        batch_shape: where ``left_out`` is None.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    has_rsample = False
    support = constraints.real_vector

    def __init__(
        self,
        distribution: Callable[[Tensor], dist.Distribution],
        bank: Tensor,
        left_out: Tensor | None = None,
        own: Tensor | None = None,
        size: int = 0,
        batch_shape: torch.Size = torch.Size(),
    ) -> None:
        self.distribution = distribution
        self.bank = bank
        self.left_out = left_out
        self.own = own
        self.size = size
        batch = batch_shape if left_out is None else left_out.shape[:-1]
        super().__init__(batch, distribution(bank[:1]).event_shape, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        points = value.unsqueeze(-2)
        columns = max(1, CHUNK_PAIRS[value.device.type] // max(1, math.prod(points.shape[:-1])))
        total = None
        for start in range(0, len(self.bank), columns):
            log_q = self.distribution(self.bank[start : start + columns].to(value.dtype)).log_prob(points)
            if self.left_out is not None:
                log_q = log_q.masked_fill(self.left_out[..., start : start + columns], MASKED_LOG_PROB)
            part = log_q.logsumexp(-1)
            total = part if total is None else torch.logaddexp(total, part)
        assert total is not None, "the bank is not empty"
        if self.left_out is None:
            return total - math.log(len(self.bank))
        total = total - (~self.left_out).sum(-1).clamp(min=1).log()
        if self.own is None:
            return total
        others = total + math.log1p(-1 / self.size)
        own = self.distribution(self.own.detach()).log_prob(value)
        score = self.distribution(self.own).log_prob(value.detach())
        return torch.logaddexp(own - math.log(self.size), others) + (score - score.detach())

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        shape = torch.Size(sample_shape) + self.batch_shape
        if self.left_out is None:
            rows = torch.randint(len(self.bank), shape, device=self.bank.device)
            return self.distribution(self.bank[rows]).sample()
        rows = dist.Categorical((~self.left_out).to(self.bank.dtype)).sample(sample_shape)
        z = self.distribution(self.bank[rows]).sample()
        if self.own is None:
            return z
        mine = torch.rand(shape, dtype=z.dtype, device=z.device) < 1 / self.size
        return torch.where(mine.unsqueeze(-1), self.distribution(self.own).sample(sample_shape), z)

    def expand(self, batch_shape: torch.Size, _instance: None = None) -> "BankMixture":
        left_out, own = (
            None if part is None else part.expand(*batch_shape, part.shape[-1]) for part in (self.left_out, self.own)
        )
        return BankMixture(self.distribution, self.bank, left_out, own, self.size, torch.Size(batch_shape))
