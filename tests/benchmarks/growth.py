"""How the cost of training and of measuring grows, as tables and as a figure.

    THP_MEM_ALLOC_ENABLE=1 python tests/benchmarks/growth.py [--rounds N] [--sizes N] [--figure FILE]

Four curves: a training step against the number of runs in lockstep, and against the width of one hidden layer (784
pixels), both compared with matrix products and Adam alone; exact mutual information against the number of encodings
N, for 1,024 points; and importance weighting of 64 images of 784 pixels against the number of draws K. The sizes of a
curve take turns. The tables show medians and ranges over rounds.
"""

import argparse
import statistics
from collections.abc import Callable
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np
import torch
from cost import seconds
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from torch.distributions import Independent, Normal
from workloads import LATENT_SIZE, Case, Work, adam, lockstep, matrix_products

from pyrovae import Run, make_pair
from pyrovae.estimators import log_likelihood, mutual_information


@dataclass(frozen=True)
class Curve:
    """Cost against one size.

    Attributes:
        label: of the size.
        unit: of the cost.
        sizes: from small to large.
        work: what is timed at a size.
        arithmetic: its arithmetic alone, in parts that are timed separately.
        runs: number of runs that share the time.
    """

    label: str
    unit: str
    sizes: tuple[int, ...]
    work: Callable[[int], Work]
    arithmetic: tuple[Callable[[int], Work], ...] = ()
    runs: Callable[[int], int] = lambda size: 1


@dataclass(frozen=True)
class Cost:
    """Milliseconds at one size."""

    median: float
    low: float
    high: float
    arithmetic: float


def information(encodings: int) -> Work:
    loc, scale = 3 * torch.randn(encodings, LATENT_SIZE), 0.01 + 0.1 * torch.rand(encodings, LATENT_SIZE)
    q = Independent(Normal(loc, scale), 1)
    return lambda: mutual_information(q, outer=1024)


def importance_weighting(particles: int) -> Work:
    pair, x = make_pair(Run(depth=1, width=512), torch.Size([1, 28, 28])), torch.rand(64, 1, 28, 28)
    return lambda: log_likelihood(pair.log_weights, x, particles)


def against_runs(work: Callable[[Case], Work]) -> Callable[[int], Work]:
    return lambda runs: work(Case(784, 1, runs))


def against_width(work: Callable[[Case], Work]) -> Callable[[int], Work]:
    return lambda width: work(Case(784, 1, 8, width))


CURVES = (
    Curve(
        "runs in lockstep, 512 units", "ms per step and run", (1, 2, 4, 8, 16, 32),
        against_runs(lockstep), (against_runs(matrix_products), against_runs(adam)), lambda runs: runs,
    ),
    Curve(
        "width, 8 runs in lockstep", "ms per step and run", (64, 128, 256, 512, 1024),
        against_width(lockstep), (against_width(matrix_products), against_width(adam)), lambda width: 8,
    ),
    Curve("encodings N, exact I at 1,024 points", "ms", (1024, 4096, 16_384, 81_920), information),
    Curve("draws K, log p(x) of 64 images", "ms", (64, 256, 1024, 4096), importance_weighting),
)  # fmt: skip


def time_curve(curve: Curve, sizes: tuple[int, ...], rounds: int) -> dict[int, Cost]:
    """Times a curve at some of its sizes."""
    works = {size: [make(size) for make in (curve.work, *curve.arithmetic)] for size in sizes}
    times: dict[int, list[list[float]]] = {size: [] for size in sizes}
    for _ in range(rounds):
        for size in sizes:
            times[size].append([milliseconds(work) / curve.runs(size) for work in works[size]])
    return {size: summarise(times[size]) for size in sizes}


def milliseconds(work: Work) -> float:
    """Mean time of one call, over about a fifth of a second."""
    calls = 1 + int(0.2 / seconds(work))
    return seconds(lambda: [work() for _ in range(calls)]) / calls * 1e3


def summarise(rounds: list[list[float]]) -> Cost:
    """Combines rounds, each a time followed by those of the arithmetic alone."""
    times = [whole for whole, *_ in rounds]
    arithmetic = statistics.median(sum(parts) for _, *parts in rounds)
    return Cost(statistics.median(times), min(times), max(times), arithmetic)


def print_table(curve: Curve, costs: dict[int, Cost]) -> None:
    print(f"\n{curve.label}: {curve.unit}")
    for size, cost in costs.items():
        arithmetic = f"   arithmetic alone {cost.arithmetic:8.2f}" if curve.arithmetic else ""
        print(f"  {size:7,}: {cost.median:8.2f} ({cost.low:.2f} to {cost.high:.2f}){arithmetic}")


def draw(curve: Curve, costs: dict[int, Cost], ax: Axes) -> None:
    sizes = list(costs)
    median, low, high, arithmetic = np.array([astuple(cost) for cost in costs.values()]).T
    ax.errorbar(sizes, median, (median - low, high - median), marker="o", capsize=3, label="pyrovae")
    if curve.arithmetic:
        ax.plot(sizes, arithmetic, "k:", label="matrix products and Adam alone")
        ax.legend()
    ax.set(xscale="log", yscale="log", xlabel=curve.label, ylabel=curve.unit)
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    ax.yaxis.set_major_formatter("{x:,g}")
    ax.set_xticks(sizes, [f"{size:,}" for size in sizes])
    ax.minorticks_off()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sizes", type=int, help="use only so many of the smallest sizes of each curve")
    parser.add_argument("--figure", type=Path, default=Path("growth.png"))
    options = parser.parse_args()
    figure = Figure(figsize=(10, 7), layout="constrained")
    for curve, ax in zip(CURVES, figure.subplots(2, 2).flat, strict=True):
        costs = time_curve(curve, curve.sizes[: options.sizes], options.rounds)
        print_table(curve, costs)
        draw(curve, costs, ax)
    figure.savefig(options.figure, dpi=120)
    print(f"\nfigure: {options.figure}")


if __name__ == "__main__":
    main()
