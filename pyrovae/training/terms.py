"""Loss, distortion and rate of given images under all runs of a cohort at once."""

import torch
from torch.utils._pytree import tree_map

from pyrovae.data import CohortData
from pyrovae.programs.terms import Terms
from pyrovae.training.lockstep import Lockstep
from pyrovae.training.streams import Streams

#: Images per pass; each chunk has its own block of noise.
CHUNK = 256


def terms_on(
    split: str, data: CohortData, images: int, lockstep: Lockstep, streams: Streams, purpose: str, samples: int = 1
) -> Terms:
    """Loss, distortion and rate of images under each run, ``[runs, images]``, in nats, in float64.

    Args:
        split: "train", "test" or "validation".
        images: number of images, the first ones of each run.
        purpose: names the noise: the same purpose has the same draws.
        samples: draws of z per image, over which the mean is taken.
    """
    chunks, number_of = [], data.size if split == "train" else len(dict(data.images.splits())[split])
    for number, index in enumerate(torch.arange(min(images, number_of), device=data.device).split(CHUNK)):
        x, of_runs = data.batch(split, index)
        draws = []
        for sample in range(samples):
            block = number * samples + sample
            noise = {site: eps.to(x.device) for site, eps in streams.noise_for(purpose, len(index), block).items()}
            rows = index if split == "train" else None
            terms = lockstep.terms(x, noise, streams.keys(purpose, block), rows, of_runs=of_runs)
            draws.append(tree_map(lambda term: term.double().cpu(), terms))
        chunks.append(tree_map(lambda *parts: torch.stack(parts).mean(0), *draws))
    return tree_map(lambda *parts: torch.cat(parts, dim=1), *chunks)
