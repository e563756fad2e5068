"""Bounds on log p(x) of test images: importance weighting and, if the study asks for it, annealing."""

from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor

from pyrovae import estimators
from pyrovae.data import as_input
from pyrovae.estimators import Annealing
from pyrovae.estimators.likelihood import HIGH_K_SHARE
from pyrovae.measures.annealed import log_p
from pyrovae.measures.measure import CROSS_ENTROPY, NATS, PER_IMAGE_DIMS, Caveat, MeasureResult, Quantity, TrainedRun
from pyrovae.programs.noise import derive_seed, fork_seed
from pyrovae.programs.sites import latent_sites, observed_sites
from pyrovae.study import Measure

if TYPE_CHECKING:
    import xarray as xr

#: Simulated images for the sandwich gap, and passes over the temperatures in one measurement.
SIMULATED, PASSES = 16, 5


def is_loose(likelihood: "xr.Dataset") -> "xr.DataArray":
    """Where the importance-weighted bound may be loose: k̂ is high for many images, or unknown."""
    share = likelihood["high_pareto_k"]
    return (share > HIGH_K_SHARE) | (share.isnull() & likelihood["log_likelihood"].notnull())


QUANTITIES = (
    Quantity(
        "log_likelihood",
        "lower bound on log p(x) of test images by importance weighting",
        unit=NATS,
        kind="lower bound",
        per_image=True,
        heading="log p(x) ≥",
        headline=True,
        of_prior=True,
        caveats=(
            Caveat(
                "†",
                f"k̂ is high for more than {HIGH_K_SHARE:.0%} of the images, so the bound may be loose",
                lambda likelihood, runs: is_loose(likelihood),
            ),
            CROSS_ENTROPY,
        ),
    ),
    Quantity(
        "elbo_same_images",
        "ELBO = −D − R of the images of log p(x), from the same draws",
        unit=NATS,
        kind="unbiased",
        heading="ELBO, same images",
        headline=True,
        of_prior=True,
        caveats=(CROSS_ENTROPY,),
    ),
    Quantity(
        "high_pareto_k",
        "share of images whose importance weights have a Pareto k̂ above its threshold, where the bound may be loose",
        unit="1",
        kind="exact",
        heading="high k̂",
        format=".0%",
    ),
    Quantity("pareto_k", "Pareto k̂ of the importance weights", unit="1", dims=PER_IMAGE_DIMS),
    Quantity(
        "effective_draws",
        "effective sample size of the importance weights, mean over images",
        unit="1",
        kind="exact",
        heading="effective draws",
        format=".1f",
    ),
    Quantity(
        "annealed_log_likelihood",
        "lower bound on log p(x) of the same images by annealed importance sampling",
        unit=NATS,
        kind="lower bound",
        per_image=True,
        heading="by annealing",
        of_prior=True,
        caveats=(CROSS_ENTROPY,),
    ),
    Quantity(
        "annealed_gain",
        "bound by annealing minus bound by importance weighting",
        unit=NATS,
        kind="approximate",
        heading="gain",
    ),
    Quantity("acceptance", "acceptance rate of annealing", unit="1", kind="exact", heading="acceptance"),
    Quantity(
        "sandwich_gap",
        "upper minus lower bound by annealing, on images simulated from the model",
        unit=NATS,
        kind="upper bound",
        heading="gap, simulated",
    ),
)
#: What only annealing measures.
ANNEALED = ("annealed_log_likelihood", "annealed_gain", "acceptance", "sandwich_gap")


def cost(settings: Measure) -> int:
    """Steps of annealing for one run."""
    return PASSES * settings.temperatures


def measure(run: TrainedRun) -> MeasureResult:
    """Bounds on log p(x) of the first test images, in nats per image, with diagnostics.

    Raises:
        UnsupportedError: annealing is asked for, and the pair has several latent or observed sites.
    """
    x = as_input(run.data.test[: run.settings.likelihood_images])
    with fork_seed(derive_seed(run.seed, "likelihood")):
        weighted = estimators.log_likelihood(
            lambda x, K: run.pair.log_weights(x, K, **run.values), x, run.settings.particles
        )
    annealed: dict[str, Any] = dict.fromkeys(ANNEALED)
    if run.settings.temperatures:
        with fork_seed(derive_seed(run.seed, "annealing")):
            annealed = _annealed(run, x)
        annealed["annealed_gain"] = annealed["annealed_log_likelihood"] - weighted.bound
    return MeasureResult(
        log_likelihood=weighted.bound,
        elbo_same_images=weighted.elbo,
        pareto_k=(weighted.pareto_k[:0], weighted.pareto_k),
        high_pareto_k=weighted.high_pareto_k,
        effective_draws=weighted.ess.mean(),
        **annealed,
    )


def _annealed(run: TrainedRun, x: Tensor) -> dict[str, Any]:
    """Bounds by annealing on images, and the gap between both bounds on images simulated from the model."""
    pair, values = run.pair, run.values
    annealing = Annealing(run.settings.temperatures, run.settings.chains)
    log_p_given = partial(log_p, run)
    _, prior = pair.latent(x[:1], **values)
    annealed = estimators.annealed_log_likelihood(prior, log_p_given, x, annealing, run.progress)
    generated = pair.simulate(x[:SIMULATED], **values)
    simulated, z = (generated.nodes[site]["value"] for site in (*observed_sites(generated), *latent_sites(generated)))
    sandwich = estimators.bidirectional_log_likelihood(prior, log_p_given, simulated, z, annealing, run.progress)
    return {
        "annealed_log_likelihood": annealed.bound,
        "acceptance": annealed.acceptance.double().mean(),
        "sandwich_gap": sandwich.gap,
    }
