"""Time and memory of bounds of log p(x): python tests/benchmarks/likelihood.py [images] [particles] [cpu|cuda].

Untrained pairs: the cost does not depend on the weights. Annealing takes 16 of the images. Memory is told as the rise
of the peak of one process, so that a later line shows only what goes beyond those before it.
"""

import resource
import sys
import time

import torch

from pyrovae import Run, make_pair
from pyrovae.estimators import Annealing, annealed_log_likelihood, log_likelihood


def peak() -> float:
    """Most memory that this process has held, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    *sizes, device = sys.argv[1:] + ["1000", "5000", "cpu"][len(sys.argv) - 1 :]
    images, particles = map(int, sizes)
    for name, run, event in (
        ("linear, 6 values", Run(network="linear", likelihood="gaussian", latent_size=4), (1, 1, 6)),
        ("512 units, 784 pixels", Run(depth=1, width=512), (1, 28, 28)),
        ("512 units, 3,072 pixels", Run(depth=1, width=512), (3, 32, 32)),
    ):
        pair, x, before = (
            make_pair(run, torch.Size(event)).to(device),
            torch.rand(images, *event, device=device),
            peak(),
        )
        start = time.perf_counter()
        log_likelihood(pair.log_weights, x, particles)
        seconds = time.perf_counter() - start
        print(
            f"{name}: {images:,} images × K = {particles:,}: {seconds:.1f} s on {device}, {peak() - before:.2f} GB "
            "more at the peak"
        )
        prior, start = pair.latent(x[:1])[1], time.perf_counter()
        log_p = lambda x, z, pair=pair: pair.likelihood(x, z).log_prob(x)  # noqa: E731
        annealed_log_likelihood(prior, log_p, x[:16], Annealing()).bound.cpu()  # which waits for a GPU
        print(f"  annealing of 16 images, T = 200, 8 chains: {time.perf_counter() - start:.1f} s")


if __name__ == "__main__":
    main()
