"""Distortion, rate and ELBO on train and test, from the images and draws that the study asks for."""

import math

import torch
from torch import Tensor

from pyrovae.data import as_input
from pyrovae.measures.encodings import CHUNK
from pyrovae.measures.measure import CROSS_ENTROPY, NATS, MeasureResult, Quantity, TrainedRun

SPLIT = ("split",)
QUANTITIES = (
    Quantity(
        "distortion",
        "distortion D = E[−log p(x|z)] at codes z ~ q(z|x) of the image",
        unit=NATS,
        kind="unbiased",
        dims=SPLIT,
        per_image=True,
        heading="D {split}",
        headline=True,
    ),
    Quantity(
        "rate",
        "rate R = KL(q(z|x) ‖ p(z)), the cost of an image's code under the prior",
        unit=NATS,
        kind="unbiased",
        dims=SPLIT,
        per_image=True,
        heading="R {split}",
        headline=True,
        of_prior=True,
    ),
    Quantity(
        "elbo",
        "ELBO = −D − R",
        unit=NATS,
        kind="unbiased",
        dims=SPLIT,
        heading="ELBO test",
        of_prior=True,
        caveats=(CROSS_ENTROPY,),
    ),
    Quantity(
        "bits_per_dim",
        "negative ELBO per dimension of x",
        unit="bits per dimension",
        dims=SPLIT,
        caveats=(CROSS_ENTROPY,),
    ),
    Quantity("floor", "smallest distortion that any decoder can reach", unit=NATS, kind="exact", dims=SPLIT),
    Quantity(
        "level_rate",
        "contribution of a latent site to R, E[log q − log p]; only the sum over sites is a KL divergence",
        unit=NATS,
        kind="unbiased",
        dims=("level", "split"),
        group="levels",
        variable="rate",
        heading="R of the site, {split}",
        of_prior=True,
    ),
)


def measure(run: TrainedRun) -> MeasureResult:
    """D, R and ELBO = −D − R of each image, with the floor of D and the rate of each latent site."""
    elbo = tuple(-each.distortion - each.rate for each in run.terms)
    bits = getattr(run.likelihood, "dimensions", run.data.event_shape.numel()) * math.log(2)
    return MeasureResult(
        distortion=tuple(each.distortion for each in run.terms),
        rate=tuple(each.rate for each in run.terms),
        elbo=elbo,
        bits_per_dim=tuple(-each.mean().item() / bits for each in elbo),
        floor=run.once(floors),
        level_rate={site: tuple(each.rates[site] for each in run.terms) for site in run.terms[0].rates},
    )


def floors(run: TrainedRun) -> tuple[Tensor, ...]:
    """The floor of D of the images on which it is measured, for each split."""
    splits = (images[: run.settings.images] for _, images in run.data.splits())
    return tuple(torch.cat([run.likelihood.floor(as_input(x)) for x in images.split(CHUNK)]) for images in splits)
