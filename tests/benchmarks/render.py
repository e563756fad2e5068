"""Time and memory of rendering Tetrominoes: ``python tests/benchmarks/render.py``."""

import resource
import time

import torch

from pyrovae.data import tetrominoes


def main() -> None:
    torch.set_num_threads(1)
    factors = tetrominoes.sample_factors()
    few = factors[torch.randperm(len(factors))[:8192]]
    tetrominoes.render(few)
    times = []
    for _ in range(5):
        before = time.perf_counter()
        tetrominoes.render(few)
        times.append((time.perf_counter() - before) / len(few) * 1e3)
    print(f"one core: {min(times):.3f} to {max(times):.3f} ms an image (five rounds of {len(few):,})")
    before, images = time.perf_counter(), tetrominoes.quantised(factors)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"all {len(images):,} as uint8: {time.perf_counter() - before:.1f} s, peak memory {peak:.2f} GB")


if __name__ == "__main__":
    main()
