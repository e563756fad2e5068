"""Time of what is expensive to measure, compared with the matrix products and exponentials in it.

    python tests/benchmarks/measuring.py [NAME…] [--device cpu|cuda] [--encodings N] [--rounds N]

Products and exponentials are recorded while a number is measured, and then calculated again on their own, with the
same shapes and types. Weights are untrained, because the cost does not depend on them. Memory is the increase of the
peak of this process, so each line shows only what exceeds the lines before.
"""

import argparse
import statistics
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from cost import peak_memory, seconds
from torch import Tensor
from torch.distributions import Distribution, Independent, MultivariateNormal, Normal
from torch.utils._python_dispatch import TorchDispatchMode

from pyrovae import Run, make_pair
from pyrovae.estimators import (
    Annealing,
    annealed_log_likelihood,
    log_likelihood,
    memorising_decoder,
    mutual_information,
)
from pyrovae.system.matmul import multiplied_by

aten = torch.ops.aten
PRODUCTS = {aten.mm, aten.addmm, aten.bmm, aten.baddbmm}
EXPONENTIALS = {aten.exp, aten.exp_}
LATENT_SIZE = 10
SHAPES = {784: (1, 28, 28), 3072: (3, 32, 32)}


class Recorded(TorchDispatchMode):
    """Counts the calls of some operations by the shapes, strides and types of their arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[tuple[Any, ...]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in PRODUCTS | EXPONENTIALS:
            self.calls[func, tuple((each.shape, each.stride(), each.dtype) for each in args)] += 1
        return func(*args, **kwargs or {})


def alone(calls: Counter[tuple[Any, ...]], kind: set[Any]) -> float:
    """Seconds that the recorded operations of one kind take on their own."""
    total = 0.0
    for (func, described), count in calls.items():
        if func.overloadpacket in kind:
            args = [torch.empty_strided(shape, strides, dtype=dtype) for shape, strides, dtype in described]
            for each in args:
                each.uniform_(-1, 0)
            function = torch.exp if kind is EXPONENTIALS else func  # repeated in place, exp would overflow
            call = partial(function, *args)
            call()
            total += sum(seconds(call) for _ in range(count))
    return total


def information(q: Distribution, points: int = 4096) -> object:
    return mutual_information(q, outer=points)


def weighting(pixels: int) -> object:
    x = torch.rand(300, *SHAPES[pixels])
    return log_likelihood(untrained(x).log_weights, x, particles=2000)


def annealing(pixels: int) -> object:
    x = torch.rand(128, *SHAPES[pixels])
    pair = untrained(x)
    _, prior = pair.latent(x[:1])
    return annealed_log_likelihood(prior, lambda x, z: pair.likelihood(x, z).log_prob(x), x, Annealing(temperatures=20))


def untrained(x: Tensor) -> Any:
    return make_pair(Run(depth=1, width=512), x[0].shape).to(x.device)


def cases(encodings: int) -> dict[str, tuple[str, Callable[[], object]]]:
    """What is measured, by name: in words, and as a function."""
    loc, scale = 3 * torch.randn(encodings, LATENT_SIZE), 0.01 + 0.1 * torch.rand(encodings, LATENT_SIZE)
    lower = 0.01 * torch.randn(encodings, LATENT_SIZE, LATENT_SIZE).tril(-1)
    diagonal = Independent(Normal(loc, scale), 1)
    full_rank = MultivariateNormal(loc, scale_tril=lower + torch.diag_embed(scale))
    codes, images = diagonal.sample()[:1536], torch.randint(256, (encodings, 784), dtype=torch.uint8)
    return {
        "information": (f"I, N = {encodings:,}, 4,096 points", partial(information, diagonal)),
        "full-rank": (f"I, N = {encodings:,}, 4,096 points, full rank", partial(information, full_rank)),
        "decoder": (
            f"infinite-capacity decoder, N = {encodings:,}, 1,536 codes, 784 pixels",
            partial(memorising_decoder, codes, diagonal, images),
        ),
        **{
            f"weighting-{pixels}": (
                f"importance weighting, 300 images, K = 2,000, {pixels:,} pixels",
                partial(weighting, pixels),
            )
            for pixels in SHAPES
        },
        **{
            f"annealing-{pixels}": (
                f"annealing, 128 images, 8 chains, T = 20, {pixels:,} pixels",
                partial(annealing, pixels),
            )
            for pixels in SHAPES
        },
    }


@multiplied_by("auto")
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"all by default: {', '.join(cases(2))}")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--encodings", type=int, default=81_920)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_default_device(options.device)
    print(f"on {options.device}, {torch.get_num_threads()} threads, {LATENT_SIZE} latent dimensions")
    measured = cases(options.encodings)
    for name in options.names or measured:
        words, measure = measured[name]
        before = peak_memory()
        with Recorded() as recorded:
            measure()
        memory = peak_memory() - before
        rounds = [
            (seconds(measure), alone(recorded.calls, PRODUCTS), alone(recorded.calls, EXPONENTIALS))
            for _ in range(options.rounds)
        ]
        whole, products, exponentials = (statistics.median(times) for times in zip(*rounds, strict=True))
        print(
            f"{words}: {whole:.2f} s, {memory / 1e9:.2f} GB; products {products:.2f} s ({products / whole:.0%}), "
            f"exponentials {exponentials:.2f} s ({exponentials / whole:.0%})",
            flush=True,
        )


if __name__ == "__main__":
    main()
