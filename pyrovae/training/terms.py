"""Loss, distortion and rate of given images under all runs of a cohort at once."""

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from pyrovae.data import as_input
from pyrovae.programs.terms import Terms
from pyrovae.training.lockstep import Lockstep
from pyrovae.training.streams import Streams

#: Images per pass; each chunk has its own block of noise.
CHUNK = 256


def terms_on(split: str, images: Tensor, lockstep: Lockstep, streams: Streams, purpose: str, samples: int = 1) -> Terms:
    """Loss, distortion and rate of each image under each run, ``[runs, images]``, in nats, in float64.

    Args:
        split: "train" or "test".
        images: the first images of the split, ``[images, *event_shape]``.
        purpose: names the noise: the same purpose has the same draws.
        samples: draws of z per image, over which the mean is taken.
    """
    chunks = []
    for number, chunk in enumerate(images.split(CHUNK)):
        x = as_input(chunk)
        first = number * CHUNK
        index = torch.arange(first, first + len(x), device=x.device) if split == "train" else None
        draws = []
        for sample in range(samples):
            block = number * samples + sample
            noise = {site: eps.to(x.device) for site, eps in streams.noise_for(purpose, len(x), block).items()}
            terms = lockstep.terms(x, noise, streams.keys(purpose, block), index)
            draws.append(tree_map(lambda term: term.double().cpu(), terms))
        chunks.append(tree_map(lambda *parts: torch.stack(parts).mean(0), *draws))
    return tree_map(lambda *parts: torch.cat(parts, dim=1), *chunks)
