"""The rate–distortion curve of a run's decoder alone: what any guide could reach with it."""

import torch
from torch import Tensor

from pyrovae.measures.annealed import annealed
from pyrovae.measures.annealed import steps as annealing_steps
from pyrovae.measures.measure import NATS, MeasureResult, Quantity, TrainedRun
from pyrovae.study import Measure

ON_REQUEST = True
DIMS = ("split", "temperature")
QUANTITIES = (
    *(
        Quantity(f"guide_{name}", f"{name} of the guide on the same images", NATS, "unbiased", ("split",))
        for name in ("rate", "distortion")
    ),
    Quantity("inverse_temperature", "inverse temperature b, the weight of D where that of R is 1", "1", dims=DIMS),
    Quantity(
        "decoder_rate", "rate of codes that follow p(z) p(x|z)^b, an upper bound, mean over images", NATS, dims=DIMS
    ),
    Quantity("decoder_rate_se", "standard error of this rate over images", NATS, dims=DIMS),
    Quantity("decoder_distortion", "distortion at these codes, mean over images", NATS, dims=DIMS),
    Quantity("decoder_distortion_se", "standard error of this distortion over images", NATS, dims=DIMS),
)


def cost(settings: Measure) -> int:
    """Steps of annealing for one run."""
    return annealing_steps(settings)


def measure(run: TrainedRun) -> MeasureResult:
    """Rate and distortion along the path from p(z) to p(z|x), in nats per image, without any guide.

    Huang, Makhzani, Cao & Grosse 2020, Evaluating lossy compression rates of deep generative models, ICML, section 4.

    Raises:
        UnsupportedError: the pair has several latent or observed sites.
    """
    curves = [each.curve for each in run.own(annealed, annealing_steps(run.settings))]
    counts = [each.rate.shape[1] for each in curves]
    of_guide = list(zip(run.terms[:2], counts, strict=True))
    return MeasureResult(
        guide_rate=tuple(terms.rate[:count] for terms, count in of_guide),
        guide_distortion=tuple(terms.distortion[:count] for terms, count in of_guide),
        inverse_temperature=torch.stack([each.inverse_temperature for each in curves]),
        decoder_rate=torch.stack([each.rate.mean(1) for each in curves]),
        decoder_rate_se=torch.stack([_se(each.rate) for each in curves]),
        decoder_distortion=torch.stack([each.distortion.mean(1) for each in curves]),
        decoder_distortion_se=torch.stack([_se(each.distortion) for each in curves]),
    )


def _se(values: Tensor) -> Tensor:
    """Standard error over images, ``[T + 1, n] → [T + 1]``."""
    return values.std(1) / values.shape[1] ** 0.5
