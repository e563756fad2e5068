"""Where the information goes: mutual information, prior gap, and rates of images the mixture has not seen.

The encodings q(z|x_n) of the N training images make up the inference marginal q(z) = (1/N) Σ_n q(z|x_n), and the
rate splits into R = I + G (Hoffman & Johnson 2016, ELBO surgery):

    I = (1/N) Σ_n KL(q(z|x_n) ‖ q(z)),  the mutual information of n and z, at most log N: their index-code information;
    G = KL(q(z) ‖ p(z)),                the prior gap: their marginal KL to the prior.

The inner mixture always holds all N encodings. A subsample of it would bias the result, by nats where the rate is
high; a subsample of the outer points costs only precision.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution, Normal, kl_divergence

from pyrovae.errors import UnsupportedError
from pyrovae.estimators.estimate import Estimate, Kind, mean_over_images
from pyrovae.estimators.marginal import device_of, draw, encodings, log_marginal
from pyrovae.programs.distributions import base_normal, closed_form_kl, mapped

#: Mutual information this close to log N, in nats, is called saturated.
SATURATED = 0.1
#: Variance of the posterior mean over images above which a latent dimension is called active.
ACTIVE = 0.01
#: Draws an image in each of two means, where the mean has no closed form.
DRAWS = 32


class RateTerms(NamedTuple):
    """The rate and the two parts of it, from the same draws, so that rate = information + gap."""

    rate: Estimate
    mutual_information: Estimate
    prior_gap: Estimate


@torch.no_grad()
def rate_terms(
    q: Distribution,
    prior: Distribution,
    *,
    samples: int = 1,
    outer: int | None = None,
    leave_one_out: bool = False,
    generator: torch.Generator | None = None,
) -> RateTerms:
    """R, I and G of the empirical inference marginal, by Monte Carlo over z ~ q(z|x_n).

    Per image: R = log q(z|x_n) − log p(z), I = log q(z|x_n) − log q(z), G = log q(z) − log p(z); unbiased each.

    With ``leave_one_out`` the mixture of image n is over the others, (1/(N−1)) Σ_{m≠n} q(z|x_m). Its I is above that of
    the training set, always; and for images drawn independently, of each other and of the encoder, its expectation is
    above the information of the whole population, that of the inclusive I below (Poole et al. 2019, On variational
    bounds of mutual information, section 2.5). An encoder that was trained on these images can break the second
    bound. G is bounded the other way round. Both are loose by nats where the rate exceeds log N.

    Args:
        q: encodings of the training set, batch shape [N]: diagonal or full-rank normal distributions.
        prior: p(z), on the same event shape.
        samples: draws of z an image.
        outer: images to take the mean over, a random subset; all N by default.
        leave_one_out: leave each image's own encoding out of its mixture.
        generator: for the subset and the draws; torch's own by default.

    Returns:
        Estimates in nats per image. The standard errors are over images; when the mean is over all N, they are wider
        than what Monte Carlo alone leaves open about this training set. No gradient flows through any of it.

    Raises:
        UnsupportedError: ``q`` is of a kind that this cannot take apart.
        ValueError: a number is out of range, or ``prior`` is not one distribution on the event shape of ``q``.

    Cost: ``samples · outer · N`` densities, and memory for ``samples · outer`` draws beside the encodings.

    Example:
        >>> import torch
        >>> from torch.distributions import Independent, Normal
        >>> q = Independent(Normal(torch.tensor([[-50.0], [50.0]]), torch.ones(2, 1)), 1)
        >>> prior = Independent(Normal(torch.zeros(1), 50 * torch.ones(1)), 1)
        >>> terms = rate_terms(q, prior, samples=1000, generator=torch.Generator().manual_seed(0))
        >>> round(terms.mutual_information.value, 4) == round(math.log(2), 4)
        True
        >>> print(terms.rate.kind, terms.mutual_information.notes)
        unbiased ('saturated at log N',)
    """
    _check_alike(q, prior, "prior")
    log_q, log_marginal_z, z = _at_draws(q, samples, outer, leave_one_out, generator)
    log_p = prior.log_prob(z)
    information = _information(log_q - log_marginal_z, q, leave_one_out)
    notes = ["R − log N, because I is saturated"] if information.notes else []
    gap_kind: Kind = "lower bound" if leave_one_out else "unbiased"
    return RateTerms(
        mean_over_images((log_q - log_p).mean(0), "unbiased"),
        information,
        mean_over_images((log_marginal_z - log_p).mean(0), gap_kind, *notes),
    )


@torch.no_grad()
def mutual_information(
    q: Distribution,
    *,
    samples: int = 1,
    outer: int | None = None,
    leave_one_out: bool = False,
    generator: torch.Generator | None = None,
) -> Estimate:
    """The mutual information I = (1/N) Σ_n KL(q(z|x_n) ‖ q(z)) of image and code, unbiased, in nats.

    I ≤ log N always; within 0.1 nats of it the estimate is noted as saturated: what the code tells beyond which
    image it is of cannot be seen from N images. Arguments, errors, cost and sources are those of `rate_terms`.

    Example:
        >>> import torch
        >>> from torch.distributions import Independent, Normal
        >>> q = Independent(Normal(torch.zeros(100, 2), torch.ones(100, 2)), 1)
        >>> abs(mutual_information(q).value) < 1e-9  # the code tells nothing
        True
    """
    log_q, log_marginal_z, _ = _at_draws(q, samples, outer, leave_one_out, generator)
    return _information(log_q - log_marginal_z, q, leave_one_out)


def prior_gap(
    q: Distribution,
    prior: Distribution,
    *,
    samples: int = 1,
    outer: int | None = None,
    leave_one_out: bool = False,
    generator: torch.Generator | None = None,
) -> Estimate:
    """The prior gap G = KL(q(z) ‖ p(z)) of the inference marginal, unbiased, in nats.

    Arguments, errors, cost and sources are those of `rate_terms`.

    Example:
        >>> import torch
        >>> from torch.distributions import Independent, Normal
        >>> q = Independent(Normal(torch.ones(100, 2), torch.ones(100, 2)), 1)
        >>> prior = Independent(Normal(torch.zeros(2), torch.ones(2)), 1)
        >>> gap = prior_gap(q, prior, samples=1000, generator=torch.Generator().manual_seed(0))
        >>> abs(gap.value - 1) < 4.27 * gap.se  # KL(N(1, 1) ‖ N(0, 1)) is 1/2 in each dimension
        True
    """
    return rate_terms(
        q, prior, samples=samples, outer=outer, leave_one_out=leave_one_out, generator=generator
    ).prior_gap


@torch.no_grad()
def marginal_rate(
    q: Distribution,
    training: Distribution,
    *,
    samples: int = 1,
    outer: int | None = None,
    generator: torch.Generator | None = None,
) -> Estimate:
    """The rate of unseen images under the inference marginal, E_x KL(q(z|x) ‖ q(z)), unbiased, in nats per image.

    This is the rate that test images would have if the training set's q(z) were the prior. A test image has no
    encoding of its own in the mixture, so that nothing bounds it by log N.

    Args:
        q: encodings of the unseen images, batch shape [n].
        training: encodings of the training set, batch shape [N].
        samples, outer, generator: as in `rate_terms`.

    Raises:
        UnsupportedError, ValueError: as `rate_terms`.

    Example:
        >>> import torch
        >>> from torch.distributions import Independent, Normal
        >>> training = Independent(Normal(torch.zeros(10, 1), torch.ones(10, 1)), 1)
        >>> unseen = Independent(Normal(torch.full((1000, 1), 2.0), torch.ones(1000, 1)), 1)
        >>> rate = marginal_rate(unseen, training, generator=torch.Generator().manual_seed(0))
        >>> abs(rate.value - 2) < 4.27 * rate.se  # KL(N(2, 1) ‖ N(0, 1))
        True
    """
    _check_alike(q, training, "training", one=False)
    q_outer, _ = _outer(q, outer, generator)
    z = draw(q_outer, samples, generator)
    return mean_over_images((q_outer.log_prob(z) - log_marginal(z, encodings(training))).mean(0), "unbiased")


@torch.no_grad()
def rate(
    q: Distribution, prior: Distribution, *, samples: int = 1, generator: torch.Generator | None = None
) -> Estimate:
    """The rate R = E_x KL(q(z|x) ‖ p(z)), in nats per image (Kingma & Welling 2014).

    In closed form where there is one, and then "exact" for the images at hand; else the mean of
    log q(z|x) − log p(z) over draws, "unbiased". `rate_terms` gives the Monte Carlo value in either case.

    Args:
        q: encodings, batch shape [n].
        prior: p(z).
        samples: draws of z an image, where there is no closed form.
        generator: for the draws.

    Example:
        >>> import torch
        >>> from torch.distributions import Independent, Normal
        >>> q = Independent(Normal(torch.ones(5, 3), torch.ones(5, 3)), 1)
        >>> print(rate(q, Independent(Normal(torch.zeros(3), torch.ones(3)), 1)))
        1.500 ± 0.000 (exact)
    """
    _check_alike(q, prior, "prior")
    q = encodings(q)
    exact = closed_form_kl(q, prior)
    if exact is not None:
        return mean_over_images(exact, "exact")
    z = draw(q, samples, generator)
    return mean_over_images((q.log_prob(z) - prior.log_prob(z)).mean(0), "unbiased")


@torch.no_grad()
def rate_per_dimension(q: Distribution, prior: Distribution) -> tuple[Estimate, ...]:
    """The rate of each latent dimension, E_x KL(q(z_d|x) ‖ p(z_d)), in nats per image, in closed form.

    Where q and p are both diagonal they add up to R; under a full-rank q the sum leaves out what the dimensions
    tell about each other.

    Args:
        q: encodings, batch shape [n].
        prior: p(z), a diagonal normal distribution.

    Raises:
        UnsupportedError: a distribution is not normal, so that its margins are not known.
        ValueError: ``prior`` is not one distribution on the event shape of ``q``.

    Example:
        >>> import torch
        >>> from torch.distributions import Independent, Normal
        >>> q = Independent(Normal(torch.tensor([[0.0, 2.0]]).expand(5, 2), torch.ones(5, 2)), 1)
        >>> [each.value for each in rate_per_dimension(q, Independent(Normal(torch.zeros(2), torch.ones(2)), 1))]
        [0.0, 2.0]
    """
    _check_alike(q, prior, "prior")
    if base_normal(q) is None:
        raise UnsupportedError(f"q: expected a normal distribution, whose margins are known, got {type(q).__name__}")
    q = encodings(q)
    p = mapped(prior, Tensor.double)
    kl = kl_divergence(Normal(q.mean, q.stddev), Normal(p.mean, p.stddev))
    return tuple(mean_over_images(column, "exact") for column in kl.T)


@torch.no_grad()
def active_units(q: Distribution, *, generator: torch.Generator | None = None) -> Estimate:
    """The number of latent dimensions d with Var_x(E_q[z_d]) > 0.01 (Burda et al. 2016, section 5.2).

    Where q has no mean in closed form, as a flow has none, the variance is the covariance over images of the means of
    two independent sets of 32 draws, which is unbiased for it.

    Args:
        q: encodings, batch shape [n].
        generator: for the draws.

    Returns:
        A count; for the images at hand it is exact, with standard error 0, but for a flow. NaN where a mean is not
        finite.

    Raises:
        ValueError: there are fewer than two encodings.

    Example:
        >>> import torch
        >>> from torch.distributions import Independent, Normal
        >>> active_units(Independent(Normal(torch.tensor([[0.0, -1.0], [0.1, 1.0]]), torch.ones(2, 2)), 1)).value
        1.0
    """
    if q.batch_shape.numel() < 2:
        raise ValueError(f"q: expected at least 2 encodings, whose means can vary, got {q.batch_shape.numel()}")
    q = encodings(q)
    sampled = base_normal(q) is None
    first, second = (_sampled_mean(q, generator) if sampled else q.mean for _ in range(2))
    variance = ((first - first.mean(0)) * (second - second.mean(0))).sum(0) / (len(first) - 1)
    count = float((variance > ACTIVE).sum()) if variance.isfinite().all() else math.nan
    if sampled:
        return Estimate(count, math.nan, "approximate", (f"from variances by {2 * DRAWS} draws an image",))
    return Estimate(count, 0.0, "exact")


def _sampled_mean(q: Distribution, generator: torch.Generator | None) -> Tensor:
    """Mean of some draws of each encoding, a part of the encodings at a time."""
    rows = torch.arange(q.batch_shape.numel()).split(1024)
    return torch.cat([draw(encodings(q, part), DRAWS, generator).mean(0) for part in rows])


def _check_alike(q: Distribution, p: Distribution, name: str, one: bool = True) -> None:
    """Raises ValueError if ``p`` is on another event shape, or more than one distribution where one is expected."""
    if p.event_shape != q.event_shape:
        raise ValueError(
            f"{name}: expected event shape {list(q.event_shape)}, that of q, got {list(p.event_shape)}; "
            "a diagonal normal distribution needs .to_event(1)"
        )
    if one and p.batch_shape not in ((), (1,)):
        raise ValueError(f"{name}: expected one distribution, got batch shape {list(p.batch_shape)}")


def _at_draws(
    q: Distribution, samples: int, outer: int | None, leave_one_out: bool, generator: torch.Generator | None
) -> tuple[Tensor, Tensor, Tensor]:
    """log q(z|x_n) and log q(z), ``[samples, outer]`` each, and the z that they are taken at."""
    q_outer, rows = _outer(q, outer, generator)
    if leave_one_out and q.batch_shape.numel() < 2:
        raise ValueError("q: expected at least 2 encodings to leave one out, got 1")
    z = draw(q_outer, samples, generator)
    return q_outer.log_prob(z), log_marginal(z, encodings(q), rows if leave_one_out else None), z


def _outer(q: Distribution, outer: int | None, generator: torch.Generator | None) -> tuple[Distribution, Tensor]:
    """The encodings to take the mean over, and their rows in ``q``."""
    size = q.batch_shape.numel()
    if outer is None or outer == size:
        rows = torch.arange(size)
    elif 1 <= outer < size:
        rows = torch.randperm(size, generator=generator)[:outer]
    else:
        raise ValueError(f"outer: expected 1 to {size} encodings, got {outer}")
    rows = rows.to(device_of(q))
    return encodings(q, rows), rows


def _information(log_ratio: Tensor, q: Distribution, leave_one_out: bool) -> Estimate:
    if leave_one_out:
        return mean_over_images(log_ratio.mean(0), "upper bound")
    estimate = mean_over_images(log_ratio.mean(0), "unbiased")
    if estimate.value > math.log(q.batch_shape.numel()) - SATURATED:
        return Estimate(estimate.value, estimate.se, estimate.kind, ("saturated at log N",))
    return estimate
