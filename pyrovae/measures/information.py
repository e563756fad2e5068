"""Mutual information, prior gap and related quantities of the encodings of a run."""

import math
from typing import TYPE_CHECKING, Any

from pyrovae import estimators
from pyrovae.errors import UnsupportedError
from pyrovae.estimators import Estimate
from pyrovae.estimators.information import SATURATED
from pyrovae.measures.measure import NATS, Caveat, MeasureResult, Quantity, TrainedRun
from pyrovae.programs.distributions import mapped
from pyrovae.programs.noise import generator

if TYPE_CHECKING:
    import xarray as xr


def is_saturated(codes: "xr.Dataset") -> "xr.DataArray":
    """Where I has reached log N, the most that it can be."""
    return codes["mutual_information"] > codes["log_n"] - SATURATED


QUANTITIES = (
    Quantity("log_n", "log N for N training images, the maximum of I", unit=NATS, heading="log N"),
    Quantity(
        "mutual_information",
        "mutual information I of training images and their codes",
        unit=NATS,
        kind="unbiased",
        heading="I",
        headline=True,
        caveats=(
            Caveat(
                "*",
                f"saturated: I within {SATURATED} nats of log N",
                lambda group, runs: is_saturated(group),
            ),
        ),
    ),
    Quantity(
        "prior_gap",
        "prior gap G = KL(q(z) ‖ p(z)); R = I + G on the same images, which may be fewer than those of R",
        unit=NATS,
        kind="unbiased",
        heading="G",
        headline=True,
        of_prior=True,
    ),
    Quantity(
        "marginal_rate",
        "rate of test images with the inference marginal q(z) of the training images as the prior",
        unit=NATS,
        kind="unbiased",
        heading="R test under q(z)",
    ),
    Quantity(
        "active_units",
        "latent dimensions whose posterior mean has a variance above 0.01 over training images",
        unit="1",
        kind="exact",
        heading="active units",
        format=".1f",
    ),
    Quantity(
        "test_mutual_information",
        "mutual information of test images and codes, under their own q(z)",
        unit=NATS,
        kind="unbiased",
    ),
    Quantity(
        "test_prior_gap",
        "prior gap of the test images, KL(q_test(z) ‖ p(z))",
        unit=NATS,
        kind="unbiased",
        of_prior=True,
    ),
)


def measure(run: TrainedRun) -> MeasureResult:
    """I and G of the encodings of all training images, and of all test images under their own q(z), in nats per image.

    Only log N is known if the pair has several latent sites, or the type of q is not supported.
    """
    found: dict[str, Any] = dict.fromkeys(each.name for each in QUANTITIES)
    try:
        found |= _of_encodings(run)
    except UnsupportedError as error:
        note = f"not measured, {error}"
    else:
        finite = math.isfinite(found["mutual_information"].value)
        note = "" if finite else "I and G are not finite because the encodings are not"
    return MeasureResult(**found | {"log_n": math.log(len(run.data.train))}, note=note)


def _of_encodings(run: TrainedRun) -> dict[str, Estimate]:
    draws, settings = generator(run.seed, "information"), run.settings
    q, unseen, prior = run.encodings
    outer = min(settings.outer, q.batch_shape.numel())
    train = estimators.rate_terms(q, prior, samples=settings.samples, outer=outer, generator=draws)
    first = mapped(unseen, lambda parameter: parameter[: settings.outer])
    marginal_rate = estimators.marginal_rate(first, q, samples=settings.samples, generator=draws)
    active_units = estimators.active_units(q, generator=draws)
    outer = min(settings.outer, unseen.batch_shape.numel())
    test = estimators.rate_terms(unseen, prior, samples=settings.samples, outer=outer, generator=draws)
    return {
        "mutual_information": train.mutual_information,
        "prior_gap": train.prior_gap,
        "marginal_rate": marginal_rate,
        "active_units": active_units,
        "test_mutual_information": test.mutual_information,
        "test_prior_gap": test.prior_gap,
    }
