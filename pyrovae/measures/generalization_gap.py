"""Where generalization is lost: the parts of decoder and guide in the gap of the ELBO between train and test."""

from functools import partial
from typing import Any

import xarray as xr
from torch import Tensor

from pyrovae import estimators
from pyrovae.estimators import Estimate, Optimisation, amortised_distortion, bidirectional_log_likelihood
from pyrovae.measures.annealed import annealed, annealing, first_images, log_p
from pyrovae.measures.annealed import steps as annealing_steps
from pyrovae.measures.measure import CROSS_ENTROPY, NATS, Caveat, MeasureResult, Quantity, TrainedRun
from pyrovae.programs.noise import derive_seed, fork_seed
from pyrovae.study import Measure

ON_REQUEST = True
#: Standard errors by which the bound of log p(x) may be below the ELBO by chance.
BY_CHANCE = 3
SPLIT = ("split",)
#: Steps of Adam that refine q(z|x) for one image, draws of z in each, and draws of z for its distortion.
REFINEMENT = Optimisation(steps=100, samples=4, draws=64)
#: One in so many of the images is generated to bound the error of annealing, and passes over the temperatures for it.
SANDWICH_SHARE, SANDWICH_PASSES = 4, 3


def falls_short(gap: xr.DataArray, error: xr.DataArray) -> xr.DataArray:
    """Where annealing ends below the ELBO, so that the inference gap and its parts say nothing.

    Args:
        gap, error: the inference gap and its standard error.
    """
    return gap < -BY_CHANCE * error


FALLS_SHORT = Caveat(
    "§",
    "meaningless: annealing ends below the ELBO, and needs more temperatures (gap_temperatures)",
    lambda group, runs: falls_short(group["inference_gap"], group["inference_gap_se"]).any("split"),
)
QUANTITIES = (
    Quantity(
        "elbo_gap",
        "generalization gap ELBO train − ELBO test, of the images of D and R",
        unit=NATS,
        kind="unbiased",
        heading="ELBO gap",
        caveats=(CROSS_ENTROPY,),
    ),
    Quantity(
        "decoder_gap",
        "part of the decoder in the generalization gap: log p(x) of training images minus that of test images",
        unit=NATS,
        kind="approximate",
        heading="decoder's part",
        caveats=(CROSS_ENTROPY, FALLS_SHORT),
    ),
    Quantity(
        "guide_gap",
        "part of the guide in the generalization gap: log p(x) − ELBO of test images minus that of training images",
        unit=NATS,
        kind="approximate",
        heading="guide's part",
        caveats=(FALLS_SHORT,),
    ),
    Quantity(
        "split_log_likelihood",
        "lower bound on log p(x) by annealing",
        unit=NATS,
        kind="lower bound",
        dims=SPLIT,
        per_image=True,
        caveats=(CROSS_ENTROPY,),
    ),
    Quantity(
        "inference_gap",
        "inference gap log p(x) − ELBO, with log p(x) bounded from below by annealing",
        unit=NATS,
        kind="lower bound",
        dims=SPLIT,
        per_image=True,
        heading="inference gap {split}",
    ),
    Quantity(
        "amortised_distortion",
        "distortion minus that of a q(z|x) refined for each image alone at the same β",
        unit=NATS,
        kind="approximate",
        dims=SPLIT,
        per_image=True,
        heading="D lost to amortisation, {split}",
    ),
    Quantity(
        "annealing_error",
        "bound of the error of this annealing: upper − lower bound of log p(x) of images that the model generates",
        unit=NATS,
        kind="upper bound",
        heading="AIS error ≤",
    ),
    Quantity(
        "gap_acceptance",
        "acceptance rate of this annealing",
        unit="1",
        kind="exact",
        dims=SPLIT,
    ),
)


def cost(settings: Measure) -> int:
    """Steps of annealing and refinement for one run."""
    return annealing_steps(settings) + 2 * REFINEMENT.steps + SANDWICH_PASSES * settings.gap_temperatures


def measure(run: TrainedRun) -> MeasureResult:
    """The parts of decoder and guide, and what a shared encoder costs in distortion, in nats per image.

    Raises:
        UnsupportedError: the pair has several latent or observed sites, or q(z|x) is of a type that cannot be refined.
    """
    of_splits = run.own(annealed, annealing_steps(run.settings))
    with fork_seed(derive_seed(run.seed, "inference gap")):
        elbos = [_elbo(run, x) for x in first_images(run)]
        lost = tuple(_amortised(run, x) for x in first_images(run))
        error = _annealing_error(run)
    gaps = tuple(each.bound - elbo for each, elbo in zip(of_splits, elbos, strict=True))
    train, test = (-each.distortion - each.rate for each in run.terms[:2])
    parts = estimators.generalization_gap((train, test), (gaps[0], gaps[1]))
    return MeasureResult(
        elbo_gap=parts.elbo,
        decoder_gap=parts.decoder,
        guide_gap=parts.guide,
        split_log_likelihood=tuple(each.bound for each in of_splits),
        inference_gap=gaps,
        amortised_distortion=lost,
        annealing_error=error,
        gap_acceptance=tuple(each.acceptance.double().mean() for each in of_splits),
    )


def _elbo(run: TrainedRun, x: Tensor) -> Tensor:
    """The ELBO of each image, from the draws behind the importance-weighted bound."""
    return run.pair.log_weights(x, run.settings.particles, **run.values).double().mean(0)


def _amortised(run: TrainedRun, x: Tensor) -> Tensor:
    q, prior = run.pair.latent(x, **run.values)
    beta = float(run.values.get("beta", 1.0))
    log_likelihood = partial(log_p, run)
    return amortised_distortion(q, prior, log_likelihood, x, beta, optimisation=REFINEMENT, stepped=run.progress)


def _annealing_error(run: TrainedRun) -> Estimate | None:
    """The gap between both bounds of log p(x), by bidirectional Monte Carlo, of images drawn from p(x, z).

    None where the images of the data set are outside the support of p(x|z), because nothing follows for them.
    """
    x, _ = first_images(run)
    x = x[: max(2, len(x) // SANDWICH_SHARE)]
    _, prior = run.pair.latent(x, **run.values)
    z = prior.sample((len(x),))
    p: Any = run.pair.likelihood(x, z, **run.values)
    if not p.support.check(x).all():
        for _ in range(SANDWICH_PASSES * run.settings.gap_temperatures):
            run.progress()
        return None
    settings = annealing(run.settings)
    return bidirectional_log_likelihood(prior, partial(log_p, run), p.sample(), z, settings, run.progress).gap
