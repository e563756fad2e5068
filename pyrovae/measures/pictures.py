"""Pictures of a trained pair: samples from its prior, traversals of its latents, and its latent plane."""

from contextlib import suppress
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyrovae.data import as_input
from pyrovae.errors import UnsupportedError
from pyrovae.estimators.marginal import draw, encodings, log_marginal
from pyrovae.measures.measure import MeasureResult, Quantity, TrainedRun
from pyrovae.programs.distributions import mean_of
from pyrovae.programs.noise import derive_seed, fork_seed, generator
from pyrovae.programs.sites import observed_sites

#: Images in a row, points along either side of the latent plane, and latents that are traversed.
SAMPLES, POINTS, LATENTS = 8, 64, 5
#: Most training images behind the percentiles and the ranks of latents.
RANKED = 10_000
PIXEL_DIMS, PIXEL_UNIT = ("sample", "channel", "row", "column"), "1/255"
PLANE_DIMS = ("row", "column")
#: Vectors in a pair plot, and dimensions of each.
VECTORS, DIMENSIONS = 256, 4
VECTOR_DIMS = ("sample", "dimension")
QUANTITIES = (
    Quantity("image", "mean images E[x|z] at draws z ~ p(z)", PIXEL_UNIT, dims=PIXEL_DIMS, group="samples"),
    Quantity(
        "traversal",
        "E[x|z] along a latent, from the 1st to the 99th percentile of q(z)",
        PIXEL_UNIT,
        dims=("rank", *PIXEL_DIMS),
        group="traversals",
    ),
    Quantity("latent", "number of the latent", unit="1", dims=("rank",), group="traversals"),
    Quantity("share", "share of the latent's variance that is between images", "1", dims=("rank",), group="traversals"),
    Quantity("data", "test vectors, first dimensions", unit="1", dims=VECTOR_DIMS, group="vectors"),
    Quantity("generated", "draws x ~ p(x), first dimensions", unit="1", dims=VECTOR_DIMS, group="vectors"),
    Quantity("z1", "first latent", unit="1", dims=("column",), group="plane"),
    Quantity("z2", "second latent", unit="1", dims=("row",), group="plane"),
    Quantity("log_q", "log q(z) of the inference marginal", unit="nats", dims=PLANE_DIMS, group="plane"),
    Quantity("log_p", "log p(z) of the prior", unit="nats", dims=PLANE_DIMS, group="plane"),
)


def measure(run: TrainedRun) -> MeasureResult:
    """Samples, reconstructions and traversals, as far as the pair supports them."""
    pictures: dict[str, Any] = dict.fromkeys(each.name for each in QUANTITIES)
    for picture in (samples, vectors, traversals, latent_plane):
        with suppress(UnsupportedError):
            pictures |= picture(run)
    return MeasureResult(**pictures)


def white_level(run: TrainedRun) -> Tensor:
    """The value of a white pixel: the largest one of the training images, or 1 if none is larger."""
    return as_input(run.data.train.max()).clamp(min=1)


def as_bytes(x: Tensor, white: Tensor) -> NDArray[np.uint8]:
    """Images as bytes, with 255 for white."""
    return (255 * (x.nan_to_num() / white).clamp(0, 1)).round().byte().cpu().numpy()


@torch.no_grad()
def samples(run: TrainedRun) -> dict[str, NDArray[np.uint8]]:
    """Mean images E[x|z] at draws z ~ p(z), ``[SAMPLES, channels, height, width]``; nothing if x is not an image."""
    if len(run.data.event_shape) != 3:
        return {}
    with fork_seed(derive_seed(run.seed, "samples")):
        return {"image": as_bytes(run.pair.generate(SAMPLES), run.once(white_level))}


@torch.no_grad()
def vectors(run: TrainedRun) -> dict[str, NDArray[np.float32]]:
    """Test vectors and as many draws x ~ p(x), ``[vectors, dimensions]``; nothing if x is not a vector."""
    if len(run.data.event_shape) != 1:
        return {}
    x = as_input(run.data.test[:VECTORS])
    with fork_seed(derive_seed(run.seed, "samples")):
        trace = run.pair.simulate(x, **run.values)
    (generated,) = (site["value"] for site in observed_sites(trace).values())
    return {name: each[:, :DIMENSIONS].cpu().numpy() for name, each in {"data": x, "generated": generated}.items()}


@torch.no_grad()
def traversals(run: TrainedRun) -> dict[str, NDArray[Any]]:
    """E[x|z] along the latents that differ most between images, from the code of the first test image.

    Latents are ranked by the share of their variance that is between images: the correlation, over n, of two draws from
    q(z|x_n). Each runs from the 1st to the 99th percentile of q(z). Both are estimated on at most `RANKED` images.

    Returns:
        ``traversal``, ``[latents, SAMPLES, channels, height, width]``, and of each latent its number, ``latent``, and
        that share, ``share``; nothing if z is not a vector or x not an image.

    Raises:
        UnsupportedError: the pair has several latent or observed sites, or the type of q is not supported.
    """
    train, test, _ = run.encodings
    x = as_input(run.data.test[:1])
    if len(train.event_shape) != 1 or x.dim() != 4:
        return {}
    draws = generator(run.seed, "traversal")
    some = torch.randperm(train.batch_shape[0], generator=draws)[:RANKED].to(x.device)
    one, other = draw(encodings(train, some), 2, draws)
    start = draw(encodings(test, torch.zeros(1, dtype=torch.long, device=x.device)), 1, draws)[0, 0]
    share = torch.stack(
        [torch.corrcoef(torch.stack(each)).nan_to_num()[0, 1] for each in zip(one.T, other.T, strict=True)]
    )
    chosen = share.argsort(descending=True)[:LATENTS]
    low, high = (one[:, chosen].quantile(at, dim=0) for at in (0.01, 0.99))
    z = start.repeat(len(chosen), SAMPLES, 1)
    for row, latent in enumerate(chosen):
        z[row, :, latent] = torch.lerp(low[row], high[row], torch.linspace(0, 1, SAMPLES, device=x.device).to(z))
    z = z.flatten(0, 1).to(x.dtype)
    mean = mean_of(run.pair.likelihood(x.expand(len(z), *x.shape[1:]), z, **run.values))
    if mean is None:
        return {}
    images = as_bytes(mean.unflatten(0, (len(chosen), SAMPLES)), run.once(white_level))
    return {"traversal": images, "latent": chosen.double().cpu().numpy(), "share": share[chosen].cpu().numpy()}


@torch.no_grad()
def latent_plane(run: TrainedRun) -> dict[str, NDArray[np.float64]]:
    """log q(z) and log p(z) over the plane of a two-dimensional z; nothing if z has another dimension.

    The box holds all but the outermost hundredth of q(z) in either dimension, plus a margin of a quarter of its size.

    Returns:
        ``z1`` and ``z2``, ``[POINTS]`` each, ``log_q`` and ``log_p``, ``[POINTS, POINTS]``, rows along z2.

    Raises:
        UnsupportedError: the pair has several latent sites, or the type of q is not supported.
    """
    q, _, prior = run.encodings
    if prior.event_shape != (2,):
        return {}
    z = draw(encodings(q), 1, generator(run.seed, "plane"))[0]
    low, high = (z.quantile(share, dim=0) for share in (0.005, 0.995))
    margin = (high - low) / 4
    sides = [
        torch.linspace(float(a), float(b), POINTS, dtype=torch.float64, device=z.device)
        for a, b in zip(low - margin, high + margin, strict=True)
    ]
    points = torch.stack(torch.meshgrid(*sides, indexing="xy"), dim=-1)
    densities = {"log_q": log_marginal(points, encodings(q)), "log_p": prior.log_prob(points)}
    return {name: value.cpu().numpy() for name, value in {"z1": sides[0], "z2": sides[1], **densities}.items()}
