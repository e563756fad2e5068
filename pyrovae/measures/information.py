"""Where the information of a run goes."""

from collections.abc import Mapping

from pyrovae import estimators
from pyrovae.estimators.estimate import Kind
from pyrovae.measures.codes import Encodings
from pyrovae.measures.measure import MeasureResult, numbers
from pyrovae.programs.distributions import mapped
from pyrovae.programs.noise import generator
from pyrovae.study.grid import Measure

#: What is measured, and what kind of number it is.
KINDS: Mapping[str, Kind] = {
    "mutual_information": "unbiased",
    "prior_gap": "unbiased",
    "marginal_rate": "unbiased",
    "active_units": "exact",
    "test_mutual_information": "unbiased",
    "test_prior_gap": "unbiased",
}


def information(codes: Encodings, measure: Measure, seed: int) -> MeasureResult:
    """Mutual information, prior gap and their like, by the names of `KINDS`, in nats per image.

    I and G of the encodings of all training images, and of the encodings of all test images, of which another q(z) is
    made; the rate of test images under the inference marginal of the training images; the number of active units.
    """
    draws, q, unseen = generator(seed, "information"), codes.train, codes.test
    outer = min(measure.outer, q.batch_shape.numel())
    _, mutual_information, prior_gap = estimators.rate_terms(
        q, codes.prior, samples=measure.samples, outer=outer, generator=draws
    )
    first = mapped(unseen, lambda parameter: parameter[: measure.outer])
    marginal_rate = estimators.marginal_rate(first, q, samples=measure.samples, generator=draws)
    active_units = estimators.active_units(q, generator=draws)
    outer = min(measure.outer, unseen.batch_shape.numel())
    _, test_mutual_information, test_prior_gap = estimators.rate_terms(
        unseen, codes.prior, samples=measure.samples, outer=outer, generator=draws
    )
    found = (mutual_information, prior_gap, marginal_rate, active_units, test_mutual_information, test_prior_gap)
    return MeasureResult(numbers(dict(zip(KINDS, found, strict=True))))
