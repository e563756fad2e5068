"""The population behind a saturated I: between which values I and G of new images lie."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, MultivariateNormal, Normal

from pyrovae import parts
from pyrovae.errors import UnsupportedError
from pyrovae.estimators import population_bracket, prior_fit
from pyrovae.estimators.marginal import draw, encodings, log_marginal
from pyrovae.estimators.population import Density, excess_rates
from pyrovae.measures.encodings import encode
from pyrovae.measures.measure import NATS, MeasureResult, Quantity, TrainedRun
from pyrovae.programs.distributions import mapped
from pyrovae.programs.noise import fork_seed, generator
from pyrovae.study import Measure

#: Applied only where a study or a command names it.
ON_REQUEST = True
#: Priors that are fitted to training codes by gradients.
FITTED: dict[str, dict[str, Any]] = {"mixture": {"components": 30}, "flow": {"kind": "MAF"}}
#: Exemplars, and their scales as shares of the spread of the codes.
EXEMPLARS, SCALES = 1024, tuple(0.02 * 1.5**number for number in range(10))
QUANTITIES = (
    Quantity(
        "information_low",
        "lower end of I of the population: I of the validation codes, at most the logarithm of their number",
        unit=NATS,
        kind="lower bound",
        heading="I population ≥",
    ),
    Quantity(
        "information_high",
        "upper end of I of the population: the rate of validation images under a prior fitted to training codes",
        unit=NATS,
        kind="upper bound",
        heading="I population ≤",
    ),
    Quantity(
        "closable_gap",
        "lower end of G of the population: what a prior fitted to training codes saves on validation images",
        unit=NATS,
        kind="lower bound",
        heading="closable G",
        headline=True,
    ),
    Quantity(
        "gap_high",
        "upper end of G of the population: the rate of validation images without their I",
        unit=NATS,
        kind="upper bound",
        heading="G population ≤",
    ),
    Quantity(
        "test_saving",
        "what the same prior saves on test images",
        unit=NATS,
        kind="unbiased",
        heading="saved on test",
    ),
)


def cost(settings: Measure) -> int:
    """Steps of fitting for one run."""
    return prior_fit.STEPS * len(FITTED)


def measure(run: TrainedRun) -> MeasureResult:
    """Brackets of I and G of the population that the training images are from, as `population_bracket`.

    The candidates are a normal distribution, exemplars, a mixture and a flow, fitted to codes of training images.

    Raises:
        UnsupportedError: there are no validation images, or the pair has several latent sites or ones that are no
            vectors, the type of q is not supported, or encodings are not finite.
    """
    train, test, prior = run.encodings
    if run.data.validation is None:
        raise UnsupportedError("it needs validation_images")
    if len(train.event_shape) != 1:
        raise UnsupportedError("it needs a z that is a vector")
    q, draws = encodings(encode(run.pair, run.data.validation, **run.values)), generator(run.seed, "population")
    candidates = _candidates(train, run.seed, run.progress)
    found = population_bracket(q, prior, candidates, draws)
    best = prior.log_prob if found.best is None else candidates[found.best]
    rates = excess_rates(test, {"own": prior.log_prob, "best": best}, draws)
    return MeasureResult(
        information_low=found.information_low,
        information_high=found.information_high,
        closable_gap=found.gap_low,
        gap_high=found.gap_high,
        test_saving=rates["own"] - rates["best"],
    )


def _candidates(train: Distribution, seed: int, progress: Callable[[], None]) -> dict[str, Density]:
    """log p'(z) of priors fitted to the codes of training images."""
    z = draw(train, 1, generator(seed, "population codes"))[0]
    if not z.isfinite().all():
        raise UnsupportedError("the encodings are not finite")
    covariance = torch.atleast_2d(z.T.cov())
    ridge = 1e-9 * covariance.diagonal().mean() * torch.eye(len(covariance), dtype=z.dtype, device=z.device)
    found: dict[str, Density] = {"normal": MultivariateNormal(z.mean(0), covariance + ridge).log_prob}
    found["exemplar"] = _exemplars(z)
    q = mapped(train, Tensor.float)
    for name, settings in FITTED.items():
        with fork_seed(seed):
            module = parts.resolve("prior", name)(latent_size=z.shape[1], **settings).to(z.device)
        prior_fit.fit_prior(module, q, seed, progress)
        found[name] = module().log_prob
    return found


def _exemplars(z: Tensor) -> Density:
    """Equal normal distributions around some codes, with the scale under which other training codes are most likely."""
    count = min(EXEMPLARS, len(z) // 2)
    centres, others = z[:count], z[count : 2 * count]

    def density(scale: Tensor) -> Density:
        around = Independent(Normal(centres, scale.expand_as(centres)), 1)
        return lambda points: log_marginal(points, around)

    densities = [density(share * z.std(0).mean()) for share in SCALES]
    return max(densities, key=lambda log_p: log_p(others).mean().item())
