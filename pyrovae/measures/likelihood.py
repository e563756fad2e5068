"""The log-likelihood of the test images of a run: by importance weighting, and where asked by annealing."""

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
from torch import Tensor

from pyrovae import estimators
from pyrovae.data import Dataset, as_input
from pyrovae.estimators import Annealing
from pyrovae.estimators.estimate import Kind
from pyrovae.measures.measure import MeasureResult, numbers
from pyrovae.programs.noise import derive_seed, fork_seed
from pyrovae.programs.pair import Pair, latent_sites, observed_sites
from pyrovae.study.grid import Measure

#: What is measured, and what kind of number it is.
KINDS: Mapping[str, Kind] = {
    "log_likelihood": "lower bound",
    "high_pareto_k": "exact",
    "effective_draws": "exact",
    "annealed_log_likelihood": "lower bound",
    "annealed_gain": "approximate",
    "acceptance": "exact",
    "sandwich_gap": "upper bound",
}
#: Most simulated images between whose bounds the gap is taken, and passes over the temperatures that all takes.
SIMULATED, PASSES = 16, 5


def likelihood(
    pair: Pair, data: Dataset, measure: Measure, seed: int, stepped: Callable[[], None], **values: float | Tensor
) -> MeasureResult:
    """Bounds of log p(x) of the first test images, by the names of `KINDS`, in nats per image.

    Importance weighting with its share of images whose k̂ is high and its effective number of draws; annealing, its gain
    over importance weighting on the same images, its acceptance, and the gap between the bounds from below and above on
    images simulated from the model.

    Args:
        stepped: called `PASSES` times for every temperature.
        values: what the programs take beside images.

    Raises:
        UnsupportedError: annealing is asked for, and the pair has several latent or observed sites.
    """
    x = as_input(data.test[: measure.likelihood_images])
    with fork_seed(derive_seed(seed, "likelihood")):
        weighted = estimators.log_likelihood(lambda x, K: pair.log_weights(x, K, **values), x, measure.particles)
    cells = numbers({"log_likelihood": weighted.estimate})
    cells["high_pareto_k"] = np.array(weighted.high_pareto_k)
    cells["effective_draws"] = weighted.ess.mean().cpu().numpy()
    images = {"log_likelihood": weighted.bound, "pareto_k": weighted.pareto_k}
    if measure.temperatures:
        with fork_seed(derive_seed(seed, "annealing")):
            annealed_cells, images["annealed_log_likelihood"] = _annealed(pair, x, measure, stepped, values)
        gain = images["annealed_log_likelihood"] - weighted.bound
        cells |= annealed_cells | numbers({"annealed_gain": estimators.mean_over_images(gain, "approximate")})
    return MeasureResult(cells, {name: (each[:0], each) for name, each in images.items()})


def _annealed(
    pair: Pair, x: Tensor, measure: Measure, stepped: Callable[[], None], values: Mapping[str, float | Tensor]
) -> tuple[dict[str, np.ndarray], Tensor]:
    annealing = Annealing(measure.temperatures, measure.chains)
    log_p = partial(_log_p, pair, values)
    _, prior = pair.latent(x[:1], **values)
    annealed = estimators.annealed_log_likelihood(prior, log_p, x, annealing, stepped)
    cells = numbers({"annealed_log_likelihood": annealed.estimate})
    cells["acceptance"] = annealed.acceptance.double().mean().cpu().numpy()
    generated = pair.generate(x[:SIMULATED], **values)
    simulated, z = (generated.nodes[site]["value"] for site in (*observed_sites(generated), *latent_sites(generated)))
    sandwich = estimators.bidirectional_log_likelihood(prior, log_p, simulated, z, annealing, stepped)
    return cells | numbers({"sandwich_gap": sandwich.gap}), annealed.bound


def _log_p(pair: Pair, values: Mapping[str, float | Tensor], x: Tensor, z: Tensor) -> Tensor:
    return pair.likelihood(x, z, **values).log_prob(x)
