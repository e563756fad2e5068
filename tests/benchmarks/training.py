"""Speed of training: lockstep compared with other libraries, and with the arithmetic that it needs.

    python -m pip install -c constraints.txt -e '.[bench]'
    python tests/benchmarks/training.py [--rounds N] [--runs R] [--depth 1,3] [--pixels 784,3072]
    python tests/benchmarks/training.py --pixels 3072 --precision float32,bfloat16 [--profile]
    python tests/benchmarks/training.py --pixels 784 --depth 1 --runs 18 --width 128 [--profile]
    python tests/benchmarks/training.py --products
    python tests/benchmarks/training.py --device cuda --runs 60 --depth 3 --pixels 3072 --precision tf32 [--profile]

All contestants train the same VAE on the same images: hidden layers of 512 units by default, ten latent dimensions, a
Bernoulli likelihood, batches of 128, Adam at 1e-3. Each has its own process and trains for one epoch in each round.
Ratios are of times within a round, reported as the median and the range over rounds. Lockstep trains all runs at once,
the other libraries train one; "images/s" counts an image once for each run that trains on it.

The arithmetic is the matrix products of a step on the same shapes and strides, each in the fastest of several ways, and
Adam, which moves 28 bytes per parameter, at the bandwidth of adding two large arrays. `--products` prints the speed of
every way.

On a GPU, only programs in torch take part, and in other precisions than float32 only those that train in them.
`--profile` prints the operations that take the most time in lockstep.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib import metadata
from itertools import product

import competitors
from cost import seconds
from torch.profiler import profile
from workloads import BATCH_SIZE, PRODUCTS, STEPS, Case, Work, adam, lockstep, matrix_products, operands, timed

from pyrovae.training.precision import matmul_precision

#: With large pages, as in the command `pyrovae`.
ENVIRONMENT = os.environ | {"THP_MEM_ALLOC_ENABLE": "1"}


def epochs_of(step: Callable[[Case], Work]) -> Callable[[Case], Work]:
    """Repeats a step for an epoch."""

    def make(case: Case) -> Work:
        work = step(case)
        return lambda: [work() for _ in range(STEPS)]

    return make


@dataclass(frozen=True)
class Contestant:
    """
    Attributes:
        epoch: returns a function that does the work of an epoch.
        packages: distributions that it needs.
        all_runs: whether it trains all runs of a case rather than one.
        cuda: whether it takes part on a GPU.
        rounds: whether it trains in other precisions than float32.
    """

    epoch: Callable[[Case], Work]
    packages: tuple[str, ...] = ("torch",)
    all_runs: bool = False
    cuda: bool = True
    rounds: bool = True


LOCKSTEP, ARITHMETIC, ADAM = "lockstep", "matrix products alone", "Adam at full bandwidth"
CONTESTANTS = {
    LOCKSTEP: Contestant(epochs_of(lockstep), ("torch", "pyro-ppl"), all_runs=True),
    "lockstep, --matmul blas": Contestant(
        epochs_of(partial(lockstep, matmul="blas")), ("torch", "pyro-ppl"), all_runs=True, cuda=False
    ),
    ARITHMETIC: Contestant(epochs_of(matrix_products), all_runs=True),
    ADAM: Contestant(epochs_of(adam), all_runs=True),
    "plain PyTorch": Contestant(competitors.plain_torch),
    "PyTorch, DataLoader": Contestant(competitors.torch_loader, cuda=False),
    "NumPyro, jit": Contestant(competitors.numpyro_jit, ("numpyro", "jax"), cuda=False, rounds=False),
    "Pyro, SVI": Contestant(competitors.pyro_svi, ("pyro-ppl",)),
    "pythae": Contestant(competitors.pythae_trainer, ("pythae",), cuda=False, rounds=False),
}


class ContestantProcess:
    """A process that trains for an epoch at each request."""

    def __init__(self, name: str, case: Case) -> None:
        command = [sys.executable, __file__, "--contestant", name, json.dumps(asdict(case))]
        self._process = subprocess.Popen(
            command, env=ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def seconds_per_step(self) -> float:
        """Trains for an epoch."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(file=self._process.stdin, flush=True)
        return float(self._process.stdout.readline()) / STEPS

    def close(self) -> None:
        self._process.communicate()


def serve(name: str, case: Case) -> None:
    """The contestant's side: answers each line by training for an epoch, and prints the seconds that it took."""
    answers, sys.stdout = sys.stdout, sys.stderr  # libraries print to stdout
    work = CONTESTANTS[name].epoch(case)
    for _ in sys.stdin:
        print(seconds(work), file=answers, flush=True)


def compare(case: Case, rounds: int, names: Sequence[str]) -> None:
    """Prints the table of one case."""
    processes = {name: ContestantProcess(name, case) for name in names}
    for process in processes.values():
        process.seconds_per_step()  # compiles, and fills caches
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        first = number % len(names)
        for name in [*names[first:], *names[:first]]:
            times[name].append(processes[name].seconds_per_step())
    for process in processes.values():
        process.close()
    print(
        f"\n{case.pixels:,} pixels, depth {case.depth}, width {case.width}, {case.runs} runs in lockstep, "
        f"{case.precision} on {case.device}"
    )
    for name in names:
        print(row(name, case, times))
    arithmetic = [sum(both) for both in zip(times[ARITHMETIC], times[ADAM], strict=True)]
    share, low, high = spread(alone / ours for alone, ours in zip(arithmetic, times[LOCKSTEP], strict=True))
    print(f"  lockstep reaches {share:.0%} ({low:.0%} to {high:.0%}) of the speed of matrix products and Adam alone")


def row(name: str, case: Case, times: Mapping[str, Sequence[float]]) -> str:
    """A row of the table: time, speed, and the ratio of times per run to lockstep."""
    contestant, median = CONTESTANTS[name], statistics.median(times[name])
    runs = case.runs if contestant.all_runs else 1
    ratios = (case.runs / runs * theirs / ours for ours, theirs in zip(times[LOCKSTEP], times[name], strict=True))
    ratio, low, high = spread(ratios)
    faster = "" if name == LOCKSTEP else f"lockstep is {ratio:.2f} ({low:.2f} to {high:.2f}) times as fast"
    versions = ", ".join(f"{package} {metadata.version(package)}" for package in contestant.packages)
    milliseconds = f"{median * 1e3:7.1f} ms per step"
    return f"  {name:24} {milliseconds}   {runs * BATCH_SIZE / median:9,.0f} images/s   {faster:48}   {versions}"


def spread(values: Iterable[float]) -> tuple[float, float, float]:
    """Median, minimum and maximum."""
    ordered = sorted(values)
    return statistics.median(ordered), ordered[0], ordered[-1]


def print_products(case: Case) -> None:
    """Prints the speed of every product of a step in every way."""
    print(f"\n{case.pixels:,} pixels, depth {case.depth}, width {case.width}, {case.runs} runs, {case.precision}; GF/s")
    with matmul_precision(case.precision):
        for name, left, right, out in operands(case):
            work = 2 * out.numel() * left.shape[-1]
            speeds = (f"{way} {work / timed(product, left, right, out) / 1e9:.0f}" for way, product in PRODUCTS.items())
            print(f"  {name:24} {'   '.join(speeds)}")


def print_profile(case: Case) -> None:
    """Prints the operations of an epoch of lockstep that take the most time."""
    epoch = CONTESTANTS[LOCKSTEP].epoch(case)
    epoch()
    with profile() as profiled:
        epoch()
    print(profiled.key_averages().table(sort_by=f"self_{case.device}_time_total", row_limit=25))


def contestants_installed() -> list[str]:
    """The contestants, after a line for each one that is not installed."""
    names = []
    for name, contestant in CONTESTANTS.items():
        missing = [package for package in contestant.packages if not installed(package)]
        if missing:
            print(f"{name}: skipped, because {missing[0]} is not installed")
        else:
            names.append(name)
    return names


def takes_part(name: str, case: Case) -> bool:
    contestant = CONTESTANTS[name]
    return (contestant.cuda or case.device == "cpu") and (contestant.rounds or case.precision == "float32")


def installed(package: str) -> bool:
    return any(metadata.distributions(name=package))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--runs", type=int, default=8)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--depth", type=integers, default=[1, 3])
    parser.add_argument("--pixels", type=integers, default=[784, 3072])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--precision", type=words, default=["float32"], help="float32, tf32 or bfloat16, or several")
    parser.add_argument("--products", action="store_true", help="print the speed of matrix products instead")
    parser.add_argument("--profile", action="store_true", help="profile lockstep instead")
    parser.add_argument("--contestant", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contestant:
        name, case = options.contestant
        serve(name, Case(**json.loads(case)))
        return
    names = [] if options.products or options.profile else contestants_installed()
    for pixels, depth, precision in product(options.pixels, options.depth, options.precision):
        case = Case(pixels, depth, options.runs, options.width, options.device, precision)
        if options.products:
            print_products(case)
        elif options.profile:
            print_profile(case)
        else:
            compare(case, options.rounds, [name for name in names if takes_part(name, case)])


def words(text: str) -> list[str]:
    return text.split(",")


def integers(text: str) -> list[int]:
    return [int(number) for number in words(text)]


if __name__ == "__main__":
    main()
