"""Time and memory of rendering Tetrominoes.

python tests/benchmarks/render.py [--images N]
"""

import argparse

import torch
from cost import peak_memory, seconds

from pyrovae.data import tetrominoes

ROUNDS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, help="number of images; default: all")
    options = parser.parse_args()
    torch.set_num_threads(1)
    factors = tetrominoes.sample_factors()
    factors = factors[torch.randperm(len(factors))][: options.images]
    few = factors[:8192]
    tetrominoes.render(few)  # fills caches
    times = [seconds(lambda: tetrominoes.render(few)) / len(few) * 1e3 for _ in range(ROUNDS)]
    print(f"one core: {min(times):.3f} to {max(times):.3f} ms per image ({ROUNDS} rounds of {len(few):,} images)")
    total = seconds(lambda: tetrominoes.quantised(factors))
    print(f"{len(factors):,} images as uint8: {total:.1f} s, peak memory {peak_memory() / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
