"""The steps at which learning curves have a point."""

from math import log10


def probe_steps(steps: int, points: int) -> list[int]:
    """Steps spaced logarithmically from 1 on, ``points`` for every tenfold, and the last one.

    A longer training has the same steps and more, apart from the last.

    Example:
        >>> probe_steps(100, 2), probe_steps(150, 2)
        ([1, 3, 10, 32, 100], [1, 3, 10, 32, 100, 150])
    """
    return sorted({round(10 ** (point / points)) for point in range(int(points * log10(steps)) + 1)} | {steps})
