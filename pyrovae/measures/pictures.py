"""What is there to see of a trained pair: images decoded from its prior and along its latents, and its latent plane."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.distributions import Distribution

from pyrovae.estimators.marginal import draw, encodings, log_marginal
from pyrovae.programs.distributions import mean_of
from pyrovae.programs.noise import derive_seed, fork_seed, generator
from pyrovae.programs.pair import Pair

#: Images decoded from each prior, points along either side of the latent plane, and latents along which is decoded.
SAMPLES, POINTS, LATENTS = 8, 64, 5


@torch.no_grad()
def samples(pair: Pair, event_shape: torch.Size, seed: int) -> dict[str, NDArray[np.uint8]]:
    """Mean images E[x|z] at draws z ~ p(z), ``[SAMPLES, channels, height, width]``, where there are any to show.

    Args:
        event_shape: shape of an image.
        seed: seed of the run.
    """
    if not hasattr(pair.model, "generate") or len(event_shape) != 3:
        return {}
    with fork_seed(derive_seed(seed, "samples")):
        x = mean_of(pair.model.generate(SAMPLES))  # type: ignore[operator]
    return {} if x is None else {"image": as_bytes(x)}


def as_bytes(x: Tensor) -> NDArray[np.uint8]:
    """Images in [0, 1] as they are kept to be shown."""
    return (255 * x.nan_to_num().clamp(0, 1)).round().byte().cpu().numpy()


@torch.no_grad()
def traversals(
    pair: Pair, train: Distribution, test: Distribution, x: Tensor, seed: int, **values: float | Tensor
) -> dict[str, NDArray[Any]]:
    """E[x|z] along the latents that tell training images most apart, the others at a code of the first test image.

    A latent is the better at that, the larger the share of its variance that lies between images: the correlation, over
    n, of two draws from q(z|x_n). It runs from the 1st to the 99th percentile of q(z).

    Args:
        train, test: encodings of training and test images.
        x: the first test image, ``[1, *event_shape]``.
        seed: seed of the run.
        values: what the programs take beside images.

    Returns:
        ``traversal``, ``[latents, SAMPLES, channels, height, width]``, with ``latent``, its number, and ``share``,
        ``[latents]`` each; nothing where z is no vector or there is no mean image to show.
    """
    if len(train.event_shape) != 1 or x.dim() != 4:
        return {}
    draws = generator(seed, "traversal")
    one, other = draw(encodings(train), 2, draws)
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
    mean = mean_of(pair.likelihood(x.expand(len(z), *x.shape[1:]), z, **values))
    if mean is None:
        return {}
    images = as_bytes(mean.unflatten(0, (len(chosen), SAMPLES)))
    return {"traversal": images, "latent": chosen.double().cpu().numpy(), "share": share[chosen].cpu().numpy()}


@torch.no_grad()
def latent_plane(q: Distribution, prior: Distribution, seed: int) -> dict[str, NDArray[np.float64]]:
    """log q(z) and log p(z) over the plane of a z with two dimensions; nothing where it has another number.

    The box holds all but the outermost hundredth of q(z), in either dimension, with a quarter of its size around it.

    Args:
        q: encodings of the training set.
        prior: p(z).
        seed: seed of the run.

    Returns:
        ``z1`` and ``z2``, ``[POINTS]`` each, ``log_q`` and ``log_p``, ``[POINTS, POINTS]``, rows along z2.
    """
    if prior.event_shape != (2,):
        return {}
    z = draw(encodings(q), 1, generator(seed, "plane"))[0]
    low, high = (z.quantile(share, dim=0) for share in (0.005, 0.995))
    margin = (high - low) / 4
    sides = [
        torch.linspace(float(a), float(b), POINTS, dtype=torch.float64, device=z.device)
        for a, b in zip(low - margin, high + margin, strict=True)
    ]
    points = torch.stack(torch.meshgrid(*sides, indexing="xy"), dim=-1)
    densities = {"log_q": log_marginal(points, encodings(q)), "log_p": prior.log_prob(points)}
    return {name: value.cpu().numpy() for name, value in {"z1": sides[0], "z2": sides[1], **densities}.items()}
