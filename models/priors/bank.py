"""A bank of encodings of the training images, and mixtures of them, for the priors that know these images."""

import math
from collections.abc import Callable
from typing import ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from pyrovae.models.priors.prior import Prior, log_densities
from pyrovae.numerics import logsumexp

#: Images encoded per chunk, and pairs of a z and an encoding evaluated per chunk.
CHUNK_IMAGES = {"cpu": 256, "cuda": 2**13}
CHUNK_PAIRS = {"cpu": 2**18, "cuda": 2**26}
#: Log density of excluded encodings; −∞ would give NaN gradients.
MASKED_LOG_PROB = -1e30


class BankPrior(Prior):
    """A prior that keeps encodings of the training images, which a subclass recomputes by ``refresh``.

    Args:
        latent_size: number of latent dimensions d.
        encode: images → features, a bound method of the guide's encoder.
        distribution: features → q(z|x), a bound method of the guide.
        interval: training steps between refreshes.

    Attributes:
        bank: features of the training images, ``[N, features]``; empty until the first refresh.
        rows: rows of the training images that the next training steps use.
    """

    bank: Tensor
    rows: Tensor

    def __init__(
        self,
        latent_size: int,
        encode: Callable[[Tensor], Tensor],
        distribution: Callable[[Tensor], dist.Distribution],
        interval: int,
    ) -> None:
        super().__init__(latent_size)
        self.encode = encode
        self.distribution = distribution
        self.interval = interval
        self.register_buffer("bank", torch.empty(0))
        self.register_buffer("rows", torch.empty(0, dtype=torch.long))

    @property
    def filled(self) -> Tensor:
        """The bank.

        Raises:
            RuntimeError: it is empty.
        """
        if not len(self.bank):
            raise RuntimeError("expected a bank of encodings, but it is empty: call refresh() on training images first")
        return self.bank

    def encoded(self, images: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
        """Features of some training images, ``[n, features]``."""
        return torch.cat([self.encode(images(part)) for part in rows.split(CHUNK_IMAGES[self.bank.device.type])])


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
        columns = max(1, CHUNK_PAIRS[value.device.type] // max(1, math.prod(value.shape[:-1])))
        total = None
        for start in range(0, len(self.bank), columns):
            log_q = log_densities(self.distribution(self.bank[start : start + columns].to(value.dtype)), value)
            if self.left_out is not None:
                log_q = log_q.masked_fill(self.left_out[..., start : start + columns], MASKED_LOG_PROB)
            part = logsumexp(log_q, -1)
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
