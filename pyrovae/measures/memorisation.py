"""How much of a reconstruction is memorised: the infinite-capacity decoder, and the nearest training images."""

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from pyrovae.data import Dataset, as_input
from pyrovae.estimators import memorising_decoder, mixing_share, nearest_point
from pyrovae.estimators.marginal import draw, encodings
from pyrovae.measures.encodings import CHUNK
from pyrovae.measures.measure import NATS, MeasureResult, Quantity, TrainedRun
from pyrovae.measures.pictures import PIXEL_DIMS, PIXEL_UNIT, SAMPLES, as_bytes, white_level
from pyrovae.programs.distributions import mean_of
from pyrovae.programs.noise import generator

SPLIT = ("split",)
QUANTITIES = (
    Quantity(
        "memorising_distortion",
        "distortion of the infinite-capacity decoder, which mixes training images by how close their codes are, "
        "with a share ε of the mean image",
        unit=NATS,
        kind="unbiased",
        dims=SPLIT,
        per_image=True,
        heading="D memorising",
    ),
    Quantity(
        "mixing_share",
        "share ε of the mean image, fitted to training images, each left out of its own reconstruction",
        unit="1",
        heading="ε",
        format=".2g",
    ),
    Quantity(
        "infinite_share",
        "share of images for which that distortion is infinite without the mean image",
        unit="1",
        kind="exact",
        dims=SPLIT,
        heading="infinite at ε = 0",
        format=".0%",
    ),
    Quantity(
        "perplexity",
        "number of training images that the infinite-capacity decoder mixes, exp of the entropy of its weights",
        unit="1",
        kind="unbiased",
        dims=SPLIT,
        heading="images mixed",
        format=".1f",
    ),
    Quantity(
        "reconstruction_distance",
        "distance of reconstructions to the nearest training image, in pixels of [0, 1]",
        unit="1",
        kind="unbiased",
        dims=SPLIT,
        per_image=True,
        heading="nearest training image, learned",
        format=".3g",
    ),
    Quantity(
        "memorising_distance",
        "the same distance for reconstructions by the infinite-capacity decoder",
        unit="1",
        kind="unbiased",
        dims=SPLIT,
        per_image=True,
        heading="nearest, memorising",
        format=".3g",
    ),
    *(
        Quantity(name, long_name, PIXEL_UNIT, dims=PIXEL_DIMS, group="reconstructions")
        for name, long_name in {
            "original": "test images",
            "reconstruction": "reconstructions by the learned decoder",
            "memorised": "reconstructions by the infinite-capacity decoder",
            "nearest": "training images nearest to the learned reconstructions",
        }.items()
    ),
)
PICTURES = [each.name for each in QUANTITIES if each.group]


def measure(run: TrainedRun) -> MeasureResult:
    """Reconstructions by the learned decoder and by the infinite-capacity one, from the same draws z ~ q(z|x).

    ε is fitted to training images, each of which is left out of its own reconstruction.

    Raises:
        UnsupportedError: the pair has several latent or observed sites, or the type of q is not supported.
    """
    draws, data, encoded = generator(run.seed, "reconstruction"), run.data, run.encodings
    splits = [(encoded.train, data.train), (encoded.train, data.train), (encoded.test, data.test)]
    (fitted, left_out), *shown = (_first(run, q, images, draws) for q, images in splits)
    sizes = [len(fitted), *(len(x) for x, _ in shown)]
    # One pass over the training images for all codes, and one for all reconstructions: these are what takes time.
    own = torch.full((sum(sizes),), -1, device=fitted.device)
    own[: len(fitted)] = torch.arange(len(fitted))
    codes = torch.cat([left_out, *(z for _, z in shown)])
    memorised, perplexity = (each.split(sizes) for each in memorising_decoder(codes, encoded.train, data.train, own))
    learned = [_reconstructed(run, x, z) for x, z in shown]
    found = nearest_point(torch.cat([*learned, *(each.float() for each in memorised[1:])]), data.train)
    distances, rows = (each.split(sizes[1:] * 2) for each in found)

    mean = run.once(_mean_of_data)
    share = mixing_share(lambda image: run.likelihood.distortion_at(fitted.double(), image), memorised[0], mean)
    images: dict[str, Any] = defaultdict(list)
    for (x, _), x_hat in zip(shown, memorised[1:], strict=True):
        mixed = torch.lerp(x_hat, mean, share)
        images["memorising_distortion"].append(run.likelihood.distortion_at(x.double(), mixed))
        images["infinite_share"].append(run.likelihood.distortion_at(x.double(), x_hat).isinf())
    pictures: dict[str, Any] = dict.fromkeys(PICTURES)
    (x, _) = shown[-1]
    if x.dim() == 4:
        pictured = (x, learned[-1], memorised[-1], as_input(data.train[rows[1]]))
        white = run.once(white_level)
        pictures = {name: as_bytes(each[:SAMPLES], white) for name, each in zip(PICTURES, pictured, strict=True)}
    return MeasureResult(
        mixing_share=share,
        perplexity=perplexity[1:],
        reconstruction_distance=distances[:2],
        memorising_distance=distances[2:],
        **images,
        **pictures,
    )


def smoothed_mean(data: Dataset) -> Tensor:
    """Mean training image plus half a white and half a black image: (Σ_n x_n + ½) / (N + 1), in float64.

    It lies strictly between 0 and 1 if pixels are in [0, 1], so no pixel is impossible under it.
    """
    mean = data.mean().double()
    return torch.lerp(mean, torch.full_like(mean, 0.5), 1 / (len(data.train) + 1))


def _mean_of_data(run: TrainedRun) -> Tensor:
    return smoothed_mean(run.data)


def _first(run: TrainedRun, q: Distribution, images: Tensor, draws: torch.Generator) -> tuple[Tensor, Tensor]:
    """The first images of a split, and a code of each."""
    x = as_input(images[: run.settings.reconstructions])
    rows = torch.arange(len(x), device=x.device)
    return x, draw(encodings(q, rows), 1, draws)[0]


def _reconstructed(run: TrainedRun, x: Tensor, z: Tensor) -> Tensor:
    """E[x|z], ``[n, *event_shape]``; NaN if the likelihood has no known mean."""
    found = []
    for part, codes in zip(x.split(CHUNK), z.to(x.dtype).split(CHUNK), strict=True):
        mean = mean_of(run.pair.likelihood(part, codes, **run.values))
        found.append(torch.full_like(part, torch.nan) if mean is None else mean)
    return torch.cat(found)
