"""Time and memory of bounds of log p(x).

    python tests/benchmarks/likelihood.py [IMAGES] [PARTICLES] [cpu|cuda] [--temperatures T]

The pairs are untrained: the cost does not depend on the weights. Annealing bounds log p(x) of 16 of the images. Memory
is the increase of the peak of this process, so each line shows only what exceeds the lines before.
"""

import argparse

import torch
from cost import peak_memory, seconds
from torch import Tensor

from pyrovae import Pair, Run, make_pair
from pyrovae.estimators import Annealing, annealed_log_likelihood, log_likelihood

CASES = (
    ("linear, 6 values", Run(network="linear", likelihood="gaussian", latent_size=4), (1, 1, 6)),
    ("512 units, 784 pixels", Run(depth=1, width=512), (1, 28, 28)),
    ("512 units, 3,072 pixels", Run(depth=1, width=512), (3, 32, 32)),
)


def print_costs(name: str, pair: Pair, x: Tensor, particles: int, temperatures: int) -> None:
    """Prints the cost of importance weighting and of annealing."""
    before = peak_memory()
    weighting = seconds(lambda: log_likelihood(pair.log_weights, x, particles))
    print(
        f"{name}: {len(x):,} images × K = {particles:,}: {weighting:.1f} s on {x.device.type}, "
        f"{(peak_memory() - before) / 1e9:.2f} GB more at the peak"
    )
    _, prior = pair.latent(x[:1])

    def log_density(x: Tensor, z: Tensor) -> Tensor:
        return pair.likelihood(x, z).log_prob(x)

    annealing = seconds(lambda: annealed_log_likelihood(prior, log_density, x[:16], Annealing(temperatures)))
    print(f"  annealing of 16 images, T = {temperatures:,}, 8 chains: {annealing:.1f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="?", type=int, default=1000)
    parser.add_argument("particles", nargs="?", type=int, default=5000)
    parser.add_argument("device", nargs="?", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--temperatures", type=int, default=200, help="of annealing")
    options = parser.parse_args()
    for name, run, event_shape in CASES:
        pair = make_pair(run, torch.Size(event_shape)).to(options.device)
        x = torch.rand(options.images, *event_shape, device=options.device)
        print_costs(name, pair, x, options.particles, options.temperatures)


if __name__ == "__main__":
    main()
