"""The negative binomial likelihood."""

from collections.abc import Sequence

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints

from pyrovae.models.likelihoods.counts import Counts

#: Bound on |log α|; at e⁻¹⁰ the distribution is a Poisson up to 1e-4 nats for counts of about one.
LOG_DISPERSION_BOUND = 10.0
#: From here on, the series of log Γ is exact in float64 up to 1e-14.
SERIES_FROM = 64.0


class NegativeBinomialDistribution(dist.TorchDistribution):
    """Counts with mean μ and variance μ + α μ²: a Poisson whose rate has a Gamma(1/α) distribution with mean μ.

    With r = 1/α, log p(x) = log Γ(r + x) − log Γ(r) − x log r − log x! + x log μ − (r + x) log(1 + μ/r). Unlike torch's
    distribution of that name, it is exact up to rounding also for large r, where it becomes the Poisson distribution.

    Args:
        loc: the mean μ.
        dispersion: α.

    Example:
        >>> import torch
        >>> NegativeBinomialDistribution(torch.tensor(2.0), torch.tensor([0.5, 1e-4])).log_prob(torch.tensor(3.0)).exp()
        tensor([0.1250, 0.1804])
    """

    arg_constraints = {"loc": constraints.positive, "dispersion": constraints.positive}  # noqa: RUF012
    support = constraints.nonnegative_integer

    def __init__(self, loc: Tensor, dispersion: Tensor, validate_args: bool | None = None) -> None:
        self.loc, self.dispersion = torch.broadcast_tensors(loc, dispersion)
        super().__init__(self.loc.shape, validate_args=validate_args)

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> "NegativeBinomialDistribution":
        loc, dispersion = self.loc.expand(batch_shape), self.dispersion.expand(batch_shape)
        return NegativeBinomialDistribution(loc, dispersion, self._validate_args)

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x) in nats."""
        if self._validate_args:
            self._validate_sample(x)
        r = 1 / self.dispersion
        rest = x * self.loc.log() - (r + x) * torch.log1p(self.loc / r) - torch.lgamma(x + 1)
        return _log_rising(r, x) + rest

    @property
    def mean(self) -> Tensor:
        return self.loc

    @property
    def variance(self) -> Tensor:
        """μ + α μ²."""
        return self.loc + self.dispersion * self.loc**2

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        """Draws Poisson counts whose rates are Gamma draws."""
        with torch.no_grad():
            r = (1 / self.dispersion).expand(self._extended_shape(sample_shape))
            return torch.poisson(torch._standard_gamma(r) * self.dispersion * self.loc)


class NegativeBinomial(Counts):
    """Independent counts p(x|h) = ∏ᵢ NB(xᵢ; μᵢ, αᵢ) with variance μ + α μ², log μ = h and one learned α per dimension.

    The encoder sees log(1 + x). The floor is that of the Poisson, at μ = x as α → 0, because a mixture of Poissons
    gives x no more than the best of them does.

    Args:
        event_shape: shape of one item.
        offset: whether the last dimension of x is the item's offset s > 0, with μ = s eʰ.

    Attributes:
        log_dispersion: the parameter log α, one for each count, initially 0.

    Shapes: features ``[..., features]`` → a distribution with event shape ``event_shape``.

    Source: Lopez et al. 2018, "Deep generative modeling for single-cell transcriptomics", without zero inflation.

    Example:
        >>> import torch
        >>> NegativeBinomial((4,))(torch.zeros(7, 4)).variance.unique()
        tensor([2.], grad_fn=<Unique2Backward0>)
    """

    def __init__(self, event_shape: Sequence[int], offset: bool = False) -> None:
        super().__init__(event_shape, offset)
        self.log_dispersion = nn.Parameter(torch.zeros(self.counts_shape))

    def counts(self, mean: Tensor) -> dist.Distribution:
        dispersion = self.log_dispersion.clamp(-LOG_DISPERSION_BOUND, LOG_DISPERSION_BOUND).exp()
        return NegativeBinomialDistribution(mean, dispersion)


def _log_rising(r: Tensor, x: Tensor) -> Tensor:
    """log Γ(r + x) − log Γ(r) − x log r, without cancellation for large r."""
    large = r > SERIES_FROM
    far, near = torch.where(large, r, SERIES_FROM), torch.where(large, SERIES_FROM, r)
    series = (far + x - 0.5) * torch.log1p(x / far) - x + _remainder(far + x) - _remainder(far)
    return torch.where(large, series, torch.lgamma(near + x) - torch.lgamma(near) - x * near.log())


def _remainder(z: Tensor) -> Tensor:
    """log Γ(z) − (z − 1/2) log z + z − log(2π)/2, from Stirling's series."""
    return 1 / (12 * z) - 1 / (360 * z**3) + 1 / (1260 * z**5)
