"""The rate and its parts: mutual information, prior gap, and the rate of unseen images under the inference marginal.

The encodings q(z|x_n) of the N training images define the inference marginal q(z) = (1/N) Σ_n q(z|x_n). The rate is
R = I + G (Hoffman & Johnson 2016, ELBO surgery) with

    I = (1/N) Σ_n KL(q(z|x_n) ‖ q(z)) ≤ log N,  the mutual information of n and z ("index-code information");
    G = KL(q(z) ‖ p(z)),                        the prior gap ("marginal KL to the prior").

The inner mixture always contains all N encodings: a subsample would bias I, by nats where the rate is high. A
subsample of the outer points only costs precision.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution, Normal, kl_divergence

from pyrovae.errors import InputError, UnsupportedError
from pyrovae.estimators.estimate import Estimate, Kind, mean_over_images
from pyrovae.estimators.marginal import device_of, draw, encodings, in_float64, log_marginal
from pyrovae.programs.distributions import base_normal, closed_form_kl

#: Mutual information within this many nats of log N is called saturated.
SATURATED = 0.1
#: Variance of the posterior mean over images above which a latent dimension is active.
ACTIVE = 0.01
#: Draws per image for each of two estimates of a posterior mean without closed form.
MEAN_DRAWS = 32


class RateTerms(NamedTuple):
    """The rate and its two parts from the same draws, so that rate = information + gap."""

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

    Per image, R = log q(z|x_n) − log p(z), I = log q(z|x_n) − log q(z) and G = log q(z) − log p(z), each unbiased.

    With ``leave_one_out``, the mixture for image n is over the other images, (1/(N−1)) Σ_{m≠n} q(z|x_m). This I is an
    upper bound on that of the training set. For images drawn independently of each other and of the encoder, its
    expectation is also an upper bound on the information of the population, and that of the inclusive I a lower bound
    (Poole et al. 2019, On variational bounds of mutual information, section 2.5); an encoder trained on these images
    can violate this. For G, the bounds are reversed. Both are loose by nats where the rate exceeds log N.

    Args:
        q: encodings of the training set, batch shape [N]: diagonal or full-rank normal distributions, or flows.
        prior: p(z), with the same event shape.
        samples: draws of z per image.
        outer: number of images to average over, a random subset; all N by default.
        leave_one_out: exclude each image's own encoding from its mixture.
        generator: for the subset and the draws; torch's default generator if None.

    Returns:
        Estimates in nats per image, without gradients. The standard errors are over images; where the mean is over all
        N, they overstate the Monte Carlo error for this training set.

    Raises:
        UnsupportedError: ``q`` is neither a normal distribution nor a flow.
        InputError: a number is out of range, or ``prior`` is not one distribution with the event shape of ``q``.

    Cost: ``samples · outer · N`` densities, and memory for ``samples · outer`` draws and the encodings.

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
    log_p = in_float64(prior).log_prob(z)
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

    I ≤ log N. Within 0.1 nats of log N, a note says that it is saturated: the codes identify the images, and N images
    cannot show whether they carry more. Arguments, errors, cost and sources are those of `rate_terms`.

    Example:
        >>> import torch
        >>> from torch.distributions import Independent, Normal
        >>> q = Independent(Normal(torch.zeros(100, 2), torch.ones(100, 2)), 1)
        >>> abs(mutual_information(q).value) < 1e-9  # all images have the same code
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

    This is the rate that test images would have with the training set's q(z) as the prior. Test images are not part of
    the mixture, so log N is not a bound.

    Args:
        q: encodings of the unseen images, batch shape [n].
        training: encodings of the training set, batch shape [N].
        samples, outer, generator: as in `rate_terms`.

    Raises:
        InputError: as `rate_terms`.

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

    The closed form where there is one ("exact" for these images), otherwise the mean of log q(z|x) − log p(z) over
    draws ("unbiased"). `rate_terms` always gives the Monte Carlo value.

    Args:
        q: encodings, batch shape [n].
        prior: p(z).
        samples: draws of z per image, where there is no closed form.
        generator: for the draws.

    Example:
        >>> import torch
        >>> from torch.distributions import Independent, Normal
        >>> q = Independent(Normal(torch.ones(5, 3), torch.ones(5, 3)), 1)
        >>> print(rate(q, Independent(Normal(torch.zeros(3), torch.ones(3)), 1)))
        1.500 ± 0.000 (exact)
    """
    _check_alike(q, prior, "prior")
    q, p = encodings(q), in_float64(prior)
    exact = closed_form_kl(q, p)
    if exact is not None:
        return mean_over_images(exact, "exact")
    z = draw(q, samples, generator)
    return mean_over_images((q.log_prob(z) - p.log_prob(z)).mean(0), "unbiased")


@torch.no_grad()
def rate_per_dimension(q: Distribution, prior: Distribution) -> tuple[Estimate, ...]:
    """The rate of each latent dimension, E_x KL(q(z_d|x) ‖ p(z_d)), in nats per image, in closed form.

    Where q is diagonal, their sum is R; under a full-rank q, the sum omits the correlations between dimensions.

    Args:
        q: encodings, batch shape [n].
        prior: p(z), a diagonal normal distribution.

    Raises:
        UnsupportedError: a distribution is not normal, so its marginals are unknown.
        InputError: ``prior`` is not one distribution with the event shape of ``q``.

    Example:
        >>> import torch
        >>> from torch.distributions import Independent, Normal
        >>> q = Independent(Normal(torch.tensor([[0.0, 2.0]]).expand(5, 2), torch.ones(5, 2)), 1)
        >>> [each.value for each in rate_per_dimension(q, Independent(Normal(torch.zeros(2), torch.ones(2)), 1))]
        [0.0, 2.0]
    """
    _check_alike(q, prior, "prior")
    for name, each in (("q", q), ("prior", prior)):
        if base_normal(each) is None:
            raise UnsupportedError(
                f"{name}: expected a normal distribution, whose marginals are known, got {type(each).__name__}"
            )
    q, p = encodings(q), in_float64(prior)
    kl = kl_divergence(Normal(q.mean, q.stddev), Normal(p.mean, p.stddev))
    return tuple(mean_over_images(column, "exact") for column in kl.T)


@torch.no_grad()
def active_units(q: Distribution, *, generator: torch.Generator | None = None) -> Estimate:
    """The number of latent dimensions d with Var_x(E_q[z_d]) > 0.01 (Burda et al. 2016, section 5.2).

    Where the mean of q has no closed form (flows), the variance is estimated without bias as the covariance over images
    between the means of two independent sets of 32 draws.

    Args:
        q: encodings, batch shape [n].
        generator: for the draws.

    Returns:
        A count, "exact" for these images with standard error 0, or "approximate" for a flow. NaN where a mean is not
        finite.

    Raises:
        InputError: there are fewer than two encodings.

    Example:
        >>> import torch
        >>> from torch.distributions import Independent, Normal
        >>> active_units(Independent(Normal(torch.tensor([[0.0, -1.0], [0.1, 1.0]]), torch.ones(2, 2)), 1)).value
        1.0
    """
    if q.batch_shape.numel() < 2:
        raise InputError(f"q: expected at least 2 encodings, to take a variance over them, got {q.batch_shape.numel()}")
    q = encodings(q)
    sampled = base_normal(q) is None
    first, second = (_sampled_mean(q, generator) if sampled else q.mean for _ in range(2))
    variance = ((first - first.mean(0)) * (second - second.mean(0))).sum(0) / (len(first) - 1)
    count = float((variance > ACTIVE).sum()) if variance.isfinite().all() else math.nan
    if sampled:
        return Estimate(count, math.nan, "approximate", (f"variances from {2 * MEAN_DRAWS} draws per image",))
    return Estimate(count, 0.0, "exact")


def _sampled_mean(q: Distribution, generator: torch.Generator | None) -> Tensor:
    """Mean of `MEAN_DRAWS` draws of each encoding, in chunks."""
    rows = torch.arange(q.batch_shape.numel()).split(1024)
    return torch.cat([draw(encodings(q, chunk), MEAN_DRAWS, generator).mean(0) for chunk in rows])


def _check_alike(q: Distribution, p: Distribution, name: str, one: bool = True) -> None:
    """Raises InputError if ``p`` has another event shape, or is a batch where one distribution is expected."""
    if p.event_shape != q.event_shape:
        raise InputError(
            f"{name}: expected the event shape {list(q.event_shape)} of q, got {list(p.event_shape)}; "
            "a diagonal normal distribution needs .to_event(1)"
        )
    if one and p.batch_shape not in ((), (1,)):
        raise InputError(f"{name}: expected one distribution, got batch shape {list(p.batch_shape)}")


def _at_draws(
    q: Distribution, samples: int, outer: int | None, leave_one_out: bool, generator: torch.Generator | None
) -> tuple[Tensor, Tensor, Tensor]:
    """log q(z|x_n) and log q(z) at draws z, ``[samples, outer]`` each, and these draws."""
    q_outer, rows = _outer(q, outer, generator)
    if leave_one_out and q.batch_shape.numel() < 2:
        raise InputError("q: expected at least 2 encodings for leave_one_out, got 1")
    z = draw(q_outer, samples, generator)
    return q_outer.log_prob(z), log_marginal(z, encodings(q), rows if leave_one_out else None), z


def _outer(q: Distribution, outer: int | None, generator: torch.Generator | None) -> tuple[Distribution, Tensor]:
    """The encodings to average over, and their rows in ``q``."""
    size = q.batch_shape.numel()
    if outer is None or outer == size:
        rows = torch.arange(size)
    elif 1 <= outer < size:
        rows = torch.randperm(size, generator=generator)[:outer]
    else:
        raise InputError(f"outer: expected 1 to {size} encodings, got {outer}")
    rows = rows.to(device_of(q))
    return encodings(q, rows), rows


def _information(log_ratio: Tensor, q: Distribution, leave_one_out: bool) -> Estimate:
    if leave_one_out:
        return mean_over_images(log_ratio.mean(0), "upper bound")
    estimate = mean_over_images(log_ratio.mean(0), "unbiased")
    if estimate.value > math.log(q.batch_shape.numel()) - SATURATED:
        return Estimate(estimate.value, estimate.se, estimate.kind, ("saturated at log N",))
    return estimate
