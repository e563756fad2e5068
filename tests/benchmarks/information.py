"""Time and memory of exact mutual information, compared with its arithmetic alone.

    python tests/benchmarks/information.py [cpu|cuda] [--encodings N] [--points M]

The arithmetic is a product of (z², z) and the parameters of the encodings, and one exponential for each point and
encoding, in float64 on arrays that fit into the cache.
"""

import argparse
import statistics

import torch
from cost import peak_memory, seconds
from torch.distributions import Distribution, Independent, MultivariateNormal, Normal

from pyrovae.estimators import mutual_information

LATENT_SIZE, ROUNDS = 10, 3


def posteriors(encodings: int) -> dict[str, Distribution]:
    loc, scale = 3 * torch.randn(encodings, LATENT_SIZE), 0.01 + 0.1 * torch.rand(encodings, LATENT_SIZE)
    lower = 0.01 * torch.randn(encodings, LATENT_SIZE, LATENT_SIZE).tril(-1)
    return {
        "diagonal": Independent(Normal(loc, scale), 1),
        "full rank": MultivariateNormal(loc, scale_tril=lower + torch.diag_embed(scale)),
    }


def arithmetic(encodings: int, points: int) -> None:
    """The arithmetic of a diagonal posterior."""
    rows, columns = 256, 1024
    z = torch.rand(rows, 2 * LATENT_SIZE, dtype=torch.float64)
    parameters = -torch.rand(2 * LATENT_SIZE, columns, dtype=torch.float64)
    log_q = z.new_empty(rows, columns)
    for _ in range(encodings * points // (rows * columns)):
        torch.mm(z, parameters, out=log_q).exp_()


def compare(name: str, q: Distribution, points: int) -> None:
    """Prints the time of one estimate, and that of its arithmetic."""
    encodings = len(q.mean)
    rounds = [
        (seconds(lambda: mutual_information(q, outer=points)), seconds(lambda: arithmetic(encodings, points)))
        for _ in range(ROUNDS)
    ]
    whole, alone = (statistics.median(times) for times in zip(*rounds, strict=True))
    print(
        f"{name}, N = {encodings:,}, {points:,} points, {LATENT_SIZE} dimensions: {whole:.1f} s; diagonal arithmetic "
        f"alone {alone:.1f} s ({alone / whole:.0%}), on {q.mean.device.type}, {torch.get_num_threads()} threads"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("device", nargs="?", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--encodings", type=int, default=81_920)
    parser.add_argument("--points", type=int, default=4096)
    options = parser.parse_args()
    torch.set_default_device(options.device)
    distributions, before = posteriors(options.encodings), peak_memory()
    for name, q in distributions.items():
        compare(name, q, options.points)
    print(f"peak memory in addition to the encodings: {(peak_memory() - before) / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
