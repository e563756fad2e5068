"""Time and memory of exact mutual information: ``python tests/benchmarks/information.py [cpu|cuda]``.

Beside it what its arithmetic alone takes: for every point and encoding a difference, a quotient and a square in each
dimension, and one exponential, on arrays that stay in the cache.
"""

import resource
import sys
import time
from collections.abc import Callable

import torch
from torch.distributions import Distribution, Independent, MultivariateNormal, Normal

from pyrovae.estimators import mutual_information

N, OUTER, D = 81_920, 4096, 10
DEVICE = "".join(sys.argv[1:]) or "cpu"


def seconds(work: Callable[[], object]) -> float:
    before = time.perf_counter()
    work()
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - before


def arithmetic() -> None:
    """As many elements as N × OUTER × D, a piece at a time."""
    piece = torch.rand(64, 512, D, dtype=torch.float64)
    other = torch.rand(512, D, dtype=torch.float64) + 0.5
    logits = torch.rand(64, 512, dtype=torch.float64)
    out = torch.empty_like(piece)
    for _ in range(N * OUTER // (64 * 512)):
        torch.sub(piece, other, out=out).div_(other).square_()
        logits.exp()


def main() -> None:
    torch.set_default_device(DEVICE)
    loc = 3 * torch.randn(N, D)
    scale = 0.01 + 0.1 * torch.rand(N, D)
    lower = 0.01 * torch.randn(N, D, D).tril(-1)
    kinds: dict[str, Distribution] = {
        "diagonal": Independent(Normal(loc, scale), 1),
        "full rank": MultivariateNormal(loc, scale_tril=lower + torch.diag_embed(scale)),
    }
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for kind, q in kinds.items():
        times = sorted((seconds(lambda q=q: mutual_information(q, outer=OUTER)), seconds(arithmetic)) for _ in range(3))
        ours, alone = times[1]
        print(
            f"{kind}, N = {N:,}, {OUTER:,} outer points, z of {D}: {ours:.1f} s; diagonal arithmetic alone "
            f"{alone:.1f} s ({alone / ours:.0%}), on {DEVICE}, {torch.get_num_threads()} threads"
        )
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e6
    print(f"memory beside the encodings: {grown:.2f} GB at the most")


if __name__ == "__main__":
    main()
