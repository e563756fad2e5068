"""How the cost of training and of measuring grows, in tables and as a figure.

    THP_MEM_ALLOC_ENABLE=1 python tests/benchmarks/growth.py [--rounds N] [--figure FILE]

A step of training with the number of runs in lockstep and with the width of the layers, as `training.py` measures it,
for one hidden layer and 784 pixels; exact mutual information with the number of encodings N, at 1,024 points;
importance weighting with the number of draws K, for 64 images of the same pixels under an untrained pair. Beside
training stands what its matrix products and Adam take alone. Sizes take turns; told are median, least and most.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from torch.distributions import Independent, Normal
from training import LATENT, Shape, Work, adam, lockstep, matrix_products

from pyrovae import Run, make_pair
from pyrovae.estimators import log_likelihood, mutual_information

#: Median, least and most of milliseconds.
Spread = tuple[float, float, float]


@dataclass(frozen=True)
class Curve:
    """One quantity against one size.

    Attributes:
        size: what grows.
        unit: of what is told.
        values: of the size.
        work: what is timed at a value; takes a number of repetitions.
        alone: the arithmetic of it, likewise.
        parts: what a time is divided by: milliseconds are told for each of these.
    """

    size: str
    unit: str
    values: tuple[int, ...]
    work: Callable[[int], Work]
    alone: tuple[Callable[[int], Work], ...] = ()
    parts: Callable[[int], int] = lambda value: 1


def information(encodings: int) -> Work:
    loc, scale = 3 * torch.randn(encodings, LATENT), 0.01 + 0.1 * torch.rand(encodings, LATENT)
    q = Independent(Normal(loc, scale), 1)
    return lambda times: [mutual_information(q, outer=1024) for _ in range(times)]


def weighting(particles: int) -> Work:
    pair, x = make_pair(Run(depth=1, width=512), torch.Size([1, 28, 28])), torch.rand(64, 1, 28, 28)
    return lambda times: [log_likelihood(pair.log_weights, x, particles) for _ in range(times)]


def of_runs(work: Callable[[Shape], Work]) -> Callable[[int], Work]:
    return lambda runs: work(Shape(784, 1, runs))


def of_width(work: Callable[[Shape], Work]) -> Callable[[int], Work]:
    return lambda width: work(Shape(784, 1, 8, width))


CURVES = (
    Curve(
        "runs in lockstep, 512 units", "ms a step and run", (1, 2, 4, 8, 16, 32),
        of_runs(lockstep), (of_runs(matrix_products), of_runs(adam)), lambda runs: runs,
    ),
    Curve(
        "width, 8 runs in lockstep", "ms a step and run", (64, 128, 256, 512, 1024),
        of_width(lockstep), (of_width(matrix_products), of_width(adam)), lambda width: 8,
    ),
    Curve("encodings N, exact I at 1,024 points", "ms", (1024, 4096, 16_384, 81_920), information),
    Curve("draws K, log p(x) of 64 images", "ms", (64, 256, 1024, 4096), weighting),
)  # fmt: skip


def milliseconds(work: Work) -> float:
    """Of one repetition, over so many that they take a fifth of a second."""
    before = time.perf_counter()
    work(1)
    times = 1 + int(0.2 / (time.perf_counter() - before))
    before = time.perf_counter()
    work(times)
    return (time.perf_counter() - before) / times * 1e3


def spread(times: list[float], parts: int) -> Spread:
    return statistics.median(times) / parts, min(times) / parts, max(times) / parts


def measured(curve: Curve, rounds: int) -> tuple[list[Spread], list[float]]:
    """Times at every value, and the medians of the arithmetic alone."""
    works = {value: [make(value) for make in (curve.work, *curve.alone)] for value in curve.values}
    times: dict[int, list[list[float]]] = {value: [] for value in curve.values}
    for _ in range(rounds):
        for value, parts in works.items():
            times[value].append([milliseconds(work) for work in parts])
    whole = [spread([each[0] for each in times[value]], curve.parts(value)) for value in curve.values]
    alone = [statistics.median(sum(each[1:]) for each in times[value]) / curve.parts(value) for value in curve.values]
    return whole, alone


def draw(curve: Curve, whole: list[Spread], alone: list[float], ax: Axes) -> None:
    middle, least, most = torch.tensor(whole).T
    ax.errorbar(curve.values, middle, (middle - least, most - middle), marker="o", capsize=3, label="pyrovae")
    if curve.alone:
        ax.plot(curve.values, alone, "k:", label="matrix products and Adam alone")
        ax.legend()
    ax.set(xscale="log", yscale="log", xlabel=curve.size, ylabel=curve.unit)
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    ax.yaxis.set_major_formatter("{x:,g}")
    ax.set_xticks(curve.values, [f"{value:,}" for value in curve.values])
    ax.minorticks_off()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--figure", type=Path, default=Path("growth.png"))
    asked = parser.parse_args()
    figure = Figure(figsize=(10, 7), layout="constrained")
    for curve, ax in zip(CURVES, figure.subplots(2, 2).flat, strict=True):
        whole, alone = measured(curve, asked.rounds)
        print(f"\n{curve.size}: {curve.unit}")
        for value, (middle, least, most), limit in zip(curve.values, whole, alone, strict=True):
            beside = f"   arithmetic alone {limit:8.2f}" if curve.alone else ""
            print(f"  {value:7,}: {middle:8.2f} ({least:.2f} to {most:.2f}){beside}")
        draw(curve, whole, alone, ax)
    figure.savefig(asked.figure, dpi=120)
    print(f"\nfigure in {asked.figure}")


if __name__ == "__main__":
    main()
