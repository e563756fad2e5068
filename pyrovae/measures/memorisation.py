"""How much a run reconstructs from memory: beside the decoder of infinite capacity, and the nearest training images."""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.distributions import Distribution

from pyrovae.data import Dataset, as_input
from pyrovae.estimators import memorising_decoder, mixing_share, nearest_point
from pyrovae.estimators.estimate import Kind
from pyrovae.estimators.marginal import draw, encodings
from pyrovae.measures.codes import CHUNK, Encodings
from pyrovae.measures.measure import MeasureResult, over_splits
from pyrovae.measures.pictures import SAMPLES, as_bytes
from pyrovae.programs.distributions import mean_of
from pyrovae.programs.noise import generator
from pyrovae.programs.pair import Pair
from pyrovae.study.grid import Measure

#: What is measured on both splits, and what kind of number it is.
KINDS: Mapping[str, Kind] = {
    "memorising_distortion": "unbiased",
    "infinite_share": "exact",
    "perplexity": "unbiased",
    "reconstruction_distance": "unbiased",
    "memorising_distance": "unbiased",
}


def memorisation(
    pair: Pair,
    codes: Encodings,
    data: Dataset,
    mean: Tensor,
    measure: Measure,
    seed: int,
    distortion_at: Callable[[Tensor, Tensor], Tensor],
    **values: float | Tensor,
) -> MeasureResult:
    """Reconstructions by the learned decoder and by that of infinite capacity, from the same draws z ~ q(z|x).

    By the names of `KINDS`: the distortion of the memorising decoder with a share ε of the mean image, the share of
    images for which it is infinite without, the perplexity of its weights, and the distance of either reconstruction to
    the nearest training image. ε is fitted to training images of which each is left out of its own reconstruction.

    Args:
        mean: mean image in which no pixel is 0 or 1, `smoothed_mean`.
        distortion_at: images, mean images → distortion under a likelihood with these means; NaN where it has none.
        values: what the programs take beside images.
    """
    draws = generator(seed, "reconstruction")
    share = _fitted_share(codes, data, measure, mean, draws, distortion_at)
    images: dict[str, list[Tensor]] = {name: [] for name in KINDS}
    pictures: dict[str, NDArray[np.uint8]] = {}
    for q, split in ((codes.train, data.train), (codes.test, data.test)):
        x, z = _first(q, split, measure, draws)
        memorised, learned = memorising_decoder(z, codes.train, data.train), _reconstructed(pair, x, z, values)
        closest = nearest_point(learned, data.train)
        images["memorising_distortion"].append(distortion_at(x.double(), torch.lerp(memorised.image, mean, share)))
        images["infinite_share"].append(distortion_at(x.double(), memorised.image).isinf())
        images["perplexity"].append(memorised.perplexity)
        images["reconstruction_distance"].append(closest.distance)
        images["memorising_distance"].append(nearest_point(memorised.image.float(), data.train).distance)
        shown = {
            "original": x,
            "reconstruction": learned,
            "memorised": memorised.image,
            "nearest": as_input(data.train[closest.row]),
        }
        pictures = {name: as_bytes(each[:SAMPLES]) for name, each in shown.items()} if x.dim() == 4 else {}
    sides = {name: (train, test) for name, (train, test) in images.items()}
    cells = {"mixing_share": np.array(share)}
    for name, (train, test) in sides.items():
        cells |= over_splits(name, train, test)
    kept = ("memorising_distortion", "reconstruction_distance", "memorising_distance")
    return MeasureResult(cells, {name: sides[name] for name in kept}, pictures)


def smoothed_mean(data: Dataset) -> Tensor:
    """Mean training image with half an image of light and half a dark one added: (Σ_n x_n + ½) / (N + 1), in float64.

    Strictly between 0 and 1 where pixels are in [0, 1], so that no pixel is impossible under it.
    """
    mean = data.mean().double()
    return torch.lerp(mean, torch.full_like(mean, 0.5), 1 / (len(data.train) + 1))


def _first(q: Distribution, images: Tensor, measure: Measure, draws: torch.Generator) -> tuple[Tensor, Tensor]:
    """The first images of a split, and a code of each."""
    x = as_input(images[: measure.reconstructions])
    rows = torch.arange(len(x), device=x.device)
    return x, draw(encodings(q, rows), 1, draws)[0]


def _fitted_share(
    codes: Encodings,
    data: Dataset,
    measure: Measure,
    mean: Tensor,
    draws: torch.Generator,
    distortion_at: Callable[[Tensor, Tensor], Tensor],
) -> float:
    x, z = _first(codes.train, data.train, measure, draws)
    others = memorising_decoder(z, codes.train, data.train, own=torch.arange(len(x), device=x.device)).image
    return mixing_share(lambda image: distortion_at(x.double(), image), others, mean)


def _reconstructed(pair: Pair, x: Tensor, z: Tensor, values: Mapping[str, float | Tensor]) -> Tensor:
    """E[x|z], ``[n, *event_shape]``; NaN where the likelihood does not know its mean."""
    found = []
    for part, codes in zip(x.split(CHUNK), z.to(x.dtype).split(CHUNK), strict=True):
        mean = mean_of(pair.likelihood(part, codes, **values))
        found.append(torch.full_like(part, torch.nan) if mean is None else mean)
    return torch.cat(found)
